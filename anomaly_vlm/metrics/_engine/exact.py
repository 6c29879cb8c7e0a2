"""Exact mode: scores of every category, and their values over several processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from anomaly_vlm.metrics._engine import legacy
from anomaly_vlm.metrics._engine.counts import Above, Points, count_above, join
from anomaly_vlm.metrics._engine.curves import Polygon, exact_polygons
from anomaly_vlm.metrics._engine.exact_state import ExactStore, View
from anomaly_vlm.metrics._engine.group import Alone
from anomaly_vlm.metrics._engine.inputs import Image
from anomaly_vlm.metrics._engine.ledger import Category, part_of, pick
from anomaly_vlm.metrics._engine.options import PixelOptions, Values, recall_name, with_means
from anomaly_vlm.metrics._engine.pixel import PixelEngine
from anomaly_vlm.metrics._engine.values import NAN, aupro, scalars


class ExactEngine(PixelEngine):
    """Exact state; see `ExactStore` for its memory."""

    def __init__(self, options: PixelOptions) -> None:
        super().__init__(options)
        self.stores: dict[Category, ExactStore] = {}

    def can_subtract(self, image: Image) -> bool:
        return image.kind == "float32"

    def absorb(self, image: Image) -> None:
        self._store(image.category).add(image)

    def absorb_other(self, other: ExactEngine, repeats: set[int]) -> None:
        for name, store in other.stores.items():
            self._store(name).merge(store, repeats)

    def _store(self, category: Category) -> ExactStore:
        if category not in self.stores:
            self.stores[category] = ExactStore(self.options)
        return self.stores[category]

    def views(self, group: Alone, more: Sequence[Category] = ()) -> dict[Category, View]:
        """What this process knows of every category; the same categories in the same order on every process."""
        repeats = self.ledger.repeats(group)
        out = {}
        for name in self.ledger.order(group, more) or [None]:
            store = self.stores.get(name) or ExactStore(self.options)
            newest = self.newest_of(name, repeats)
            out[name] = (store if newest is None else store.with_image(newest)).view(repeats)
        return out

    def results(self, group: Alone, more: Sequence[Category] = ()) -> Values:
        counted, pooled = count_categories(self.views(group, more), self.options, group)
        named = {name: values(one, self.options) for name, one in counted.items()}
        return with_means(named, values(pooled, self.options))

    def polygons(self, group: Alone, category: Category) -> dict[str, Polygon]:
        counted, pooled = count_categories(self.views(group), self.options, group)
        one = pick(counted, pooled, category)
        regions = one.facts.regions
        return exact_polygons(one.points, one.above, one.facts.normals, int(regions[0]) if regions.size else None)

    def to(self, device: torch.device) -> None:
        if self.moves:
            self.options = replace(self.options, device=None if device.type == "cpu" else device)
            for store in self.stores.values():
                store.to(self.options)

    def pack_states(self) -> dict[str, np.ndarray]:
        return {
            f"store{i}.{key}": array
            for i, name in enumerate(self.ledger.categories)
            if name in self.stores
            for key, array in self.stores[name].pack().items()
        }

    def unpack_states(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.stores = {}
        for i, name in enumerate(self.ledger.categories):
            if parts := part_of(arrays, f"store{i}"):
                self._store(name).unpack(parts)


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
    thresholds: legacy.Thresholds
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
            legacy.area(points, none, plain, counted.false_plain, *args, strict=True) if defined else NAN
        )
        out["pixel_aupro_legacy_filled"] = (
            legacy.area(points, counted.hits_filled, filled, counted.false_filled, *args, strict=False)
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
    at = legacy.thresholds(facts.low, facts.high) if options.legacy else legacy.NO_THRESHOLDS
    plain, filled = (np.zeros(part.size, np.int64) for part in at)
    size = points.values.size
    above = Above(np.zeros(size, np.int64), np.zeros(size, np.int64))
    return Counted(facts, points, above, at, plain, filled, np.zeros(at.filled.size))


def _sum(above: Above, group: Alone) -> Above:
    return Above(group.sum(above.greater), group.sum(above.at_least))


def _hole_hits(view: View, at: np.ndarray) -> np.ndarray:
    order = np.argsort(view.hole_scores)
    return legacy.weight_above(view.hole_scores[order], view.hole_weights[order], at)
