"""From a prediction to a verdict about one image: OK or not, how it compares with good parts, and where."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from anomaly_vlm.errors import UserError
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
    from scipy import ndimage  # read only where there is a threshold, as it takes its time

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


def known_category(known: Collection[str], asked: str | None) -> str:
    """Which of the categories that a method knows is meant by a word, or by none.

    Args:
        known: Categories that it has references or thresholds of; empty where it takes any.
        asked: The user's word; None where there was none.

    Raises:
        UserError: It knows others, or several and none was said.
    """
    if not known:
        return asked or "object"
    if asked is None and len(known) == 1:
        return next(iter(known))
    same = [name for name in known if asked is not None and _plain(name) == _plain(asked)]
    if asked is not None and (asked in known or len(same) == 1):
        return asked if asked in known else same[0]
    words = ", ".join(f'"category={name}"' for name in sorted(known))
    found = "no category was given" if asked is None else f"category '{asked}' is not among them"
    raise UserError(f"the checkpoint knows {len(known)} categories and {found}: add one of {words}")


def _plain(name: str) -> str:
    """A category's name as it is compared: without case, `_` like a space."""
    return name.casefold().replace("_", " ").strip()
