"""Exact mode: the scores of one category on one process, and what the computation of values reads from them."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

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
from anomaly_vlm.metrics._engine.counts import BlockReader, DistinctScores, block_size, distinct, join_distinct
from anomaly_vlm.metrics._engine.inputs import CheckedImage
from anomaly_vlm.metrics._engine.ledger import select_prefix
from anomaly_vlm.metrics._engine.options import PixelOptions
from anomaly_vlm.metrics._engine.regions import SplitImage, split_image

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
