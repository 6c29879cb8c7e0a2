"""Exact mode: the scores of every category, and their values over one or several processes.

No normal pixel leaves its process. The processes gather the distinct anomalous scores with their counts and weights; then
each counts its own normal pixels above these scores, and the counts are added.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple, Self

import numpy as np
import torch

from anomaly_vlm.metrics._engine.columns import (
    HALF_KINDS,
    AnyColumn,
    Column,
    DeviceColumn,
    HalfTables,
    Kind,
    Range,
    block_readers,
    histogram,
    remaining_ranges,
)
from anomaly_vlm.metrics._engine.counts import (
    BlockReader,
    DistinctScores,
    NormalsAbove,
    block_size,
    count_above,
    distinct,
    join_distinct,
)
from anomaly_vlm.metrics._engine.curves import Polygon, exact_polygons
from anomaly_vlm.metrics._engine.group import Group
from anomaly_vlm.metrics._engine.inputs import CheckedImage, PixelOptions, Values, recall_name, with_means
from anomaly_vlm.metrics._engine.ledger import Category, select_category, select_prefix
from anomaly_vlm.metrics._engine.pixel import PixelEngine
from anomaly_vlm.metrics._engine.regions import SplitImage, split_image
from anomaly_vlm.metrics._engine.values import (
    NAN,
    NO_THRESHOLDS,
    Thresholds,
    aupro,
    legacy_area,
    threshold_values,
    thresholds,
    weight_above,
)

Ends = tuple[int, int, int]


class StoredImage(NamedTuple):
    """One float32 image of a store.

    Attributes:
        number: Its number in the data set, or None.
        ends: Where its normal, anomalous and hole scores end in the columns.
        regions: Number of regions for each connectivity.
        low: Smallest score.
        high: Largest score.
        has_void: Whether its mask held 255.
    """

    number: int | None
    ends: Ends
    regions: tuple[int, ...]
    low: float
    high: float
    has_void: bool


@dataclass
class StoreView:
    """What one process has of one category, without images that count elsewhere; C connectivities, Q hole pixels.

    Attributes:
        scores: The distinct anomalous scores.
        blocks: Readers of sorted blocks of normal scores.
        normals: Number of normal pixels.
        regions: `[C]` int64 number of regions.
        low: Smallest score; inf if there is none.
        high: Largest score; -inf if there is none.
        has_void: Whether any mask held 255.
        hole_scores: `[Q]` float32 scores of the pixels in holes; empty without `legacy`.
        hole_weights: `[Q]` float64 weights of the pixels in holes.
    """

    scores: DistinctScores
    blocks: list[BlockReader]
    normals: int
    regions: np.ndarray
    low: float
    high: float
    has_void: bool
    hole_scores: np.ndarray
    hole_weights: np.ndarray


class ExactStore:
    """The scores of one category: columns of float32 scores, image after image, and tables for half-precision maps.

    Memory: 4 B a normal and 12 B an anomalous pixel of float32 maps (8 B more for a second connectivity), and 1.5 MB for all
    maps of a half-precision dtype together.

    Args:
        options: Options of the pixel metrics.
    """

    def __init__(self, options: PixelOptions) -> None:
        self.options = options
        self.normals: AnyColumn = DeviceColumn(options.device) if options.device else Column(np.float32)
        self.scores = Column(np.float32)
        self.weights = [Column(np.float64) for _ in options.connectivity]
        self.hole_scores, self.hole_weights = Column(np.float32), Column(np.float64)
        self.images: list[StoredImage] = []
        self.tables: dict[Kind, HalfTables] = {}
        self.table_regions = np.zeros(len(options.connectivity), np.int64)
        self.table_void = False

    @property
    def ends(self) -> Ends:
        """Where the next image starts in the columns of normal, anomalous and hole scores."""
        return len(self.normals), len(self.scores), len(self.hole_scores)

    def add(self, image: CheckedImage) -> None:
        """Copies a checked image into the state."""
        pixels = split_image(image, self.options)
        if image.kind == "float32":
            self._append(pixels)
            self.images.append(
                StoredImage(image.index, self.ends, pixels.regions, image.low, image.high, image.has_void)
            )
        else:
            self._count(image, pixels)

    def _append(self, pixels: SplitImage) -> None:
        """Appends the pixels of a float32 image to the columns."""
        for normals in pixels.normals:
            self.normals.append(normals)  # type: ignore[arg-type]  # tensors come to device columns only
        self.scores.append(pixels.scores)
        for column, values in zip(self.weights, pixels.weights, strict=True):
            column.append(values)
        self.hole_scores.append(pixels.hole_scores)
        self.hole_weights.append(pixels.hole_weights)

    def _count(self, image: CheckedImage, pixels: SplitImage) -> None:
        """Counts the pixels of a half-precision image in the table of its dtype."""
        bits, valid = image.scores.reshape(-1), image.counts
        assert valid is not None
        if image.has_void:
            assert image.mask is not None
            valid = valid - histogram(bits[image.mask.reshape(-1) == 255])
        if image.kind not in self.tables:
            self.tables[image.kind] = HalfTables(image.kind, len(self.weights), legacy=self.options.legacy)
        self.tables[image.kind].add(valid, pixels.scores, pixels.weights, pixels.hole_scores, pixels.hole_weights)
        self.table_regions += np.array(pixels.regions, np.int64)
        self.table_void |= image.has_void

    def with_image(self, image: CheckedImage) -> ExactStore:
        """Returns this state with one more half-precision image; this state does not change."""
        both = copy.copy(self)
        both.tables, both.table_regions = copy.deepcopy(self.tables), self.table_regions.copy()
        both.add(image)
        return both

    def view(self, dropped: Collection[int] = ()) -> StoreView:
        """Returns what counts.

        Args:
            dropped: Indices of images that are left out.
        """
        kept, gone = [], []
        start = (0, 0, 0)
        for image in self.images:
            if image.number in dropped:
                gone.append((start, image.ends))
            else:
                kept.append(image)
            start = image.ends
        normals, scores, holes = (
            remaining_ranges(start[i], [(first[i], last[i]) for first, last in gone]) for i in range(3)
        )
        tables = list(self.tables.values())
        values = self.scores.read(scores)
        weights = _stack([column.read(scores) for column in self.weights], values.size)
        from_columns = distinct(values, weights)
        spans = [(image.low, image.high) for image in kept] + [table.span() for table in tables]
        table_holes = [table.hole_weights() for table in tables]
        return StoreView(
            scores=join_distinct([from_columns, *(table.distinct_scores() for table in tables)], len(self.weights)),
            blocks=block_readers(self.normals, normals, block_size(self.options.threads))
            + [table.sorted_normals for table in tables],
            normals=_length(normals) + sum(int(table.normals.sum()) for table in tables),
            regions=sum((np.array(image.regions, np.int64) for image in kept), self.table_regions),
            low=min((span[0] for span in spans), default=np.inf),
            high=max((span[1] for span in spans), default=-np.inf),
            has_void=self.table_void or any(image.has_void for image in kept),
            hole_scores=np.concatenate([self.hole_scores.read(holes), *(scores for scores, _ in table_holes)]),
            hole_weights=np.concatenate([self.hole_weights.read(holes), *(weights for _, weights in table_holes)]),
        )

    def merge(self, other: ExactStore, dropped: Collection[int]) -> None:
        """Appends another process's state.

        Args:
            other: The state of the same category.
            dropped: Indices of its images that are left out.
        """
        starts = [(0, 0, 0), *(image.ends for image in other.images)]
        for image, (first, last) in zip(other.images, pairwise(starts), strict=True):
            if image.number in dropped:
                continue
            normals, scores, holes = ([(first[i], last[i])] for i in range(3))
            self._append(
                SplitImage(
                    normals=[other.normals.read(normals)],  # type: ignore[arg-type]  # one kind of column in both
                    scores=other.scores.read(scores),
                    weights=_stack([column.read(scores) for column in other.weights], _length(scores)),
                    regions=image.regions,
                    hole_scores=other.hole_scores.read(holes),
                    hole_weights=other.hole_weights.read(holes),
                )
            )
            self.images.append(image._replace(ends=self.ends))
        for kind, table in other.tables.items():
            if kind in self.tables:
                self.tables[kind].merge(table)
            else:
                self.tables[kind] = copy.deepcopy(table)
        self.table_regions += other.table_regions
        self.table_void |= other.table_void

    def pack(self) -> dict[str, np.ndarray]:
        """Returns the state as arrays by name, for checkpoints."""
        images = self.images
        flags = [(image.number is not None, image.has_void) for image in images]
        regions = np.array([image.regions for image in images], np.int64)
        out = {
            "normals": self.normals.all(),
            "scores": self.scores.all(),
            "weights": _stack([column.all() for column in self.weights], len(self.scores)),
            "hole_scores": self.hole_scores.all(),
            "hole_weights": self.hole_weights.all(),
            "row_numbers": np.array([image.number or 0 for image in images], np.int64),
            "row_flags": np.array(flags, bool).reshape(-1, 2),
            "row_ends": np.array([image.ends for image in images], np.int64).reshape(-1, 3),
            "row_regions": regions.reshape(len(images), len(self.weights)),
            "row_spans": np.array([(image.low, image.high) for image in images], np.float64).reshape(-1, 2),
            "table_regions": self.table_regions,
            "table_void": np.array([self.table_void]),
        }
        for kind, table in self.tables.items():
            out.update({f"{kind}.{name}": array for name, array in table.pack().items()})
        return out

    def unpack(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Fills an empty store with the arrays of `pack`."""
        self._append(
            SplitImage(
                normals=[arrays["normals"]],
                scores=arrays["scores"],
                weights=arrays["weights"],
                regions=(),
                hole_scores=arrays["hole_scores"],
                hole_weights=arrays["hole_weights"],
            )
        )
        columns = [arrays[f"row_{name}"].tolist() for name in ("numbers", "flags", "ends", "regions", "spans")]
        for number, (has_number, has_void), ends, regions, (low, high) in zip(*columns, strict=True):
            self.images.append(
                StoredImage(number if has_number else None, tuple(ends), tuple(regions), low, high, has_void)
            )
        self.table_regions = arrays["table_regions"].copy()
        self.table_void = bool(arrays["table_void"][0])
        for kind in HALF_KINDS:
            if f"{kind}.normals" in arrays:
                self.tables[kind] = HalfTables(kind, len(self.weights), legacy=self.options.legacy)
                self.tables[kind].unpack(select_prefix(arrays, kind))

    def to(self, options: PixelOptions) -> None:
        """Moves the normal scores to the device of `options`, which replace the store's options."""
        whole = self.normals.all()
        self.options = options
        self.normals = DeviceColumn(options.device) if options.device else Column(np.float32)
        self.normals.append(whole)


def _length(ranges: list[Range]) -> int:
    return sum(stop - start for start, stop in ranges)


def _stack(rows: list[np.ndarray], length: int) -> np.ndarray:
    """Stacks rows `[M]` to `[C, M]`, also if there is no row."""
    return np.stack(rows) if rows else np.empty((0, length))


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
        return _polygons(select_category(counts, pooled, category))

    def all_polygons(self, group: Group) -> Iterator[tuple[Category, dict[str, Polygon]]]:
        """Yields ROC, PR and PRO of every category, and of all images for None, from one count."""
        counts, pooled = count_categories(self.views(group), self.options, group)
        for name, one in {**counts, None: pooled}.items():
            yield name, _polygons(one)

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


def _polygons(counts: CategoryCounts) -> dict[str, Polygon]:
    """Returns ROC, PR and PRO of one category, or of all pooled."""
    regions = counts.totals.regions
    return exact_polygons(counts.scores, counts.above, counts.totals.normals, int(regions[0]) if regions.size else None)


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
