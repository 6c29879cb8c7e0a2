"""Component metrics: cases by hand, an independent way of counting, thresholds, merging, two processes."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.measure import label as skimage_label

from anomaly_vlm.metrics import ComponentMetrics, PixelMetrics, RoadMetrics
from anomaly_vlm.metrics.functional import (
    _order_of_scores,
    _score_of_order,
    best_threshold,
    compare_components,
    score_histograms,
)

ROOT = Path(__file__).parents[2]


def grid(text: str) -> np.ndarray:
    """Rows of digits; `v` is void."""
    return np.array([[255 if c == "v" else int(c) for c in row] for row in text.split()], np.uint8)


def frame(predicted: str, truth: str, *, min_pred: int = 1, min_gt: int = 1) -> tuple[list[float], list[float]]:
    found = compare_components(grid(predicted) == 1, grid(truth), min_pred=min_pred, min_gt=min_gt)
    return found.siou.tolist(), found.ppv.tolist()


def test_overlap_by_hand() -> None:
    # 4 of 6 pixels found, with 2 false ones
    assert frame("1111000 1100000", "0111000 0111000") == ([4 / 8], [4 / 6])
    assert frame("110 110", "110 110") == ([1.0], [1.0])
    assert frame("000 000", "110 110") == ([0.0], [])
    assert frame("110 110", "000 000") == ([], [0.0])


def test_one_prediction_over_two_objects_is_not_punished_for_the_other() -> None:
    # each object: 2 common pixels, union 5 + 0, minus the 2 pixels on the other object
    assert frame("11111", "11011") == ([2 / 3, 2 / 3], [4 / 5])


def test_two_predictions_on_one_object_count_together() -> None:
    assert frame("1101", "1111") == ([0.75], [1.0, 1.0])


def test_corners_touch() -> None:
    assert frame("10 01", "10 01") == ([1.0], [1.0])


def test_void_is_predicted_nowhere_and_splits_nothing_off_the_truth() -> None:
    assert frame("1111", "11vv") == ([1.0], [1.0])
    assert frame("0011", "11vv") == ([0.0], [])


def test_small_components() -> None:
    # the single predicted pixel vanishes; the small object is ignored with the prediction on it
    assert frame("1000 0011", "0000 0011", min_pred=2) == ([1.0], [1.0])
    assert frame("1100 1100 0000 0001", "1100 1100 0000 0001", min_gt=2) == ([1.0], [1.0])
    # what is left of a prediction over an ignored object keeps its label, in two pieces, and is not checked again
    assert frame("11011", "00000") == ([], [0.0, 0.0])
    assert frame("11111", "00100", min_gt=2, min_pred=5) == ([], [0.0])


def independent(
    predicted: np.ndarray, label: np.ndarray, min_pred: int, min_gt: int
) -> tuple[list[float], list[float]]:
    """The benchmark's steps, component by component."""
    found = skimage_label(predicted & (label != 255), connectivity=2)
    truth = skimage_label(label == 1, connectivity=2)
    for j in range(1, found.max() + 1):
        if (found == j).sum() < min_pred:
            found[found == j] = 0
    for k in range(1, truth.max() + 1):
        if (truth == k).sum() < min_gt:
            found[truth == k] = 0
            truth[truth == k] = 0
    siou = []
    for k in np.unique(truth[truth > 0]):
        one = truth == k
        touching = np.isin(found, np.unique(found[one & (found > 0)])) & (found > 0)
        others = ((truth > 0) & ~one & touching).sum()
        siou.append((one & touching).sum() / ((one | touching).sum() - others))
    ppv = [(truth[found == j] > 0).mean() for j in np.unique(found[found > 0])]
    return siou, ppv


@pytest.mark.parametrize("seed", range(12))
def test_equals_an_independent_count(seed: int) -> None:
    random = np.random.default_rng(seed)

    def blocks(rate: float) -> np.ndarray:
        return np.kron(random.random((9, 11)) < rate, np.ones((3, 2), bool))

    predicted, label = blocks(0.3), blocks(0.25).astype(np.uint8)
    label[blocks(0.1)] = 255
    for min_pred, min_gt in ((1, 1), (7, 1), (1, 7), (13, 13)):
        expected = independent(predicted, label, min_pred, min_gt)
        found = compare_components(predicted, label, min_pred=min_pred, min_gt=min_gt)
        np.testing.assert_allclose(sorted(found.siou), sorted(expected[0]), atol=1e-12)
        np.testing.assert_allclose(sorted(found.ppv), sorted(expected[1]), atol=1e-12)


def test_order_of_half_precision_scores() -> None:
    values = np.array([-np.inf, -2.5, -1e-7, -0.0, 0.0, 6e-8, 1.0, 65504.0, np.inf], np.float16)
    keys = _order_of_scores(values)
    assert (np.diff(keys.astype(int)) >= 0).all() and keys[3] == keys[4]
    assert [_score_of_order(int(key)) for key in keys] == [float(value) for value in values]


def test_best_threshold_is_the_pixel_metrics_one() -> None:
    random = np.random.default_rng(0)
    label = (random.random((40, 50)) < 0.2).astype(np.uint8)
    label[random.random((40, 50)) < 0.1] = 255
    scores = (random.normal(size=(40, 50)) + label % 255 - 3).round(1).astype(np.float16)
    at_least, above = best_threshold(score_histograms(scores, label))
    metric = PixelMetrics()
    metric.update(torch.from_numpy(scores), torch.from_numpy(label))
    assert at_least == float(metric.compute()["pixel_f1_max_threshold"])
    valid = label != 255
    assert ((scores >= np.float16(at_least))[valid] == (scores.astype(float) > above)[valid]).all()
    assert math.isnan(best_threshold(score_histograms(scores, np.zeros_like(label)))[0])


def test_f1_star_counts_over_frames() -> None:
    """sIoU 1, 0.5 and 0; PPV 1 and 0.5: by hand at every tau."""
    metric = ComponentMetrics(1, 1, threshold=0.5)
    metric.update(grid("11000").astype(np.float32), grid("11000"))
    metric.update([grid("1100000").astype(np.float32)], [grid("0110010")])
    values, details = metric.compute(), metric.details()
    assert values["siou"] == pytest.approx((1 + 1 / 3 + 0) / 3) and values["ppv"] == pytest.approx(0.75)
    expected = []
    for tau in (0.25 + 0.05 * i for i in range(11)):
        tp = 1 + (tau <= 1 / 3)
        fp = int(tau > 0.5 + 1e-9)
        expected.append(2 * tp / (2 * tp + (3 - tp) + fp))
    np.testing.assert_allclose(details["f1"], expected)
    assert values["f1"] == pytest.approx(np.mean(expected))
    assert details["gt_per_frame"].tolist() == [1, 2] and details["pred_per_frame"].tolist() == [1, 1]


def test_undefined_values() -> None:
    metric = ComponentMetrics(1, 1, threshold=0.5)
    metric.update(np.zeros((2, 2), np.float32), np.ones((2, 2), np.uint8))
    values = metric.compute()
    assert math.isnan(values["ppv"]) and values["f1"] == 0 and values["siou"] == 0
    nothing = ComponentMetrics(1, 1)
    nothing.update(np.zeros((2, 2), np.float32), np.full((2, 2), 255, np.uint8))
    assert math.isnan(nothing.compute()["f1"]) and nothing.compute()["num_gt"] == 0


def case() -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(3)
    label = torch.kron((torch.rand(5, 6, 8, generator=random) < 0.2).float(), torch.ones(4, 4)).to(torch.uint8)
    scores = torch.rand(label.shape, generator=random) + 0.6 * label - 2
    label[:, :3] = 255
    return scores, label


def test_batches_repeats_merging_and_reset() -> None:
    scores, label = case()
    whole = ComponentMetrics(5, 3)
    whole.update(scores, label, index=torch.arange(5))
    expected = {name: float(value) for name, value in whole.compute().items()}
    one, other = ComponentMetrics(5, 3), ComponentMetrics(5, 3)
    for i in (0, 2, 2, 0):
        one.update(scores[i], label[i], index=torch.tensor([i]))
    other.update(scores[1:], label[1:], index=torch.arange(1, 5))
    one.merge_state(other)
    assert {name: float(value) for name, value in one.compute().items()} == expected
    with pytest.raises(ValueError, match="min_pred, min_gt, threshold"):
        one.merge_state(ComponentMetrics(6, 3))
    one.reset()
    assert one.details()["siou"].size == 0
    assert {name: float(value) for name, value in one(scores, label).items()} == expected


def test_a_threshold_keeps_no_maps() -> None:
    scores, label = case()
    auto, given = ComponentMetrics(5, 3), ComponentMetrics(5, 3, threshold=-1.2)
    given.update(scores, label)
    auto.update(scores, label)
    assert not given._maps and auto.compute()["threshold"] != -1.2
    predicted = (scores > -1.2).numpy()
    frames = [compare_components(p, m, min_pred=5, min_gt=3) for p, m in zip(predicted, label.numpy(), strict=True)]
    assert given.details()["siou"].tolist() == [value for part in frames for value in part.siou]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_pred": -1}, "min_pred is -1"),
        ({"min_gt": 1.5}, "min_gt is 1.5"),
        ({"threshold": "best"}, "threshold is 'best'"),
        ({"threshold": math.nan}, "threshold is nan"),
    ],
)
def test_options_are_checked(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ComponentMetrics(**options)


def test_road_table() -> None:
    scores, label = case()
    metric = RoadMetrics(["max", "rba"], components={"min_pred": 5, "min_gt": 3})
    metric.update({"max": scores, "rba": -scores}, label, index=torch.arange(5))
    metric.update({"max": scores, "rba": scores}, None)
    metric.update_classes(torch.tensor([1, 2, 3, 3]), torch.tensor([1, 2, 0, 3]))
    values = metric.compute()
    assert values["max/pixel_auroc"] + values["rba/pixel_auroc"] == pytest.approx(1)
    assert values["mean/component_f1"] == values["max/component_f1"] and values["mean/known_accuracy"] == 0.75
    valid = label != 255
    assert values["mean/prevalence"] == pytest.approx(float((label[valid] == 1).double().mean()))
    metric.reset()
    assert metric.components["max"].details()["siou"].size == 0 and metric.labelled == 0
    with pytest.raises(ValueError, match="scores is empty"):
        RoadMetrics([])


WORKER = """
import sys, torch, torch.distributed as dist
from anomaly_vlm.metrics import RoadMetrics
from tests.metrics.test_components import case
rank, port, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{port}", rank=rank, world_size=2)
scores, label = case()
rows = [[0, 2, 4], [1, 3, 4]][rank]  # the last one is a sampler's repeat
metric = RoadMetrics(["max"], components={"min_pred": 5, "min_gt": 3})
for i in rows:
    metric.update({"max": scores[i : i + 1]}, label[i : i + 1], index=torch.tensor([i]))
metric.update_classes(torch.tensor([1, 1]), torch.tensor([1, rank]))
values = {k: float(v) for k, v in metric.compute().items()}
dist.barrier()
dist.destroy_process_group()
torch.save(values, f"{out}/{rank}.pt")
"""


def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    arguments = [str(tmp_path / "meeting"), str(tmp_path)]
    ranks = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(rank), *arguments], cwd=ROOT, env=environment)
        for rank in (0, 1)
    ]
    assert [rank.wait(timeout=100) for rank in ranks] == [0, 0]
    scores, label = case()
    alone = RoadMetrics(["max"], components={"min_pred": 5, "min_gt": 3})
    alone.update({"max": scores}, label, index=torch.arange(5))
    alone.update_classes(torch.tensor([1, 1, 1, 1]), torch.tensor([1, 0, 1, 1]))
    expected = {name: float(value) for name, value in alone.compute().items()}
    for rank in (0, 1):
        assert torch.load(tmp_path / f"{rank}.pt") == pytest.approx(expected, abs=1e-12)
