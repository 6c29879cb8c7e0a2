"""The metrics as functions of arrays, for use without a metric object."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage
from torch import Tensor

from anomaly_vlm.metrics._engine.group import Group
from anomaly_vlm.metrics._engine.image import ImageEngine
from anomaly_vlm.metrics._engine.inputs import (
    ArrayLike,
    MaskKinds,
    PixelOptions,
    as_tensors,
    checked_recall,
)
from anomaly_vlm.metrics._engine.metric import pixel_engine
from anomaly_vlm.metrics._engine.regions import EIGHT_NEIGHBOURS

__all__ = [
    "ComponentCounts",
    "ComponentOverlaps",
    "best_threshold",
    "compare_components",
    "component_values",
    "count_components",
    "image_metrics",
    "pixel_metrics",
    "score_histograms",
]

log = logging.getLogger("anomaly_vlm")
VOID = 255
TAUS = np.linspace(0.25, 0.75, 11)  # overlap thresholds of F1*
HALF_SCORES = 1 << 16  # float16 bit patterns


def pixel_metrics(
    maps: ArrayLike,
    masks: ArrayLike,
    *,
    category: str | Sequence[str] | None = None,
    index: ArrayLike | None = None,
    **options: Any,
) -> dict[str, Tensor]:
    """Returns what `PixelMetrics(**options)` computes of one set of images; undefined values are NaN, without a warning.

    A line in the log says where masks hold 255, which means void, as if it stood for anomalous.

    Args:
        maps: `[B, H, W]`, `[B, 1, H, W]` or `[H, W]` finite scores, or a list of `[H, W]` of any sizes; NumPy arrays or
            tensors.
        masks: Of the same sizes; 0 (normal), 1 (anomalous) and 255 (void).
        category: One name an image, or one for all.
        index: `[B]` integers, the numbers in the data set; a repeated one counts once.
        **options: Options of `PixelMetrics`.

    Raises:
        ValueError: Names the first bad image and the value, or an option that is out of its range.

    Example:
        >>> import numpy as np
        >>> scores, mask = np.array([[0.1, 0.4], [0.35, 0.8]]), np.array([[0, 0], [1, 1]])
        >>> float(pixel_metrics(scores, mask)["pixel_f1_max"])
        0.8
    """
    engine = pixel_engine(PixelOptions.checked(**options))
    images = engine.prepare(maps, masks, category, index)
    kinds = MaskKinds()
    kinds.add(images)
    if told := kinds.no_anomaly or kinds.two_kinds:
        log.warning("%s", told)
    engine.commit(images)
    return as_tensors(engine.results(Group()))


def image_metrics(
    scores: ArrayLike,
    labels: ArrayLike,
    *,
    category: str | Sequence[str] | None = None,
    index: ArrayLike | None = None,
    recall: float = 0.95,
) -> dict[str, Tensor]:
    """Returns what `ImageMetrics(recall)` computes of one set of images; undefined values are NaN, without a warning.

    Args:
        scores: `[B]` finite scores.
        labels: `[B]` 0 (normal) or 1 (anomalous).
        category: One name an image, or one for all.
        index: `[B]` integers, the numbers in the data set; a repeated one counts once.
        recall: In (0, 1]; 0.95 gives `image_fpr95`.

    Raises:
        ValueError: Names the first bad image and the value, or the recall is out of its range.
    """
    engine = ImageEngine(checked_recall(recall))
    engine.add(scores, labels, category, index)
    return as_tensors(engine.results(Group()))


# ---- components of road scenes ---------------------------------------------------------------------------------------


class ComponentOverlaps(NamedTuple):
    """Overlaps of the connected components of a frame, both in the order of the components' first pixels.

    Attributes:
        siou: `[G]` sIoU in [0, 1] of each ground-truth component.
        ppv: `[P]` PPV in [0, 1] of each predicted component.
    """

    siou: np.ndarray
    ppv: np.ndarray


class ComponentCounts(NamedTuple):
    """What counts as found at each of the T overlap thresholds `TAUS`.

    Attributes:
        tp: `[T]` int64 ground-truth components that are found.
        fn: `[T]` int64 ground-truth components that are not found.
        fp: `[T]` int64 predicted components that are false alarms.
        f1: `[T]` float64 F1 of these; 0 where there is no component at all.
    """

    tp: np.ndarray
    fn: np.ndarray
    fp: np.ndarray
    f1: np.ndarray


def compare_components(predicted: np.ndarray, label: np.ndarray, *, min_pred: int, min_gt: int) -> ComponentOverlaps:
    r"""Computes the overlaps between the 8-connected components of a prediction and of the ground truth, in one frame.

    With :math:`P_k` the union of the predicted components that touch ground-truth component `k`,
    :math:`sIoU(k) = |k \cap P_k| / (|k \cup P_k| - |P_k \cap other\ components|)`, and
    :math:`PPV(j) = |j \cap all\ ground\ truth| / |j|`.

    Args:
        predicted: `[H, W]` bool, whether each pixel is predicted anomalous.
        label: `[H, W]` of 0 (normal), 1 (anomalous) and 255 (ignored); predictions on ignored pixels are dropped.
        min_pred: Predicted components of fewer pixels are dropped.
        min_gt: Ground-truth components of fewer pixels are ignored, together with what is predicted on them; what remains of
            a predicted component stays one component.

    References:
        Chan et al., "SegmentMeIfYouCan", NeurIPS 2021 (data sets and benchmarks), section 3, and the benchmark's code.
    """
    components, _ = ndimage.label(predicted & (label != VOID), EIGHT_NEIGHBOURS)
    truth, _ = ndimage.label(label == 1, EIGHT_NEIGHBOURS)
    components = _without_small(components, min_pred)
    large_truth = _without_small(truth, min_gt)
    components[(truth > 0) & (large_truth == 0)] = 0
    table = _overlap_table(
        large_truth, components
    )  # [G + 1, P + 1] pixels; row and column 0 are pixels in no component
    inside, size = table[1:, 1:], table[:, 1:].sum(axis=0)
    touches = inside > 0
    both = inside.sum(axis=1)
    union = table[1:].sum(axis=1) + touches @ size - both
    elsewhere = touches @ inside.sum(axis=0) - both  # pixels of P_k that lie on other ground-truth components
    return ComponentOverlaps(both / (union - elsewhere), inside.sum(axis=0) / size)


def count_components(siou: np.ndarray, ppv: np.ndarray) -> ComponentCounts:
    """Counts components: found if their sIoU reaches a threshold, false alarms if their PPV does not.

    Args:
        siou: `[G]` sIoU of the ground-truth components of all frames.
        ppv: `[P]` PPV of the predicted components of all frames.
    """
    tp = (siou[None] >= TAUS[:, None]).sum(axis=1)
    fn = siou.size - tp
    fp = (ppv[None] < TAUS[:, None]).sum(axis=1)
    total = 2 * tp + fn + fp
    return ComponentCounts(tp, fn, fp, np.divide(2 * tp, total, out=np.zeros(len(TAUS)), where=total > 0))


def component_values(siou: np.ndarray, ppv: np.ndarray) -> dict[str, float]:
    """Returns `siou`, `ppv` and `f1` (F1*) as means, and the numbers of components `num_gt` and `num_pred`.

    sIoU is NaN without ground-truth components, PPV without predicted ones. F1* is 0 without either of them, and NaN without
    both.

    Args:
        siou: `[G]` sIoU of the ground-truth components of all frames.
        ppv: `[P]` PPV of the predicted components of all frames.
    """
    return {
        "siou": float(siou.mean()) if siou.size else math.nan,
        "ppv": float(ppv.mean()) if ppv.size else math.nan,
        "f1": float(count_components(siou, ppv).f1.mean()) if siou.size + ppv.size else math.nan,
        "num_gt": float(siou.size),
        "num_pred": float(ppv.size),
    }


def _without_small(components: np.ndarray, min_pixels: int) -> np.ndarray:
    """Numbers the components of at least `min_pixels` pixels anew, in the same order; the others become 0."""
    sizes = np.bincount(components.reshape(-1))
    large = sizes >= min_pixels
    large[0] = False
    numbers = np.where(large, np.cumsum(large), 0)
    renumbered: np.ndarray = numbers[components]
    return renumbered


def _overlap_table(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Returns `[G + 1, P + 1]` pixels that the components share; predicted components without any pixel are left out."""
    rows, columns = int(truth.max(initial=0)) + 1, int(predicted.max(initial=0)) + 1
    table = np.bincount((truth.astype(np.int64) * columns + predicted).reshape(-1), minlength=rows * columns)
    table = table.reshape(rows, columns)
    has_pixels = table.sum(axis=0) > 0
    has_pixels[0] = True
    return table[:, has_pixels]


def score_histograms(scores: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Returns how often each score occurs on normal (row 0) and on anomalous pixels (row 1).

    Args:
        scores: float16 scores, of any shape.
        label: 0 (normal), 1 (anomalous) and 255 (ignored), of the same shape.

    Returns:
        `[2, 65536]` int64, with columns in ascending order of the scores (see `_order_of_scores`).
    """
    order = _order_of_scores(scores)
    return np.stack([np.bincount(order[label == value], minlength=HALF_SCORES) for value in (0, 1)])


def best_threshold(histograms: np.ndarray) -> tuple[float, float]:
    """Finds the threshold of the best pixel F1.

    Args:
        histograms: `[2, 65536]` counts of `score_histograms`, of one frame or added over frames.

    Returns:
        The largest score `t` at which the prediction `s >= t` gives the best F1, and the next smaller score `u` that occurs,
        so that `s > u` predicts the same; `u` is -inf if no smaller score occurs. Both are NaN without anomalous pixels.
    """
    present = np.flatnonzero(histograms.sum(axis=0))[::-1]
    if not histograms[1].any():
        return float("nan"), float("nan")
    fp, tp = histograms[:, present].cumsum(axis=1)
    f1 = 2 * tp / (tp + fp + tp[-1])
    best = int(f1.argmax())
    below = _score_of_order(int(present[best + 1])) if best + 1 < len(present) else -float("inf")
    return _score_of_order(int(present[best])), below


def _order_of_scores(scores: np.ndarray) -> np.ndarray:
    """Returns uint16 numbers in the same order as the float16 `scores`; -0.0 and 0.0 have the same number."""
    bits = (scores + np.float16(0)).view(np.uint16)
    return np.where(bits & 0x8000, ~bits, bits | 0x8000)


def _score_of_order(order: int) -> float:
    """Returns the score of a number of `_order_of_scores`."""
    bits = order ^ 0x8000 if order & 0x8000 else ~order & 0xFFFF
    return float(np.array(bits, np.uint16).view(np.float16))
