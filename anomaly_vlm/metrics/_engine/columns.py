"""Where the scores of many images are kept: columns of float32 scores, and tables of half-precision bit patterns.

Columns are appended to and read back in any range. Tables count the at most 2^16 distinct scores of a half-precision dtype,
so they are exact and of constant size, whatever the number of images.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from threading import local
from typing import Literal

import numpy as np
import torch

from anomaly_vlm.metrics._engine.counts import BlockReader, DistinctScores, SortedBlock, distinct, sorted_block

Range = tuple[int, int]
Kind = Literal["float32", "float16", "bfloat16"]
HALF_KINDS: tuple[Kind, ...] = ("float16", "bfloat16")
NON_FINITE = {"float16": 0x7C00, "bfloat16": 0x7F80}  # all exponent bits set: infinity or NaN
PATTERNS = 1 << 16


class Column:
    """Numbers of one dtype in CPU blocks whose size doubles from `smallest` to `largest`; unused room is never touched.

    Args:
        dtype: Dtype of the numbers.
        arrays: One-dimensional arrays to append at once.
    """

    smallest, largest = 1 << 18, 1 << 22  # elements of a block: 1 MB and 16 MB of float32

    def __init__(self, dtype: type[np.generic], arrays: Iterable[np.ndarray] = ()) -> None:
        self.dtype = np.dtype(dtype)
        self.blocks: list[np.ndarray] = []
        self.starts: list[int] = [0]  # of each block, and the end of the last
        for array in arrays:
            self.append(array)

    def __len__(self) -> int:
        return self.starts[-1]

    def append(self, values: np.ndarray) -> None:
        """Copies `values` `[M]` to the end."""
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
        """Returns a copy of the elements in `ranges` (start, stop), in this order; written into `out` if that is given."""
        if out is None:
            out = np.empty(sum(stop - start for start, stop in ranges), self.dtype)
        written = 0
        for start, stop in ranges:
            for block, (first, last) in zip(self.blocks, pairwise(self.starts), strict=True):
                low, high = max(start, first), min(stop, last)
                if low < high:
                    out[written : written + high - low] = block[low - first : high - first]
                    written += high - low
        return out

    def all(self) -> np.ndarray:
        """Returns a copy of everything."""
        return self.read([(0, len(self))])

    def __getstate__(self) -> dict[str, object]:
        return {"dtype": self.dtype.type, "values": self.all()}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__init__(state["dtype"], [state["values"]])  # type: ignore[misc]


class DeviceColumn:
    """Float32 numbers on an accelerator, in one tensor an image.

    Args:
        device: The accelerator.
        tensors: One-dimensional tensors to append at once.
    """

    def __init__(self, device: torch.device, tensors: Iterable[torch.Tensor] = ()) -> None:
        self.device = device
        self.tensors: list[torch.Tensor] = []
        self.starts = [0]
        for tensor in tensors:
            self.append(tensor)

    def __len__(self) -> int:
        return self.starts[-1]

    def append(self, values: torch.Tensor | np.ndarray) -> None:
        """Appends `values` `[M]`; a tensor is taken over as it is, a NumPy array is copied to the device."""
        tensor = torch.from_numpy(values.copy()).to(self.device) if isinstance(values, np.ndarray) else values
        if tensor.numel():
            self.tensors.append(tensor)
            self.starts.append(self.starts[-1] + tensor.numel())

    def read(self, ranges: Sequence[Range]) -> torch.Tensor:
        """Returns a copy of the elements in `ranges` (start, stop), in this order."""
        out = []
        for start, stop in ranges:
            for tensor, (first, last) in zip(self.tensors, pairwise(self.starts), strict=True):
                if max(start, first) < min(stop, last):
                    out.append(tensor[max(start - first, 0) : min(stop, last) - first])
        return torch.cat(out) if out else torch.empty(0, device=self.device)

    def all(self) -> np.ndarray:
        """Returns a copy of everything on the CPU."""
        array: np.ndarray = self.read([(0, len(self))]).cpu().numpy()
        return array


AnyColumn = Column | DeviceColumn


def remaining_ranges(length: int, dropped: Sequence[Range]) -> list[Range]:
    """Returns [0, length) without the `dropped` ranges."""
    remaining, end = [], 0
    for start, stop in sorted(dropped):
        if start > end:
            remaining.append((end, start))
        end = max(end, stop)
    if end < length:
        remaining.append((end, length))
    return remaining


def block_readers(column: AnyColumn, ranges: Sequence[Range], block: int) -> list[BlockReader]:
    """Returns readers of sorted blocks that together hold the elements of a column in `ranges`.

    The blocks are of about equal size. Each thread copies its blocks into one array of its own, so a block is valid only
    until the same thread reads the next one.

    Args:
        column: The column.
        ranges: Ranges (start, stop) of the column.
        block: Most elements in a block.
    """
    total = sum(stop - start for start, stop in ranges)
    count = -(-total // block)
    scratch = local()

    def read(first: int, last: int) -> SortedBlock:
        some = _slice_ranges(ranges, first, last)
        if isinstance(column, DeviceColumn):
            return sorted_block(column.read(some))
        if not hasattr(scratch, "memory"):
            scratch.memory = np.empty(-(-total // count), column.dtype)
        return sorted_block(column.read(some, scratch.memory[: last - first]))

    return [partial(read, total * i // count, total * (i + 1) // count) for i in range(count)]


def _slice_ranges(ranges: Sequence[Range], first: int, last: int) -> list[Range]:
    """Returns what lies between the positions `first` and `last` of the concatenated ranges."""
    out, position = [], 0
    for start, stop in ranges:
        low, high = max(first, position), min(last, position + stop - start)
        if low < high:
            out.append((start + low - position, start + high - position))
        position += stop - start
    return out


def pattern_values(kind: Kind) -> np.ndarray:
    """Returns the float32 value of every bit pattern, `[65536]`; NaN and infinities are among them."""
    return half_values(np.arange(PATTERNS, dtype=np.uint16), kind)


def half_values(bits: np.ndarray, kind: Kind) -> np.ndarray:
    """Returns the float32 values of uint16 bit patterns of a half-precision dtype, in the same shape."""
    if kind == "float16":
        return bits.view(np.float16).astype(np.float32)
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def histogram(bits: np.ndarray) -> np.ndarray:
    """Returns how often each uint16 bit pattern occurs, `[65536]` int64; torch counts three times as fast as NumPy."""
    patterns = torch.from_numpy(bits.reshape(-1).view(np.int16)).to(torch.int32).bitwise_and_(PATTERNS - 1)
    counts: np.ndarray = torch.bincount(patterns, minlength=PATTERNS).numpy()
    return counts


def non_finite(counts: np.ndarray, kind: Kind) -> float | None:
    """Returns a non-finite value with a count above 0 in a histogram `[65536]`, or None if there is none."""
    for first in (NON_FINITE[kind], NON_FINITE[kind] | 0x8000):
        occurring = np.flatnonzero(counts[first : (first | 0x7FFF) + 1])
        if occurring.size:
            return float(pattern_values(kind)[first + int(occurring[0])])
    return None


class HalfTables:
    """Counts and weights of the scores of one half-precision dtype, in arrays that are indexed by the bit pattern.

    Args:
        kind: float16 or bfloat16.
        connectivities: Number of connectivities C.
        legacy: Whether to keep the weights of hole pixels too.

    Attributes:
        normals: `[65536]` int64, how many normal items have each score.
        anomalous: `[65536]` int64, how many anomalous items have each score.
        weights: `[C, 65536]` float64, the sums of `1 / |region|` over the anomalous items.
        holes: `[65536]` float64, the sums of the weights of hole pixels (see `regions`); None without `legacy`.
    """

    def __init__(self, kind: Kind, connectivities: int, *, legacy: bool) -> None:
        self.kind = kind
        self.normals = np.zeros(PATTERNS, np.int64)
        self.anomalous = np.zeros(PATTERNS, np.int64)
        self.weights = np.zeros((connectivities, PATTERNS))
        self.holes = np.zeros(PATTERNS) if legacy else None

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
            valid: `[65536]` int64 counts of all pixels that are not void.
            bits: `[M]` uint16 patterns of the anomalous pixels.
            weights: `[C, M]` their weights.
            hole_bits: `[Q]` uint16 patterns of the pixels in holes.
            hole_weights: `[Q]` their weights.
        """
        self.normals += valid
        if bits.size:
            np.add.at(self.anomalous, bits, 1)
            np.subtract.at(self.normals, bits, 1)
            for row, values in zip(self.weights, weights, strict=True):
                np.add.at(row, bits, values)
        if self.holes is not None and hole_bits.size:
            self.holes += np.bincount(hole_bits, weights=hole_weights, minlength=PATTERNS)

    def merge(self, other: HalfTables) -> None:
        """Adds another state of the same kind."""
        self.normals += other.normals
        self.anomalous += other.anomalous
        self.weights += other.weights
        if self.holes is not None and other.holes is not None:
            self.holes += other.holes

    def pack(self) -> dict[str, np.ndarray]:
        """Returns the tables as arrays by name."""
        out = {"normals": self.normals, "anomalous": self.anomalous, "weights": self.weights}
        return out if self.holes is None else {**out, "holes": self.holes}

    def unpack(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Replaces the tables by copies of the arrays of `pack`."""
        self.normals, self.anomalous = arrays["normals"].copy(), arrays["anomalous"].copy()
        self.weights = arrays["weights"].copy()
        self.holes = arrays["holes"].copy() if "holes" in arrays else None

    def distinct_scores(self) -> DistinctScores:
        """Returns the distinct anomalous scores; -0.0 joins +0.0."""
        used = np.flatnonzero(self.anomalous)
        return distinct(pattern_values(self.kind)[used], self.weights[:, used], self.anomalous[used])

    def sorted_normals(self) -> SortedBlock:
        """Returns the normal scores as one block whose values stand for several items each."""
        used = np.flatnonzero(self.normals)
        values = pattern_values(self.kind)[used]
        order = np.argsort(values, kind="stable")
        return SortedBlock(values[order], np.concatenate([[0], np.cumsum(self.normals[used][order])]))

    def hole_weights(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the distinct scores `[Q]` of hole pixels and the sums of their weights `[Q]`."""
        if self.holes is None:
            return np.empty(0, np.float32), np.empty(0)
        used = np.flatnonzero(self.holes)
        return pattern_values(self.kind)[used], self.holes[used]

    def span(self) -> tuple[float, float]:
        """Returns the smallest and the largest score; (inf, -inf) if there is none."""
        values = pattern_values(self.kind)[np.flatnonzero(self.normals + self.anomalous)]
        return (float(values.min()), float(values.max())) if values.size else (np.inf, -np.inf)
