"""The 200-step AUPRO of the published zero-shot codes, for comparison with their tables. No loop over thresholds.

`legacy` (AnomalyCLIP, FAPrompt, APRIL-GAN, FiLo, AnoVL): thresholds `numpy.arange(min, max, (max - min) / 200)`, strict
`s > t`, the points with FPR < 0.3, their FPR rescaled to [0, 1], trapezoid area. `legacy_filled` (WinCLIP, SAA): thresholds
`max - i (max - min) / 200`, FPR <= 0.3, and hits in a region's holes count too, so that it can exceed 1.
Both depend on the scale of the scores: values of two methods compare only if their maps are scaled alike.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from anomaly_vlm.metrics._engine.counts import Points
from anomaly_vlm.metrics._engine.values import NAN

STEPS = 200
LIMIT = 0.3


class Thresholds(NamedTuple):
    """float32 thresholds of both variants, ascending; empty where the scores are constant or none were seen."""

    plain: np.ndarray
    filled: np.ndarray


NO_THRESHOLDS = Thresholds(np.empty(0, np.float32), np.empty(0, np.float32))


def thresholds(low: float, high: float) -> Thresholds:
    """Thresholds for scores in [low, high] (float32 values)."""
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
    """float64 to the largest float32 not above it: `s > t` decides the same for float32 `s`."""
    near = values.astype(np.float32)
    return np.where(near > values, np.nextafter(near, np.float32(-np.inf)), near)


def weight_above(points_values: np.ndarray, weights: np.ndarray, at: np.ndarray) -> np.ndarray:
    """[T] sum of the weights of scores `> t`; `points_values` ascending."""
    rest = np.concatenate([np.cumsum(weights[::-1])[::-1], [0.0]])
    return rest[np.searchsorted(points_values, at, side="right")]


def area(
    points: Points, extra: np.ndarray, at: np.ndarray, false: np.ndarray, normals: int, regions: int, *, strict: bool
) -> float:
    """The rescaled trapezoid area.

    Args:
        points: anomalous scores; row 0 of their weights is used.
        extra: [T] overlap that comes on top (hits in holes). at: [T] thresholds.
        false: [T] normal pixels above each threshold.
        strict: keep FPR < 0.3 instead of <= 0.3.
    """
    if regions == 0 or normals == 0 or at.size == 0:
        return NAN
    overlap = (weight_above(points.values, points.weights[0], at) + extra) / regions
    fpr = false / normals
    keep = fpr < LIMIT if strict else fpr <= LIMIT
    fpr, overlap = fpr[keep], overlap[keep]
    if fpr.size < 2 or fpr.max() == fpr.min():
        return NAN
    scaled = (fpr - fpr.min()) / (fpr.max() - fpr.min())  # falls with the ascending threshold
    return float(0.5 * np.dot(scaled[:-1] - scaled[1:], overlap[:-1] + overlap[1:]))
