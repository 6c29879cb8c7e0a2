"""Append-only columns of numbers: many images' scores in a few large blocks, read back in any range."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from threading import local
from typing import Literal

import numpy as np
import torch

from anomaly_vlm.metrics._engine.counts import Points, Sorted, distinct, sorted_copy

Range = tuple[int, int]


class Column:
    """Numbers of one dtype in CPU blocks that double from 1 MB to 16 MB; unused room is never touched."""

    smallest, largest = 1 << 18, 1 << 22  # elements

    def __init__(self, dtype: type[np.generic], parts: Iterable[np.ndarray] = ()) -> None:
        self.dtype = np.dtype(dtype)
        self.blocks: list[np.ndarray] = []
        self.starts: list[int] = [0]  # of each block, and the end of the last
        for part in parts:
            self.append(part)

    def __len__(self) -> int:
        return self.starts[-1]

    def append(self, values: np.ndarray) -> None:
        """Copies [M] `values` to the end."""
        done = 0
        while done < values.shape[0]:
            used = self.starts[-1] - self.starts[-2] if self.blocks else 0
            if not self.blocks or used == self.blocks[-1].shape[0]:
                size = self.smallest if not self.blocks else min(2 * self.blocks[-1].shape[0], self.largest)
                self.blocks.append(np.empty(size, self.dtype))
                self.starts.append(self.starts[-1])
                used = 0
            take = min(self.blocks[-1].shape[0] - used, values.shape[0] - done)
            self.blocks[-1][used : used + take] = values[done : done + take]
            self.starts[-1] += take
            done += take

    def read(self, ranges: Sequence[Range], out: np.ndarray | None = None) -> np.ndarray:
        """A copy of the elements in `ranges` (start, stop), in this order; into `out` if given."""
        if out is None:
            out = np.empty(sum(stop - start for start, stop in ranges), self.dtype)
        at = 0
        for start, stop in ranges:
            for block, (first, last) in zip(self.blocks, pairwise(self.starts), strict=True):
                low, high = max(start, first), min(stop, last)
                if low < high:
                    out[at : at + high - low] = block[low - first : high - first]
                    at += high - low
        return out

    def all(self) -> np.ndarray:
        """A copy of everything."""
        return self.read([(0, len(self))])

    def __getstate__(self) -> dict[str, object]:
        return {"dtype": self.dtype.type, "values": self.all()}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__init__(state["dtype"], [state["values"]])  # type: ignore[misc]


class DeviceColumn:
    """float32 numbers on an accelerator, one tensor an image."""

    def __init__(self, device: torch.device, parts: Iterable[torch.Tensor] = ()) -> None:
        self.device = device
        self.parts: list[torch.Tensor] = []
        self.starts = [0]
        for part in parts:
            self.append(part)

    def __len__(self) -> int:
        return self.starts[-1]

    def append(self, values: torch.Tensor | np.ndarray) -> None:
        """Takes [M] `values` over; NumPy arrays are copied to the device."""
        tensor = torch.from_numpy(values.copy()).to(self.device) if isinstance(values, np.ndarray) else values
        if tensor.numel():
            self.parts.append(tensor)
            self.starts.append(self.starts[-1] + tensor.numel())

    def read(self, ranges: Sequence[Range]) -> torch.Tensor:
        """A copy of the elements in `ranges`, in this order."""
        out = []
        for start, stop in ranges:
            for part, (first, last) in zip(self.parts, pairwise(self.starts), strict=True):
                if max(start, first) < min(stop, last):
                    out.append(part[max(start - first, 0) : min(stop, last) - first])
        return torch.cat(out) if out else torch.empty(0, device=self.device)

    def all(self) -> np.ndarray:
        """A copy of everything on the CPU."""
        return self.read([(0, len(self))]).cpu().numpy()

    def to(self, device: torch.device) -> DeviceColumn:
        return DeviceColumn(device, [part.to(device) for part in self.parts])


AnyColumn = Column | DeviceColumn


def kept_ranges(length: int, dropped: Sequence[Range]) -> list[Range]:
    """[0, length) without the `dropped` ranges."""
    kept, at = [], 0
    for start, stop in sorted(dropped):
        if start > at:
            kept.append((at, start))
        at = max(at, stop)
    if at < length:
        kept.append((at, length))
    return kept


def sorted_blocks(column: AnyColumn, kept: Sequence[Range], block: int) -> list[Callable[[], Sorted]]:
    """Makers of sorted copies of about equal size, at most `block` elements each.

    Every thread copies into one piece of memory of its own: a block is valid until the next is made.
    """
    total = sum(stop - start for start, stop in kept)
    count = -(-total // block)
    scratch = local()

    def make(first: int, last: int) -> Sorted:
        ranges = _slice_ranges(kept, first, last)
        if isinstance(column, DeviceColumn):
            return sorted_copy(column.read(ranges))
        if not hasattr(scratch, "memory"):
            scratch.memory = np.empty(-(-total // count), column.dtype)
        return sorted_copy(column.read(ranges, scratch.memory[: last - first]))

    return [partial(make, total * i // count, total * (i + 1) // count) for i in range(count)]


def _slice_ranges(kept: Sequence[Range], first: int, last: int) -> list[Range]:
    """The part of the concatenated ranges between positions `first` and `last`."""
    out, at = [], 0
    for start, stop in kept:
        low, high = max(first, at), min(last, at + stop - start)
        if low < high:
            out.append((start + low - at, start + high - at))
        at += stop - start
    return out


Kind = Literal["float32", "float16", "bfloat16"]
HALF_KINDS: tuple[Kind, ...] = ("float16", "bfloat16")
NON_FINITE = {"float16": 0x7C00, "bfloat16": 0x7F80}  # all exponent bits set: infinity or NaN
SIZE = 1 << 16


def pattern_values(kind: Kind) -> np.ndarray:
    """float32 value of every bit pattern; NaN and infinities included."""
    return half_values(np.arange(SIZE, dtype=np.uint16), kind)


def half_values(bits: np.ndarray, kind: Kind) -> np.ndarray:
    """float32 values of uint16 bit patterns."""
    if kind == "float16":
        return bits.view(np.float16).astype(np.float32)
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def histogram(bits: np.ndarray) -> np.ndarray:
    """[65536] int64 counts of uint16 bit patterns. torch counts them three times as fast as NumPy."""
    patterns = torch.from_numpy(bits.reshape(-1).view(np.int16)).to(torch.int32).bitwise_and_(SIZE - 1)
    return torch.bincount(patterns, minlength=SIZE).numpy()


def non_finite(counts: np.ndarray, kind: Kind) -> float | None:
    """A non-finite value that `counts` holds, or None."""
    for first in (NON_FINITE[kind], NON_FINITE[kind] | 0x8000):
        found = np.flatnonzero(counts[first : (first | 0x7FFF) + 1])
        if found.size:
            return float(pattern_values(kind)[first + int(found[0])])
    return None


class HalfTables:
    """Three tables of one half-precision dtype: normal items, anomalous items, weights for each connectivity.

    Attributes:
        kind: float16 or bfloat16.
        normals, anomalous: [65536] int64. weights: [C, 65536] float64.
        holes: [65536] float64 hole weights (see `_regions`), kept with `legacy` only, else None.
    """

    def __init__(self, kind: Kind, connectivities: int, *, legacy: bool) -> None:
        self.kind = kind
        self.normals = np.zeros(SIZE, np.int64)
        self.anomalous = np.zeros(SIZE, np.int64)
        self.weights = np.zeros((connectivities, SIZE))
        self.holes = np.zeros(SIZE) if legacy else None

    def add(
        self,
        valid: np.ndarray,
        bits: np.ndarray,
        weights: np.ndarray,
        hole_bits: np.ndarray,
        hole_weights: np.ndarray,
    ) -> None:
        """Adds one image.

        Args:
            valid: [65536] counts of all pixels that are not void. bits: [M] patterns of the anomalous ones. weights: [C, M].
            hole_bits, hole_weights: [Q].
        """
        self.normals += valid
        if bits.size:
            np.add.at(self.anomalous, bits, 1)
            np.subtract.at(self.normals, bits, 1)
            for row, values in zip(self.weights, weights, strict=True):
                np.add.at(row, bits, values)
        if self.holes is not None and hole_bits.size:
            self.holes += np.bincount(hole_bits, weights=hole_weights, minlength=SIZE)

    def merge(self, other: HalfTables) -> None:
        """Adds another state of the same kind."""
        self.normals += other.normals
        self.anomalous += other.anomalous
        self.weights += other.weights
        if self.holes is not None and other.holes is not None:
            self.holes += other.holes

    def pack(self) -> dict[str, np.ndarray]:
        """The tables as arrays."""
        out = {"normals": self.normals, "anomalous": self.anomalous, "weights": self.weights}
        return out if self.holes is None else {**out, "holes": self.holes}

    def unpack(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.normals, self.anomalous = arrays["normals"].copy(), arrays["anomalous"].copy()
        self.weights = arrays["weights"].copy()
        self.holes = arrays["holes"].copy() if "holes" in arrays else None

    def points(self) -> Points:
        """The distinct anomalous scores; -0.0 joins +0.0."""
        used = np.flatnonzero(self.anomalous)
        return distinct(pattern_values(self.kind)[used], self.weights[:, used], self.anomalous[used])

    def sorted_normals(self) -> Sorted:
        """The normal scores as a block with counts."""
        used = np.flatnonzero(self.normals)
        values = pattern_values(self.kind)[used]
        order = np.argsort(values, kind="stable")
        return Sorted(values[order], np.concatenate([[0], np.cumsum(self.normals[used][order])]))

    def hole_weights(self) -> tuple[np.ndarray, np.ndarray]:
        """Scores and weights of hole pixels."""
        if self.holes is None:
            return np.empty(0, np.float32), np.empty(0)
        used = np.flatnonzero(self.holes)
        return pattern_values(self.kind)[used], self.holes[used]

    def span(self) -> tuple[float, float]:
        """Smallest and largest score; (inf, -inf) without any."""
        values = pattern_values(self.kind)[np.flatnonzero(self.normals + self.anomalous)]
        return (float(values.min()), float(values.max())) if values.size else (np.inf, -np.inf)
