"""The metrics as functions of arrays, for use without a metric object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage
from torch import Tensor

from anomaly_vlm.metrics._engine import pixel_engine
from anomaly_vlm.metrics._engine.group import Alone
from anomaly_vlm.metrics._engine.image import ImageEngine
from anomaly_vlm.metrics._engine.inputs import ArrayLike
from anomaly_vlm.metrics._engine.options import PixelOptions, as_tensors, checked_recall


def pixel_metrics(
    maps: ArrayLike,
    masks: ArrayLike,
    *,
    category: str | Sequence[str] | None = None,
    index: ArrayLike | None = None,
    **options: Any,
) -> dict[str, Tensor]:
    """What `PixelMetrics(**options)` computes of one set of images. Undefined values are NaN, without a warning.

    Args:
        maps: [B, H, W], [B, 1, H, W] or [H, W] scores, or a list of [H, W] of any sizes; NumPy arrays or tensors.
        masks: same sizes; 0 normal, 1 anomalous, 255 void.
        category: one name an image, or one for all. index: [B]; a repeated one counts once.
        options: of `PixelMetrics`.

    Raises:
        ValueError: names the first bad image and the value, or a wrong option.

    Example:
        >>> import numpy as np
        >>> scores, mask = np.array([[0.1, 0.4], [0.35, 0.8]]), np.array([[0, 0], [1, 1]])
        >>> float(pixel_metrics(scores, mask)["pixel_f1_max"])
        0.8
    """
    engine = pixel_engine(PixelOptions.make(**options))
    engine.commit(engine.prepare(maps, masks, category, index))
    return as_tensors(engine.results(Alone()))


def image_metrics(
    scores: ArrayLike,
    labels: ArrayLike,
    *,
    category: str | Sequence[str] | None = None,
    index: ArrayLike | None = None,
    recall: float = 0.95,
) -> dict[str, Tensor]:
    """What `ImageMetrics(recall)` computes of one set of images. Undefined values are NaN, without a warning.

    Args:
        scores: [B] finite scores. labels: [B] 0 normal, 1 anomalous.
        category: one name an image, or one for all. index: [B]; a repeated one counts once.
        recall: in (0, 1]; 0.95 gives `image_fpr95`.

    Raises:
        ValueError: names the first bad image and the value.
    """
    engine = ImageEngine(checked_recall(recall))
    engine.commit(engine.prepare(scores, labels, category, index))
    return as_tensors(engine.results(Alone()))


VOID = 255
TAUS = np.linspace(0.25, 0.75, 11)
EIGHT = np.ones((3, 3), bool)  # neighbours of a pixel in a component


class Frame(NamedTuple):
    """siou [G] of the ground-truth components, ppv [P] of the predicted ones, both in the order of their first pixel."""

    siou: np.ndarray
    ppv: np.ndarray


class Counts(NamedTuple):
    """tp, fn, fp [T] int64 and f1 [T] at the thresholds `TAUS`."""

    tp: np.ndarray
    fn: np.ndarray
    fp: np.ndarray
    f1: np.ndarray


def compare_components(predicted: np.ndarray, label: np.ndarray, *, min_pred: int, min_gt: int) -> Frame:
    r"""Overlaps of a frame's components (8-connected).

    Predicted components below `min_pred` pixels vanish. Ground-truth components below `min_gt` pixels become ignored, with
    whatever is predicted on them; what is left of a predicted component stays one. With :math:`P_k` the union of the
    predicted components that touch ground-truth component `k`,
    :math:`sIoU(k) = |k \cap P_k| / (|k \cup P_k| - |P_k \cap other\ components|)`, and
    :math:`PPV(j) = |j \cap all\ ground\ truth| / |j|`.

    Args:
        predicted: bool [H, W]. label: [H, W] of 0 / 1 / 255; ignored pixels are predicted nowhere.

    Reference: Chan et al., "SegmentMeIfYouCan", NeurIPS 2021 (data sets and benchmarks), section 3; the benchmark's code.
    """
    found, _ = ndimage.label(predicted & (label != VOID), EIGHT)
    truth, _ = ndimage.label(label == 1, EIGHT)
    found = _without_small(found, min_pred)
    kept = _without_small(truth, min_gt)
    found[(truth > 0) & (kept == 0)] = 0
    table = _overlaps(kept, found)  # [G + 1, P + 1] pixels; row and column 0: in no component
    inside, size = table[1:, 1:], table[:, 1:].sum(axis=0)
    touches = inside > 0
    both = inside.sum(axis=1)
    union = table[1:].sum(axis=1) + touches @ size - both
    elsewhere = touches @ inside.sum(axis=0) - both  # of P_k, on other components
    return Frame(both / (union - elsewhere), inside.sum(axis=0) / size)


def count_components(siou: np.ndarray, ppv: np.ndarray) -> Counts:
    """A component counts as found where its sIoU reaches tau, and as a false alarm where its PPV does not."""
    tp = (siou[None] >= TAUS[:, None]).sum(axis=1)
    fn = siou.size - tp
    fp = (ppv[None] < TAUS[:, None]).sum(axis=1)
    total = 2 * tp + fn + fp
    return Counts(tp, fn, fp, np.divide(2 * tp, total, out=np.zeros(len(TAUS)), where=total > 0))


def _without_small(components: np.ndarray, least: int) -> np.ndarray:
    """Numbers the components of at least `least` pixels anew, in the same order."""
    sizes = np.bincount(components.reshape(-1))
    keep = sizes >= least
    keep[0] = False
    numbers = np.where(keep, np.cumsum(keep), 0)
    return numbers[components]


def _overlaps(truth: np.ndarray, found: np.ndarray) -> np.ndarray:
    """[G + 1, P + 1] pixels that the components share. A predicted component of which nothing is left has no column."""
    rows, columns = int(truth.max(initial=0)) + 1, int(found.max(initial=0)) + 1
    table = np.bincount((truth.astype(np.int64) * columns + found).reshape(-1), minlength=rows * columns)
    table = table.reshape(rows, columns)
    alive = table.sum(axis=0) > 0
    alive[0] = True
    return table[:, alive]


# ---- the threshold of best F1 ----------------------------------------------------------------------------------------


def ordered(scores: np.ndarray) -> np.ndarray:
    """float16 scores as uint16 whose order is theirs; -0.0 is 0.0."""
    bits = (scores + np.float16(0)).view(np.uint16)
    return np.where(bits & 0x8000, ~bits, bits | 0x8000)


def score_of(order: int) -> float:
    """The inverse of `ordered`."""
    bits = order ^ 0x8000 if order & 0x8000 else ~order & 0xFFFF
    return float(np.array(bits, np.uint16).view(np.float16))


def histograms(scores: np.ndarray, label: np.ndarray) -> np.ndarray:
    """int64 [2, 65536]: how often each score occurs on known and on anomalous pixels."""
    order = ordered(scores)
    return np.stack([np.bincount(order[label == value], minlength=65536) for value in (0, 1)])


def best_threshold(counts: np.ndarray) -> tuple[float, float]:
    """The largest score at which `>=` gives the best pixel F1, and the next smaller score, at which `>` gives the same.

    Args:
        counts: [2, 65536], see `histograms`.

    Returns:
        (NaN, NaN) without anomalous pixels; the second is -inf where no smaller score occurs.
    """
    present = np.flatnonzero(counts.sum(axis=0))[::-1]
    if not counts[1].any():
        return float("nan"), float("nan")
    known, anomalous = counts[:, present].cumsum(axis=1)
    f1 = 2 * anomalous / (anomalous + known + anomalous[-1])
    best = int(f1.argmax())
    below = score_of(int(present[best + 1])) if best + 1 < len(present) else -float("inf")
    return score_of(int(present[best])), below
