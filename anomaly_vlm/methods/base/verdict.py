"""From a prediction to a verdict about one image: OK or not, how it compares with good parts, and where."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from anomaly_vlm.metrics.thresholds import Threshold


@dataclass(frozen=True)
class Region:
    """A connected region of an image whose map values are above the pixel threshold.

    Attributes:
        box: Left, top, right and bottom in pixels of the image, the last two outside it.
        area: Pixels of the image, at least 1.
        peak: Largest map value in it.
    """

    box: tuple[int, int, int, int]
    area: int
    peak: float


@dataclass(frozen=True)
class Verdict:
    """What a threshold says about one image.

    Attributes:
        score: Image score.
        decision: `OK` or `NOT OK`; empty without a threshold.
        percentile: Share in percent of the good parts whose score is not higher; None without a threshold.
        regions: Where the map is above the pixel threshold, the highest first; empty without a threshold.
    """

    score: float
    decision: str = ""
    percentile: float | None = None
    regions: tuple[Region, ...] = ()


def judge(score: float, heat: np.ndarray, size: tuple[int, int], threshold: Threshold | None) -> Verdict:
    """The verdict about an image.

    Args:
        score: Its score.
        heat: Its map `[H, W]`.
        size: Width and height of the image in pixels, which may be another size than the map's.
        threshold: Of the image's category; None where there is none.
    """
    if threshold is None:
        return Verdict(score)
    regions = find_regions(heat, threshold.pixel, size)
    return Verdict(score, threshold.decision(score), threshold.percentile(score), regions)


def find_regions(heat: np.ndarray, threshold: float, size: tuple[int, int]) -> tuple[Region, ...]:
    """Connected regions of a map `[H, W]` above a threshold, for an image of `size` (width, height), the highest first."""
    labels, count = ndimage.label(heat > threshold, structure=np.ones((3, 3), int))
    if not count:
        return ()
    across, down = size[0] / heat.shape[1], size[1] / heat.shape[0]
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    peaks = ndimage.maximum(heat, labels, range(1, count + 1))
    regions = []
    for (rows, columns), area, peak in zip(ndimage.find_objects(labels), areas, peaks, strict=True):
        left, right = int(columns.start * across), max(int(columns.start * across) + 1, round(columns.stop * across))
        top, bottom = int(rows.start * down), max(int(rows.start * down) + 1, round(rows.stop * down))
        regions.append(Region((left, top, right, bottom), max(1, round(float(area) * across * down)), float(peak)))
    return tuple(sorted(regions, key=lambda region: -region.peak))
