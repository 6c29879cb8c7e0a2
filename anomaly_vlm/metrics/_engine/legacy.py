"""The AUPRO of the published zero-shot codes, over 200 thresholds, for comparison with the tables of their papers.

`legacy` (AnomalyCLIP, FAPrompt, APRIL-GAN, FiLo, AnoVL): thresholds `numpy.arange(min, max, (max - min) / 200)`, prediction
`s > t`, points with FPR < 0.3, whose FPR is rescaled to [0, 1], trapezoid area.

`legacy_filled` (WinCLIP, SAA): thresholds `max - i (max - min) / 200`, points with FPR <= 0.3; hits in the holes of a region
count as hits of the region, so the value can exceed 1.

Both values depend on the scale of the scores, so those of two methods can be compared only if their maps are scaled alike.
The thresholds are looked up in the sorted scores, without a loop over them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from anomaly_vlm.metrics._engine.counts import DistinctScores
from anomaly_vlm.metrics._engine.values import NAN

STEPS = 200
LIMIT = 0.3  # largest false-positive rate


class Thresholds(NamedTuple):
    """The thresholds of both variants; empty where the scores are constant or there are none.

    Attributes:
        plain: `[200 or 201]` float32, ascending, of `legacy`.
        filled: `[200]` float32, ascending, of `legacy_filled`.
    """

    plain: np.ndarray
    filled: np.ndarray


NO_THRESHOLDS = Thresholds(np.empty(0, np.float32), np.empty(0, np.float32))


def thresholds(low: float, high: float) -> Thresholds:
    """Returns the thresholds for scores between the float32 values `low` and `high`."""
    smallest, largest = np.float32(low), np.float32(high)
    if not largest > smallest:
        return NO_THRESHOLDS
    with np.errstate(over="ignore"):
        step = (largest - smallest) / np.float32(STEPS)
    if not np.isfinite(step) or step == 0:
        return NO_THRESHOLDS
    filled = largest - np.arange(STEPS, dtype=np.float32) * step
    return Thresholds(round_down(np.arange(smallest, largest, step)), filled[::-1].astype(np.float32))


def round_down(values: np.ndarray) -> np.ndarray:
    """Returns the largest float32 not above each float64 value `[T]`: for float32 scores `s > t` stays the same."""
    near = values.astype(np.float32)
    return np.where(near > values, np.nextafter(near, np.float32(-np.inf)), near)


def weight_above(values: np.ndarray, weights: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Returns the sum of the weights of all scores above each threshold, `[T]`.

    Args:
        values: `[V]` ascending scores.
        weights: `[V]` weight of each.
        limits: `[T]` thresholds.
    """
    remaining = np.concatenate([np.cumsum(weights[::-1])[::-1], [0.0]])
    return remaining[np.searchsorted(values, limits, side="right")]


def legacy_area(
    scores: DistinctScores,
    extra: np.ndarray,
    limits: np.ndarray,
    normals_above: np.ndarray,
    normals: int,
    regions: int,
    *,
    strict: bool,
) -> float:
    """Returns the rescaled trapezoid area under the points of the thresholds.

    Args:
        scores: The distinct anomalous scores; row 0 of their weights is used.
        extra: `[T]` weight of hits that lie in holes, which is added to the overlap.
        limits: `[T]` ascending thresholds.
        normals_above: `[T]` normal pixels above each threshold.
        normals: Number of normal pixels.
        regions: Number of regions.
        strict: Whether a point with a false-positive rate of exactly 0.3 is left out.

    Returns:
        The area; NaN if fewer than two points remain or if all their false-positive rates are equal.
    """
    if regions == 0 or normals == 0 or limits.size == 0:
        return NAN
    overlap = (weight_above(scores.values, scores.weights[0], limits) + extra) / regions
    fpr = normals_above / normals
    kept = fpr < LIMIT if strict else fpr <= LIMIT
    fpr, overlap = fpr[kept], overlap[kept]
    if fpr.size < 2 or fpr.max() == fpr.min():
        return NAN
    scaled = (fpr - fpr.min()) / (fpr.max() - fpr.min())  # descends, as the thresholds ascend
    return float(0.5 * np.dot(scaled[:-1] - scaled[1:], overlap[:-1] + overlap[1:]))
