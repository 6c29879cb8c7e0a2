"""Exact pixel values of all categories over one or several processes. No normal pixel leaves its process.

Gathered: the distinct anomalous scores with their counts and weights. Every process then counts its own normal pixels at
these scores, and the counts are added.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from anomaly_vlm.metrics import _legacy
from anomaly_vlm.metrics._counts import Above, Points, count_above, join
from anomaly_vlm.metrics._exact import View
from anomaly_vlm.metrics._group import Alone
from anomaly_vlm.metrics._names import Values
from anomaly_vlm.metrics._options import PixelOptions, recall_name
from anomaly_vlm.metrics._values import NAN, aupro, scalars


@dataclass
class Facts:
    """Numbers of one category over all processes."""

    normals: int
    regions: np.ndarray
    low: float
    high: float
    has_void: bool


@dataclass
class Counted:
    """All that the values of one category (or of all pooled) are made of.

    Attributes:
        above: normal pixels above each of `points`.
        false_plain, false_filled: [T] normal pixels above the legacy thresholds of each variant.
        hits_filled: [T] weights of hole pixels above the thresholds.
    """

    facts: Facts
    points: Points
    above: Above
    thresholds: _legacy.Thresholds
    false_plain: np.ndarray
    false_filled: np.ndarray
    hits_filled: np.ndarray


def count_categories(
    views: Mapping[str | None, View], options: PixelOptions, group: Alone
) -> tuple[dict[str | None, Counted], Counted]:
    """Counts of every category and of all pooled; `views` has the same categories in the same order on every process."""
    facts = {name: _facts(view, group) for name, view in views.items()}
    points = {name: join(group.gather_points(view.points), len(options.connectivity)) for name, view in views.items()}
    pooled = _blank(
        _pooled_facts(facts.values(), options), join(list(points.values()), len(options.connectivity)), options
    )
    counted = {}
    for name, view in views.items():
        one = counted[name] = _blank(facts[name], points[name], options)
        alone = len(views) == 1
        goals = [one] if alone else [one, pooled]
        queries = [goals[-1].points.values]
        queries += [at for goal in goals for at in goal.thresholds]
        above = [_sum(part, group) for part in count_above(view.blocks, queries, options.threads)]
        one.above = above[0]
        for goal, (plain, filled) in zip(goals, zip(above[1::2], above[2::2], strict=True), strict=True):
            goal.false_plain += plain.greater
            goal.false_filled += filled.greater
            goal.hits_filled += group.sum(_hole_hits(view, goal.thresholds.filled))
        if not alone:
            at = np.searchsorted(pooled.points.values, one.points.values)
            one.above = Above(above[0].greater[at], above[0].at_least[at])
            np.add(pooled.above.greater, above[0].greater, out=pooled.above.greater)
            np.add(pooled.above.at_least, above[0].at_least, out=pooled.above.at_least)
    return counted, counted[next(iter(views))] if len(views) == 1 else pooled


def values(counted: Counted, options: PixelOptions) -> Values:
    """Values of one category by name."""
    facts, points, above = counted.facts, counted.points, counted.above
    one = scalars(points, above, facts.normals, options.recall)
    out = {
        "pixel_auroc": one.auroc,
        "pixel_ap": one.ap,
        "pixel_f1_max": one.f1_max,
        "pixel_f1_max_threshold": one.f1_max_threshold,
        f"pixel_{recall_name(options.recall)}": one.fpr,
    }
    names = options.aupro_names()
    for row, regions in enumerate(facts.regions if names else ()):
        areas = aupro(points, above, facts.normals, int(regions), row, options.aupro_limits)
        out.update(zip([name for name, of, _ in names if of == row], areas, strict=True))
    if options.legacy:
        regions, defined = int(facts.regions[0]), not facts.has_void
        args = (facts.normals, regions)
        plain, filled = counted.thresholds
        none = np.zeros(plain.size)
        out["pixel_aupro_legacy"] = (
            _legacy.area(points, none, plain, counted.false_plain, *args, strict=True) if defined else NAN
        )
        out["pixel_aupro_legacy_filled"] = (
            _legacy.area(points, counted.hits_filled, filled, counted.false_filled, *args, strict=False)
            if defined
            else NAN
        )
    anomalous = int(points.counts.sum())
    if facts.regions.size:
        out["num_regions"] = float(facts.regions[0])
    out["num_pixels"] = float(facts.normals + anomalous)
    out["num_anomalous_pixels"] = float(anomalous)
    return out


def _facts(view: View, group: Alone) -> Facts:
    parts = group.gather_objects((view.normals, view.regions, view.low, view.high, view.has_void))
    return _add_facts([Facts(*part) for part in parts])


def _add_facts(parts: list[Facts]) -> Facts:
    return Facts(
        sum(part.normals for part in parts),
        np.sum([part.regions for part in parts], axis=0),
        min(part.low for part in parts),
        max(part.high for part in parts),
        any(part.has_void for part in parts),
    )


def _pooled_facts(parts: object, options: PixelOptions) -> Facts:
    nothing = Facts(0, np.zeros(len(options.connectivity), np.int64), np.inf, -np.inf, False)
    return _add_facts([nothing, *parts])  # type: ignore[misc]


def _blank(facts: Facts, points: Points, options: PixelOptions) -> Counted:
    at = _legacy.thresholds(facts.low, facts.high) if options.legacy else _legacy.NO_THRESHOLDS
    plain, filled = (np.zeros(part.size, np.int64) for part in at)
    size = points.values.size
    above = Above(np.zeros(size, np.int64), np.zeros(size, np.int64))
    return Counted(facts, points, above, at, plain, filled, np.zeros(at.filled.size))


def _sum(above: Above, group: Alone) -> Above:
    return Above(group.sum(above.greater), group.sum(above.at_least))


def _hole_hits(view: View, at: np.ndarray) -> np.ndarray:
    order = np.argsort(view.hole_scores)
    return _legacy.weight_above(view.hole_scores[order], view.hole_weights[order], at)
