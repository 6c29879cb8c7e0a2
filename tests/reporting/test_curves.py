"""Curves and histograms of an evaluation: what the tables hold, and what the pictures show."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from anomaly_vlm.errors import UserError
from anomaly_vlm.metrics import AnomalyMetrics, RoadMetrics
from anomaly_vlm.reporting.curves import read_curves, read_histograms, score_histograms, write_curves, write_histograms
from anomaly_vlm.reporting.plots import ANOMALOUS, COLOURS, MOST, NORMAL, curves_picture, histograms_picture


class Row(NamedTuple):
    category: str
    label: int
    score: float


@pytest.fixture(scope="module")
def measured() -> AnomalyMetrics:
    generator = torch.Generator().manual_seed(0)
    metrics = AnomalyMetrics()
    masks = (torch.rand(12, 16, 16, generator=generator) > 0.8).long()
    masks[::2] = 0
    maps = torch.rand(12, 16, 16, generator=generator) + 0.4 * masks
    scores = maps.flatten(1).amax(dim=1)
    labels = masks.flatten(1).amax(dim=1)
    metrics.update(scores, maps, labels, masks, category=["=gear", "tile"] * 3 + ["tile", "=gear"] * 3)
    return metrics


def area(curve: tuple[np.ndarray, np.ndarray]) -> float:
    return float(np.trapezoid(curve[1], curve[0]))


@pytest.mark.filterwarnings("ignore:no image has an index")
def test_curves_are_those_of_the_metrics(measured: AnomalyMetrics, tmp_path: Path) -> None:
    values = measured.compute()
    write_curves(tmp_path / "curves.csv", measured.all_curves(100))
    curves = read_curves(tmp_path / "curves.csv")
    assert set(curves) == {(c, level) for c in ("'=gear", "tile", "pooled") for level in ("image", "pixel")}
    assert [*curves["tile", "pixel"]] == ["roc", "pr", "pro"] and [*curves["tile", "image"]] == ["roc", "pr"]
    for category, name in (("tile", "tile"), ("pooled", "pooled"), ("'=gear", "=gear")):
        for level in ("image", "pixel"):
            assert area(curves[category, level]["roc"]) == pytest.approx(
                float(values[f"{name}/{level}_auroc"]), abs=0.01
            )
    assert max(len(x) for of_level in curves.values() for x, _ in of_level.values()) <= 202


def test_one_curve_equals_that_of_its_category(measured: AnomalyMetrics) -> None:
    every = measured.all_curves(50)
    for level in ("image", "pixel"):
        for category in ("tile", None):
            for name, curve in measured.curves(category, 50, level=level).items():
                assert all(map(torch.equal, curve, every["pooled" if category is None else category, level][name]))


def test_road_scores_have_curves() -> None:
    metrics = RoadMetrics(["ours", "softmax"])
    mask = torch.zeros(1, 8, 8, dtype=torch.long)
    mask[0, :4, :4] = 1
    metrics.update({"ours": mask.float(), "softmax": torch.rand(1, 8, 8)}, mask, index=torch.tensor([0]))
    curves = metrics.all_curves()
    assert list(curves) == [("ours", "pixel"), ("softmax", "pixel")]
    assert curves["ours", "pixel"]["roc"].y.tolist() == [0, 0, 1, 1]


def test_histograms_count_every_image_once(tmp_path: Path) -> None:
    rows = [Row("tile", i % 2, float(i)) for i in range(11)] + [Row("one", -1, 0.5)]
    write_histograms(tmp_path / "histograms.csv", score_histograms(rows, bins=5))
    found = read_histograms(tmp_path / "histograms.csv")
    assert found["tile"].normal.tolist() == [1, 1, 1, 1, 2] and found["tile"].anomalous.tolist() == [1, 1, 1, 1, 1]
    assert found["tile"].edges.tolist() == pytest.approx([0, 2, 4, 6, 8, 10])
    assert found["one"].normal.sum() == 1 and found["one"].anomalous.sum() == 0  # unlabelled, all scores the same


def test_a_damaged_table_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "curves.csv"
    assert read_curves(path) == {}
    path.write_text("category,level,curve,x,y\ntile,image,roc,0,high\n")
    with pytest.raises(UserError, match=r"'high' where a number belongs: run the evaluation again"):
        read_curves(path)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="is no table of category, level, curve, x, y"):
        read_curves(path)


def colours(picture: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(colour) for colour in picture.reshape(-1, 3).tolist()}


def test_pictures_show_all_categories(measured: AnomalyMetrics) -> None:
    picture = np.asarray(curves_picture(measured.all_curves(100)))
    assert {COLOURS[0], COLOURS[1]} <= colours(picture) and COLOURS[2] not in colours(picture)
    bars = np.asarray(histograms_picture(score_histograms([Row("tile", label, label + 0.1) for label in (0, 1)])))
    assert {NORMAL, ANOMALOUS} <= colours(bars)


def test_pictures_stay_bounded() -> None:
    x = torch.tensor([0.0, 1.0])
    curves = {(f"{i}", level): {"roc": (x, x)} for i in range(200) for level in ("image", "pixel")}
    assert curves_picture(curves).height < 20 * MOST
    histograms = score_histograms([Row(f"{i}", 0, 0.5) for i in range(200)])
    assert histograms_picture(histograms).height < 200 * MOST / 4
