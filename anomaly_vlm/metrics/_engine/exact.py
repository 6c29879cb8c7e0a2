"""Exact mode: the scores of every category, and their values over one or several processes.

No normal pixel leaves its process. The processes gather the distinct anomalous scores with their counts and weights; then
each counts its own normal pixels above these scores, and the counts are added.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch

from anomaly_vlm.metrics._engine.counts import DistinctScores, NormalsAbove, count_above, join_distinct
from anomaly_vlm.metrics._engine.curves import Polygon, exact_polygons
from anomaly_vlm.metrics._engine.exact_state import ExactStore, StoreView
from anomaly_vlm.metrics._engine.group import Group
from anomaly_vlm.metrics._engine.inputs import CheckedImage
from anomaly_vlm.metrics._engine.ledger import Category, select_category, select_prefix
from anomaly_vlm.metrics._engine.legacy import NO_THRESHOLDS, Thresholds, legacy_area, thresholds, weight_above
from anomaly_vlm.metrics._engine.options import PixelOptions, Values, recall_name, with_means
from anomaly_vlm.metrics._engine.pixel import PixelEngine
from anomaly_vlm.metrics._engine.values import NAN, aupro, threshold_values


class ExactEngine(PixelEngine):
    """Pixel engine with exact states; see `ExactStore` for their memory."""

    def __init__(self, options: PixelOptions) -> None:
        super().__init__(options)
        self.stores: dict[Category, ExactStore] = {}

    def can_remove(self, image: CheckedImage) -> bool:
        """Returns whether the state can leave the image out later: float32 images lie apart, tables only have sums."""
        return image.kind == "float32"

    def add_image(self, image: CheckedImage) -> None:
        """Copies an image into the state of its category."""
        self._store(image.category).add(image)

    def merge_states(self, other: Self, repeats: set[int]) -> None:
        """Adds another engine's states without the images of index in `repeats`."""
        for name, store in other.stores.items():
            self._store(name).merge(store, repeats)

    def _store(self, category: Category) -> ExactStore:
        if category not in self.stores:
            self.stores[category] = ExactStore(self.options)
        return self.stores[category]

    def views(self, group: Group, more: Sequence[Category] = ()) -> dict[Category, StoreView]:
        """Returns what counts of every category on this process.

        The categories, and their order, are the same on every process.

        Args:
            group: The processes.
            more: Categories to append if no image of them was seen.
        """
        repeats = self.ledger.repeats(group)
        out = {}
        for name in self.ledger.order(group, more) or [None]:
            store = self.stores.get(name) or ExactStore(self.options)
            newest = self.newest_of(name, repeats)
            out[name] = (store if newest is None else store.with_image(newest)).view(repeats)
        return out

    def results(self, group: Group, more: Sequence[Category] = ()) -> Values:
        """Returns all values by name; NaN where undefined."""
        counts, pooled = count_categories(self.views(group, more), self.options, group)
        named = {name: category_values(one, self.options) for name, one in counts.items()}
        return with_means(named, category_values(pooled, self.options))

    def polygons(self, group: Group, category: Category) -> dict[str, Polygon]:
        """Returns ROC, PR and PRO of a category; of all images for None."""
        counts, pooled = count_categories(self.views(group), self.options, group)
        one = select_category(counts, pooled, category)
        regions = one.totals.regions
        return exact_polygons(one.scores, one.above, one.totals.normals, int(regions[0]) if regions.size else None)

    def to(self, device: torch.device) -> None:
        """Moves the normal scores to a device, if they were asked to live on an accelerator."""
        if self.moves:
            self.options = replace(self.options, device=None if device.type == "cpu" else device)
            for store in self.stores.values():
                store.to(self.options)

    def pack_states(self) -> dict[str, np.ndarray]:
        """Returns the states as arrays, named by the number of the category."""
        return {
            f"store{i}.{key}": array
            for i, name in enumerate(self.ledger.categories)
            if name in self.stores
            for key, array in self.stores[name].pack().items()
        }

    def unpack_states(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Replaces the states by those of `pack_states`."""
        self.stores = {}
        for i, name in enumerate(self.ledger.categories):
            if state := select_prefix(arrays, f"store{i}"):
                self._store(name).unpack(state)


@dataclass
class CategoryTotals:
    """Numbers of one category over all processes.

    Attributes:
        normals: Number of normal pixels.
        regions: `[C]` int64 number of regions for each connectivity.
        low: Smallest score; inf if there is none.
        high: Largest score; -inf if there is none.
        has_void: Whether any mask held 255.
    """

    normals: int
    regions: np.ndarray
    low: float
    high: float
    has_void: bool


@dataclass
class CategoryCounts:
    """All that the values of one category, or of all categories pooled, are computed from; T legacy thresholds.

    Attributes:
        totals: Numbers of the category.
        scores: The distinct anomalous scores.
        above: Normal pixels above each of these scores.
        thresholds: The thresholds of the legacy values; empty without `legacy`.
        normals_plain: `[T]` int64 normal pixels above the thresholds of `legacy`.
        normals_filled: `[T]` int64 normal pixels above the thresholds of `legacy_filled`.
        hits_filled: `[T]` float64 weights of the hole pixels above the thresholds of `legacy_filled`.
    """

    totals: CategoryTotals
    scores: DistinctScores
    above: NormalsAbove
    thresholds: Thresholds
    normals_plain: np.ndarray
    normals_filled: np.ndarray
    hits_filled: np.ndarray


def count_categories(
    views: Mapping[Category, StoreView], options: PixelOptions, group: Group
) -> tuple[dict[Category, CategoryCounts], CategoryCounts]:
    """Counts every category, and all categories pooled, in one pass over the normal scores.

    Args:
        views: What each category has on this process; the same categories in the same order on every process.
        options: Options of the pixel metrics.
        group: The processes.

    Returns:
        The counts of each category and the pooled counts, the same on every process.
    """
    connectivities = len(options.connectivity)
    totals = {name: _totals(view, group) for name, view in views.items()}
    scores = {name: join_distinct(group.gather_distinct(view.scores), connectivities) for name, view in views.items()}
    pooled = _without_counts(
        _pool_totals(totals.values(), connectivities), join_distinct(list(scores.values()), connectivities), options
    )
    counts = {}
    for name, view in views.items():
        one = counts[name] = _without_counts(totals[name], scores[name], options)
        goals = [one] if len(views) == 1 else [one, pooled]  # a single category is the pooled one, too
        # The scores of a category are among the pooled scores, so that counts above the latter answer for both.
        queries = [goals[-1].scores.values]
        queries += [limits for goal in goals for limits in goal.thresholds]
        above = [_sum_over_processes(found, group) for found in count_above(view.blocks, queries, options.threads)]
        one.above = above[0]
        for goal, plain, filled in zip(goals, above[1::2], above[2::2], strict=True):
            goal.normals_plain += plain.greater
            goal.normals_filled += filled.greater
            goal.hits_filled += group.sum(_hole_hits(view, goal.thresholds.filled))
        if len(views) > 1:
            where = np.searchsorted(pooled.scores.values, one.scores.values)
            one.above = NormalsAbove(above[0].greater[where], above[0].at_least[where])
            np.add(pooled.above.greater, above[0].greater, out=pooled.above.greater)
            np.add(pooled.above.at_least, above[0].at_least, out=pooled.above.at_least)
    return counts, counts[next(iter(views))] if len(views) == 1 else pooled


def category_values(counts: CategoryCounts, options: PixelOptions) -> Values:
    """Returns the values of one category, or of all pooled, by name."""
    totals, scores, above = counts.totals, counts.scores, counts.above
    one = threshold_values(scores, above, totals.normals, options.recall)
    out = {
        "pixel_auroc": one.auroc,
        "pixel_ap": one.ap,
        "pixel_f1_max": one.f1_max,
        "pixel_f1_max_threshold": one.f1_max_threshold,
        f"pixel_{recall_name(options.recall)}": one.fpr,
    }
    names = options.aupro_names()
    for row, regions in enumerate(totals.regions if names else ()):
        areas = aupro(scores, above, totals.normals, int(regions), row, options.aupro_limits)
        out.update(zip([name for name, name_row, _ in names if name_row == row], areas, strict=True))
    if options.legacy:
        out.update(_legacy_values(counts))
    anomalous = int(scores.counts.sum())
    if totals.regions.size:
        out["num_regions"] = float(totals.regions[0])
    out["num_pixels"] = float(totals.normals + anomalous)
    out["num_anomalous_pixels"] = float(anomalous)
    return out


def _legacy_values(counts: CategoryCounts) -> Values:
    """Returns both legacy values; NaN if there are void pixels, which the published codes do not have."""
    totals = counts.totals
    if totals.has_void:
        return {"pixel_aupro_legacy": NAN, "pixel_aupro_legacy_filled": NAN}
    plain, filled = counts.thresholds
    numbers = (totals.normals, int(totals.regions[0]))
    no_hits = np.zeros(plain.size)
    return {
        "pixel_aupro_legacy": legacy_area(counts.scores, no_hits, plain, counts.normals_plain, *numbers, strict=True),
        "pixel_aupro_legacy_filled": legacy_area(
            counts.scores, counts.hits_filled, filled, counts.normals_filled, *numbers, strict=False
        ),
    }


def _totals(view: StoreView, group: Group) -> CategoryTotals:
    """Returns the numbers of a category over all processes."""
    mine = CategoryTotals(view.normals, view.regions, view.low, view.high, view.has_void)
    return _add_totals(group.gather_objects(mine))


def _add_totals(several: Sequence[CategoryTotals]) -> CategoryTotals:
    return CategoryTotals(
        normals=sum(totals.normals for totals in several),
        regions=np.sum([totals.regions for totals in several], axis=0),
        low=min(totals.low for totals in several),
        high=max(totals.high for totals in several),
        has_void=any(totals.has_void for totals in several),
    )


def _pool_totals(several: Iterable[CategoryTotals], connectivities: int) -> CategoryTotals:
    """Returns the numbers of all categories together, also if there is no category."""
    nothing = CategoryTotals(0, np.zeros(connectivities, np.int64), np.inf, -np.inf, False)
    return _add_totals([nothing, *several])


def _without_counts(totals: CategoryTotals, scores: DistinctScores, options: PixelOptions) -> CategoryCounts:
    """Returns counts of zero, to which the counts of the normal scores are added."""
    limits = thresholds(totals.low, totals.high) if options.legacy else NO_THRESHOLDS
    plain, filled = (np.zeros(variant.size, np.int64) for variant in limits)
    above = NormalsAbove.zeros(scores.values.size)
    return CategoryCounts(totals, scores, above, limits, plain, filled, np.zeros(limits.filled.size))


def _sum_over_processes(above: NormalsAbove, group: Group) -> NormalsAbove:
    return NormalsAbove(group.sum(above.greater), group.sum(above.at_least))


def _hole_hits(view: StoreView, limits: np.ndarray) -> np.ndarray:
    """Returns the weight of this process's hole pixels above each threshold, `[T]`."""
    order = np.argsort(view.hole_scores)
    return weight_above(view.hole_scores[order], view.hole_weights[order], limits)
