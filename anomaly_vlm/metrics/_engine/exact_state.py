"""Exact state of one category on one process, and what a computation reads from it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
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
    histogram,
    kept_ranges,
    sorted_blocks,
)
from anomaly_vlm.metrics._engine.counts import Points, Sorted, block_size, distinct, join
from anomaly_vlm.metrics._engine.inputs import Image
from anomaly_vlm.metrics._engine.ledger import part_of
from anomaly_vlm.metrics._engine.options import PixelOptions
from anomaly_vlm.metrics._engine.regions import Split, split


class Row(NamedTuple):
    """One float32 image. `ends`: where its normal, anomalous and hole scores end in the columns."""

    number: int | None
    ends: tuple[int, int, int]
    regions: tuple[int, ...]
    low: float
    high: float
    has_void: bool


@dataclass
class View:
    """What one process knows of one category, repeats left out.

    Attributes:
        points: distinct anomalous scores.
        blocks: makers of sorted blocks of normal scores.
        normals: number of normal pixels.
        regions: [C] number of regions.
        low, high: span of the scores; (inf, -inf) without any.
        has_void: whether any mask held 255.
        hole_scores, hole_weights: [Q], with `legacy` only.
    """

    points: Points
    blocks: list[Callable[[], Sorted]]
    normals: int
    regions: np.ndarray
    low: float
    high: float
    has_void: bool
    hole_scores: np.ndarray
    hole_weights: np.ndarray


class ExactStore:
    """Scores of one category: float32 columns by image, and bit-pattern tables for half-precision maps.

    Memory: 4 B a normal and 12 B an anomalous pixel of float32 maps (8 B more for a second connectivity); 1.5 MB for all
    maps of a half-precision dtype.
    """

    def __init__(self, options: PixelOptions) -> None:
        self.options = options
        self.normals: AnyColumn = DeviceColumn(options.device) if options.device else Column(np.float32)
        self.scores = Column(np.float32)
        self.weights = [Column(np.float64) for _ in options.connectivity]
        self.hole_scores, self.hole_weights = Column(np.float32), Column(np.float64)
        self.rows: list[Row] = []
        self.tables: dict[Kind, HalfTables] = {}
        self.table_regions = np.zeros(len(options.connectivity), np.int64)
        self.table_void = False

    def add(self, image: Image) -> None:
        """Copies one checked image into the state."""
        parts = split(image, self.options)
        if image.kind == "float32":
            self._append(parts)
            ends = (len(self.normals), len(self.scores), len(self.hole_scores))
            self.rows.append(Row(image.index, ends, parts.regions, image.low, image.high, image.has_void))
        else:
            self._count(image, parts)

    def _append(self, parts: Split) -> None:
        for piece in parts.normals:
            self.normals.append(piece)  # type: ignore[arg-type]
        self.scores.append(parts.scores)
        for column, values in zip(self.weights, parts.weights, strict=True):
            column.append(values)
        self.hole_scores.append(parts.hole_scores)
        self.hole_weights.append(parts.hole_weights)

    def _count(self, image: Image, parts: Split) -> None:
        bits, valid = image.scores.reshape(-1), image.counts
        assert valid is not None
        if image.has_void:
            assert image.mask is not None
            valid = valid - histogram(bits[image.mask.reshape(-1) == 255])
        if image.kind not in self.tables:
            self.tables[image.kind] = HalfTables(image.kind, len(self.weights), legacy=self.options.legacy)
        self.tables[image.kind].add(valid, parts.scores, parts.weights, parts.hole_scores, parts.hole_weights)
        self.table_regions += np.array(parts.regions, np.int64)
        self.table_void |= image.has_void

    def with_image(self, image: Image) -> ExactStore:
        """This state and one more half-precision image; this state does not change."""
        both = copy.copy(self)
        both.tables, both.table_regions = copy.deepcopy(self.tables), self.table_regions.copy()
        both.add(image)
        return both

    def view(self, dropped: Collection[int] = ()) -> View:
        """What counts, without the images whose index is in `dropped`."""
        kept, gone = [], []
        start = (0, 0, 0)
        for row in self.rows:
            if row.number in dropped:
                gone.append((start, row.ends))
            else:
                kept.append(row)
            start = row.ends
        normals, scores, holes = (
            kept_ranges(start[i], [(first[i], last[i]) for first, last in gone]) for i in range(3)
        )
        tables = list(self.tables.values())
        found = self.scores.read(scores)
        weights = _stack([column.read(scores) for column in self.weights], found.size)
        points = distinct(found, weights)
        spans = [(row.low, row.high) for row in kept] + [table.span() for table in tables]
        hole_parts = [table.hole_weights() for table in tables]
        return View(
            points=join([points, *(table.points() for table in tables)], len(self.weights)),
            blocks=sorted_blocks(self.normals, normals, block_size(self.options.threads))
            + [table.sorted_normals for table in tables],
            normals=_length(normals) + sum(int(table.normals.sum()) for table in tables),
            regions=sum((np.array(row.regions, np.int64) for row in kept), self.table_regions),
            low=min((span[0] for span in spans), default=np.inf),
            high=max((span[1] for span in spans), default=-np.inf),
            has_void=self.table_void or any(row.has_void for row in kept),
            hole_scores=np.concatenate([self.hole_scores.read(holes), *(part[0] for part in hole_parts)]),
            hole_weights=np.concatenate([self.hole_weights.read(holes), *(part[1] for part in hole_parts)]),
        )

    def merge(self, other: ExactStore, dropped: Collection[int]) -> None:
        """Appends another process's state without the images in `dropped`."""
        starts = [(0, 0, 0), *(row.ends for row in other.rows)]
        for row, (first, last) in zip(other.rows, pairwise(starts), strict=True):
            if row.number in dropped:
                continue
            normals, scores, holes = ([(first[i], last[i])] for i in range(3))
            weights = _stack([column.read(scores) for column in other.weights], _length(scores))
            self._append(
                Split(
                    [other.normals.read(normals)],  # type: ignore[arg-type]
                    other.scores.read(scores),
                    weights,
                    row.regions,
                    other.hole_scores.read(holes),
                    other.hole_weights.read(holes),
                )
            )
            self.rows.append(row._replace(ends=(len(self.normals), len(self.scores), len(self.hole_scores))))
        for kind, table in other.tables.items():
            if kind in self.tables:
                self.tables[kind].merge(table)
            else:
                self.tables[kind] = copy.deepcopy(table)
        self.table_regions += other.table_regions
        self.table_void |= other.table_void

    def pack(self) -> dict[str, np.ndarray]:
        """The state as arrays, for checkpoints."""
        rows = self.rows
        out = {
            "normals": self.normals.all(),
            "scores": self.scores.all(),
            "weights": _stack([column.all() for column in self.weights], len(self.scores)),
            "hole_scores": self.hole_scores.all(),
            "hole_weights": self.hole_weights.all(),
            "row_numbers": np.array([row.number or 0 for row in rows], np.int64),
            "row_flags": np.array([(row.number is not None, row.has_void) for row in rows], bool).reshape(-1, 2),
            "row_ends": np.array([row.ends for row in rows], np.int64).reshape(-1, 3),
            "row_regions": np.array([row.regions for row in rows], np.int64).reshape(len(rows), len(self.weights)),
            "row_spans": np.array([(row.low, row.high) for row in rows], np.float64).reshape(-1, 2),
            "table_regions": self.table_regions,
            "table_void": np.array([self.table_void]),
        }
        for kind, table in self.tables.items():
            out.update({f"{kind}.{name}": array for name, array in table.pack().items()})
        return out

    def unpack(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Fills an empty store."""
        weights = arrays["weights"]
        self._append(
            Split([arrays["normals"]], arrays["scores"], weights, (), arrays["hole_scores"], arrays["hole_weights"])
        )
        columns = [arrays[f"row_{name}"].tolist() for name in ("numbers", "flags", "ends", "regions", "spans")]
        for number, (known, has_void), ends, regions, (low, high) in zip(*columns, strict=True):
            self.rows.append(Row(number if known else None, tuple(ends), tuple(regions), low, high, has_void))
        self.table_regions = arrays["table_regions"].copy()
        self.table_void = bool(arrays["table_void"][0])
        for kind in HALF_KINDS:
            if f"{kind}.normals" in arrays:
                self.tables[kind] = HalfTables(kind, len(self.weights), legacy=self.options.legacy)
                self.tables[kind].unpack(part_of(arrays, kind))

    def to(self, options: PixelOptions) -> None:
        """Moves the normal scores to `options.device`."""
        whole = self.normals.all()
        self.options = options
        self.normals = DeviceColumn(options.device) if options.device else Column(np.float32)
        self.normals.append(whole)


def _length(ranges: list[Range]) -> int:
    return sum(stop - start for start, stop in ranges)


def _stack(rows: list[np.ndarray], length: int) -> np.ndarray:
    return np.stack(rows) if rows else np.empty((0, length))
