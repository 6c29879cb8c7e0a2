"""Every golden file at its README's tolerance: exact values 1e-9, thresholds bit for bit, legacy values 1e-6."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from anomaly_vlm.metrics import AnomalyMetrics, PixelMetrics
from anomaly_vlm.metrics.functional import image_metrics, pixel_metrics
from tests.metrics.cases import EVERYTHING, in_batches
from tests.metrics.support import Golden, golden_files, load_golden
from tests.support.golden import LEDGERS

pytestmark = pytest.mark.golden


def tolerance(name: str) -> float:
    if "threshold" in name or "num_" in name or "mean_count" in name:
        return 0.0
    return 1e-6 if "legacy" in name else 1e-9


def compare(golden: Golden, actual: dict[str, torch.Tensor]) -> None:
    wrong = []
    for name, expected in golden.expected.items():
        found = float(actual[name])
        same = math.isnan(found) if math.isnan(expected) else abs(found - expected) <= tolerance(name)
        if not same:
            wrong.append(f"{name}: {found!r}, expected {expected!r}")
    assert not wrong, f"{golden.name}: " + "; ".join(wrong)


def evaluate(golden: Golden, size: int) -> dict[str, torch.Tensor]:
    metric = AnomalyMetrics(pixel=EVERYTHING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of undefined values; test_pixel looks at them
        if not golden.scores.size and golden.maps:
            pixel = PixelMetrics(**EVERYTHING)
            pixel.update(golden.maps, golden.masks)
            return pixel.compute()
        for rows in in_batches(len(golden.maps), size):
            metric.update(
                golden.scores[rows],
                [torch.from_numpy(golden.maps[i]) for i in rows],
                golden.labels[rows],
                [torch.from_numpy(golden.masks[i]) for i in rows],
                category=[golden.category[i] for i in rows] if golden.category else None,
            )
        return metric.compute()


@pytest.mark.parametrize("path", golden_files(), ids=lambda path: path.stem)
def test_every_file(path: Path) -> None:
    golden = load_golden(path)
    assert not golden.keys, f"{golden.name}: neither read nor compared: {sorted(golden.keys)}"
    if golden.raises:
        before = AnomalyMetrics()
        with pytest.raises(ValueError, match="nan"):
            before.update(golden.scores, golden.maps, golden.labels, golden.masks)
        assert not before.engines["pixel"].stores
        LEDGERS[f"metrics/{golden.name}"] = (1, 1)
        return
    compare(golden, evaluate(golden, 2))
    LEDGERS[f"metrics/{golden.name}"] = (len(golden.expected), len(golden.expected))


@pytest.mark.parametrize("name", ["01_basic", "13_categories", "19_sizes"])
def test_functions_give_the_same(name: str) -> None:
    golden = load_golden(next(path for path in golden_files() if path.stem == name))
    actual = pixel_metrics(golden.maps, golden.masks, category=golden.category, **EVERYTHING)
    compare(golden, {**actual, **image_metrics(golden.scores, golden.labels, category=golden.category)})


def test_counts_beyond_float32() -> None:
    path = next((path for path in golden_files() if "big_counts" in path.stem), None)
    assert path is not None
    golden = load_golden(path)
    scores, labels = golden.maps[0][0], golden.masks[0][0]
    found = image_metrics(scores, labels)
    for name, expected in golden.expected.items():
        assert abs(float(found[name.replace("pixel", "image")]) - expected) <= 1e-9
    assert np.count_nonzero(labels) + np.count_nonzero(labels == 0) > 2**24
