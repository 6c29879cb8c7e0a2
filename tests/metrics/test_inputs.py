"""What `update` accepts, and what it refuses without a trace."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from anomaly_vlm.metrics import (
    AUPIMO,
    AUPRO,
    AUROC,
    AnomalyMetrics,
    AveragePrecision,
    ComponentMetrics,
    F1Max,
    FPRAtRecall,
    ImageMetrics,
    PixelMetrics,
    RoadMetrics,
)
from anomaly_vlm.metrics.decisions import aupimo, mean_f1
from anomaly_vlm.metrics.functional import image_metrics, pixel_metrics
from tests.metrics.cases import random_case

NAN, INF = float("nan"), float("inf")


def as_floats(values: dict[str, torch.Tensor]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items()}


def square(seed: int = 0, count: int = 3, side: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(count, side, side, dtype=torch.uint8)
    masks[0, 2:7, 3:9], masks[-1, 10:, 10:] = 1, 1
    return torch.randn(count, side, side, generator=generator) + masks, masks


BAD: list[tuple[str, Any, Any, str]] = [
    ("nan", torch.tensor([[[0.0]], [[NAN]]]), torch.zeros(2, 1, 1), r"image 1: the map holds nan"),
    ("infinite", torch.tensor([[[INF]], [[0.0]]]), torch.zeros(2, 1, 1), r"image 0: the map holds inf"),
    ("minus infinite", torch.tensor([[-INF, 1.0]]), torch.zeros(1, 2), r"image 0: the map holds -inf"),
    ("half nan", torch.tensor([[NAN, 1.0]]).half(), torch.zeros(1, 2), r"image 0: the map holds nan"),
    ("bfloat16 infinite", torch.tensor([[-INF, 1.0]]).bfloat16(), torch.zeros(1, 2), r"image 0: the map holds -inf"),
    ("too large", torch.tensor([[1e300, 1.0]], dtype=torch.float64), torch.zeros(1, 2), r"image 0: the map holds inf"),
    ("hidden nan", torch.tensor([[NAN, 1.0]]), torch.tensor([[255, 1]]), r"image 0: the map holds nan"),
    ("mask value", torch.zeros(2, 1, 2), torch.tensor([[[0, 1]], [[0, 2]]]), r"image 1: the mask holds 2: expected 0"),
    ("mask uint8", torch.zeros(1, 3), torch.tensor([[1, 7, 255]], dtype=torch.uint8), r"image 0: the mask holds 7"),
    ("mask fraction", torch.zeros(1, 2), torch.tensor([[0.5, 1.0]]), r"image 0: the mask holds 0\.5"),
    ("mask negative", torch.zeros(1, 2), torch.tensor([[-1, 1]]), r"image 0: the mask holds -1"),
    ("mask 256", torch.zeros(1, 2), torch.tensor([[256, 1]]), r"image 0: the mask holds 256"),
    ("mask nan", torch.zeros(1, 2), torch.tensor([[NAN, 1.0]]), r"image 0: the mask holds nan"),
    ("mask complex", torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.complex64), r"the mask is complex64"),
    ("sizes", torch.zeros(1, 4, 4), torch.zeros(1, 4, 5), r"image 0: the map is 4x4 but the mask is 4x5"),
    ("numbers", torch.zeros(3, 4, 4), torch.zeros(2, 4, 4), r"3 maps but 2 masks"),
    ("channels", torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4), r"maps have shape \(2, 3, 4, 4\)"),
    ("vector", torch.zeros(4), torch.zeros(4), r"maps have shape \(4,\)"),
    ("integers", torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2, 2), r"image 0: the map is torch\.int64"),
]


@pytest.mark.parametrize(("maps", "masks", "message"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
@pytest.mark.parametrize("options", [{}, {"half": True}, {"mode": "binned"}], ids=["exact", "half", "binned"])
def test_bad_input_changes_nothing(maps: Any, masks: Any, message: str, options: dict[str, Any]) -> None:
    metric = PixelMetrics(**options)
    metric.update(*square())
    before = as_floats(metric.compute())
    with pytest.raises(ValueError, match=message) as caught:
        metric.update(maps, masks)
    assert "\n" not in str(caught.value)
    assert as_floats(metric.compute()) == before


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([0.1, NAN], [0, 1], r"image 1: the score is nan"),
        ([INF, 0.1], [0, 1], r"image 0: the score is inf"),
        ([0.1, 0.2], [0, 2], r"image 1: the label is 2: expected 0"),
        ([0.1, 0.2], [-1, 1], r"image 0: the label is -1"),
        ([0.1, 0.2], [0, 1, 1], r"2 image scores but 3 labels"),
    ],
)
def test_bad_image_scores_change_nothing(scores: list[float], labels: list[int], message: str) -> None:
    metric, both = ImageMetrics(), AnomalyMetrics()
    metric.update([0.1, 0.9], [0, 1])
    with pytest.raises(ValueError, match=message):
        metric.update(torch.tensor(scores), labels)
    assert float(metric.compute()["image_auroc"]) == 1.0
    with pytest.raises(ValueError, match=message):
        both.update(scores, torch.zeros(2, 4, 4), labels, torch.zeros(2, 4, 4))
    assert not both.engines["pixel"].ledger.categories and not both.engines["image"].ledger.categories


def test_a_bad_mask_keeps_the_image_part_empty_too() -> None:
    metric = AnomalyMetrics()
    with pytest.raises(ValueError, match="mask holds 3"):
        metric.update([0.1, 0.2], torch.zeros(2, 4, 4), [0, 1], torch.full((2, 4, 4), 3))
    assert not metric.engines["image"].chunks


@pytest.mark.parametrize("given", ["category", "index"])
def test_one_name_and_one_number_an_image(given: str) -> None:
    maps, masks = square()
    wrong = {"category": ["a", "b"], "index": [1, 2]}[given]
    with pytest.raises(ValueError, match=given):
        PixelMetrics().update(maps, masks, **{given: wrong})
    with pytest.raises(ValueError, match="category is 'mean'"):
        PixelMetrics().update(maps, masks, category="mean")
    with pytest.raises(ValueError, match="one integer an image"):
        PixelMetrics().update(maps, masks, index=torch.rand(3))


def test_categories_for_all_or_for_none() -> None:
    metric = PixelMetrics()
    metric.update(*square(), category="a")
    with pytest.raises(ValueError, match="some images came with a category and some without"):
        metric.update(*square())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "fast"}, "choose exact or binned"),
        ({"bins": 1}, "bins is 1"),
        ({"aupro_limits": (0.3, 1.5)}, r"aupro_limits holds 1\.5"),
        ({"connectivity": 6}, "choose 8, 4 or"),
        ({"recall": 0}, "recall is 0"),
        ({"legacy": True, "mode": "binned"}, "mode='exact'"),
        ({"half": True, "mode": "binned"}, "mode='exact'"),
        ({"legacy": True, "connectivity": 4}, "8-connected"),
        ({"workers": 0}, "workers is 0"),
        ({"device": "cuda", "mode": "binned"}, "live on the CPU"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PixelMetrics(**options)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("mode", ["exact", "binned"])
def test_every_float_dtype(kind: torch.dtype, mode: str) -> None:
    maps, masks = square(1)
    expected = as_floats(pixel_metrics(maps.to(kind).float(), masks, mode=mode))
    assert as_floats(pixel_metrics(maps.to(kind), masks, mode=mode)) == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize(
    "kind", [torch.bool, torch.uint8, torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float64]
)
def test_every_mask_dtype(kind: torch.dtype) -> None:
    maps, masks = square(2)
    assert as_floats(pixel_metrics(maps, masks.to(kind))) == as_floats(pixel_metrics(maps, masks))


def test_layouts() -> None:
    maps, masks = square(3)
    expected = as_floats(pixel_metrics(maps, masks))
    wide = torch.zeros(3, 16, 32)
    wide[:, :, ::2] = maps
    layouts = [
        (maps[:, None], masks[:, None]),
        (maps.numpy(), masks.numpy()),
        (list(maps), [mask[None] for mask in masks]),
        (wide[:, :, ::2], masks.transpose(1, 2).contiguous().transpose(1, 2)),
        (maps.requires_grad_(), masks),
    ]
    for scores, truth in layouts:
        assert as_floats(pixel_metrics(scores, truth)) == expected
    one = as_floats(pixel_metrics(maps[:1], masks[:1]))
    assert as_floats(pixel_metrics(maps[0], masks[0])) == one
    assert as_floats(pixel_metrics(maps[0].detach(), masks[:1])) == one


def test_sizes_may_differ_between_images() -> None:
    case = random_case(20)
    metric = PixelMetrics()
    for maps, masks in zip(case.maps, case.masks, strict=True):
        metric.update(maps, masks)
    assert as_floats(metric.compute()) == as_floats(pixel_metrics(case.maps, case.masks))


@pytest.mark.parametrize("options", [{}, {"half": True}, {"mode": "binned"}], ids=["exact", "half", "binned"])
def test_input_is_copied(options: dict[str, Any]) -> None:
    maps, masks = square(4)
    metric = PixelMetrics(**options)
    kept = maps.clone(), masks.clone()
    metric.update(maps, masks, index=[0, 1, 2])
    maps.fill_(7.0)
    masks.fill_(0)
    assert as_floats(metric.compute()) == as_floats(pixel_metrics(*kept, **options))


def test_image_scores_of_every_kind() -> None:
    scores, labels = [0.25, -0.5, 0.75, 2.0], [0, 0, 1, 1]
    expected = as_floats(image_metrics(scores, labels))
    for kind in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        for label in (torch.bool, torch.uint8, torch.int64, torch.float32, torch.bfloat16):
            assert (
                as_floats(image_metrics(torch.tensor(scores, dtype=kind), torch.tensor(labels).to(label))) == expected
            )
    assert as_floats(image_metrics(np.array(scores), np.array(labels))) == expected


def test_one_kind_of_scores_in_a_single_metric() -> None:
    metric = AUROC()
    metric.update(*square())
    with pytest.raises(ValueError, match="holds pixel scores already"):
        metric.update([0.1, 0.2], [0, 1])
    with pytest.raises(ValueError, match="needs maps"):
        AUPRO().update([0.1, 0.2], [0, 1])


def test_rounding_to_half_is_checked() -> None:
    with pytest.raises(ValueError, match="image 0: the map holds inf"):
        PixelMetrics(half=True).update(torch.tensor([[1e6, 0.0]]), torch.tensor([[1, 0]]))


def masks_of_255() -> tuple[np.ndarray, np.ndarray]:
    """Maps, and masks of which one says 255 for anomalous."""
    maps, mask = np.random.default_rng(0).random((2, 6, 6)), np.zeros((2, 6, 6), np.uint8)
    mask[0, 2:4, 2:4] = 255
    return maps, mask


NO_ONE = r"no pixel of any mask is 1, but 1 masks hold 255.*mask // 255"


@pytest.mark.filterwarnings("ignore:(the pixel values are undefined|1 masks hold 0 and 255):UserWarning")
@pytest.mark.parametrize(
    "metric",
    [AUPRO(), AUROC(), F1Max(), AUPIMO(), PixelMetrics(), PixelMetrics("binned"), ComponentMetrics(1, 1)],
    ids=lambda metric: type(metric).__name__,
)
def test_masks_of_0_and_255_are_refused_and_void_pixels_are_not(metric: Any) -> None:
    maps, mask = masks_of_255()
    metric.update(maps, mask)
    for _ in range(2):  # nothing is kept of the first try
        with pytest.raises(ValueError, match=NO_ONE):
            metric.compute()
    metric.update(maps, mask // 255)
    metric.compute()  # now 255 has its meaning
    metric.reset()
    metric.update(maps, mask // 255)
    metric.compute()


def test_functions_do_not_take_masks_of_0_and_255_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    maps, mask = masks_of_255()
    for function in (aupimo, mean_f1):
        with pytest.raises(ValueError, match=NO_ONE):
            function(maps, mask)
        function(maps, mask // 255)
    pixel_metrics(maps, mask // 255)
    assert not caplog.text
    pixel_metrics(maps, mask)
    assert "no pixel of any mask is 1, but 1 masks hold 255" in caplog.text


def test_anomalous_images_whose_masks_hold_255_alone_are_told_of_and_others_are_not() -> None:
    maps, mask = masks_of_255()
    metric = AnomalyMetrics()
    metric.update([0.9, 0.1], maps, [1, 0], mask)
    with pytest.warns(UserWarning, match=NO_ONE), pytest.warns(UserWarning, match="the pixel values are undefined"):
        metric.compute()
    mask[1, 0] = 1
    normal = AnomalyMetrics()
    normal.update([0.9, 0.1], maps, [0, 1], mask)
    normal.compute()  # without a word


@pytest.mark.parametrize("metric", [PixelMetrics(), AUROC(), ComponentMetrics(1, 1)])
def test_two_kinds_of_masks_are_told_of_once(metric: Any) -> None:
    maps, mask = masks_of_255()
    mask[1, 0] = 1
    metric.update(maps, mask)
    with pytest.warns(UserWarning, match="1 masks hold 0 and 255 only, 1 others hold 1: 255 means void"):
        metric.compute()


def test_frames_of_road_scenes_may_have_void_pixels_alone() -> None:
    maps, mask = masks_of_255()
    metric = RoadMetrics(["own"])
    for labels in (mask[:1], mask[:1] * 0 + 1):
        metric.update({"own": torch.from_numpy(maps[:1])}, labels, index=[0])
    with pytest.warns(UserWarning, match="undefined") as told:
        metric.compute()
    assert len(told) == 1


@pytest.mark.parametrize("metric", [AUROC(), AveragePrecision(), F1Max(), FPRAtRecall(), AUPRO(), AUPRO(mode="binned")])
def test_undefined_values_are_told_of_whichever_they_are(metric: Any) -> None:
    metric.update(masks_of_255()[0], np.zeros((2, 6, 6)), category=["a", "b"])
    with pytest.warns(UserWarning, match="the pixel values of 'a', 'b' are undefined") as told:
        assert math.isnan(metric.compute())
    assert len(told) == 1
