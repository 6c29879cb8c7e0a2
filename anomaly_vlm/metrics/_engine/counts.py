"""Counting: the distinct anomalous scores, and how many normal scores lie above each of them.

Every value of the package changes only at scores of anomalous items, of which there are few. So the normal scores are
never sorted with indices: they are sorted plainly, block by block, and searched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import torch

PIECE = 1 << 14  # items that numpy works on at once where whole arrays would not fit a cache
BLOCK = 8 << 20  # normal scores a block: smaller ones sort no faster and are searched longer


def block_size(workers: int) -> int:
    """Scores a block: the blocks that `workers` threads sort at a time take at most 64 MB."""
    return min(BLOCK, 2 * BLOCK // workers)


class Points(NamedTuple):
    """Distinct scores of anomalous items.

    Attributes:
        values: [V] float32, ascending; no -0.0.
        counts: [V] int64, anomalous items at each.
        weights: [C, V] float64, their sum of `1 / |region|` for each connectivity; C = 0 without regions.
    """

    values: np.ndarray
    counts: np.ndarray
    weights: np.ndarray

    @staticmethod
    def none(connectivities: int) -> Points:
        return Points(np.empty(0, np.float32), np.empty(0, np.int64), np.empty((connectivities, 0), np.float64))


class Sorted(NamedTuple):
    """A block of normal scores: ascending `values`, and how many lie before each (`None`: each counts once)."""

    values: np.ndarray | torch.Tensor
    before: np.ndarray | None = None  # [len + 1] int64


class Above(NamedTuple):
    """Normal items at each of [V] queries: `greater` of score `> v`, `at_least` of score `>= v`; int64."""

    greater: np.ndarray
    at_least: np.ndarray


def order_keys(values: np.ndarray) -> np.ndarray:
    """uint32 keys of float32 values without -0.0: the same order as the values."""
    keys = (values.view(np.int32) >> 31).view(np.uint32)  # all ones where negative
    keys |= np.uint32(0x80000000)
    keys ^= values.view(np.uint32)
    return keys


def from_order_keys(keys: np.ndarray) -> np.ndarray:
    """Inverse of `order_keys`."""
    flipped = keys >> np.uint32(31)
    flipped -= np.uint32(1)
    flipped |= np.uint32(0x80000000)
    flipped ^= keys
    return flipped.view(np.float32)


def pack(keys: np.ndarray) -> np.ndarray:
    """[M] uint64 of key and position, so that NumPy's vectorised sort takes the place of an index sort."""
    packed = np.empty(keys.size, np.uint64)
    for part in pieces(keys.size):
        np.left_shift(keys[part], np.uint64(32), out=packed[part])
        packed[part] |= np.arange(part.start, part.stop, dtype=np.uint64)
    return packed


def unpack(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keys and positions; overwrites `packed`."""
    keys = np.empty(packed.size, np.uint32)
    np.right_shift(packed, np.uint64(32), out=keys, casting="unsafe")
    packed &= np.uint64(0xFFFFFFFF)
    return keys, packed.view(np.int64)


def pieces(size: int, piece: int = PIECE) -> Iterator[slice]:
    """[0, size) in slices that fit a cache: fresh memory above some 100 kB costs page faults."""
    for start in range(0, size, piece):
        yield slice(start, min(start + piece, size))


def distinct(values: np.ndarray, weights: np.ndarray, counts: np.ndarray | None = None) -> Points:
    """Groups anomalous items by score. O(M log M).

    Args:
        values: [M] float32, overwritten (-0.0 becomes +0.0). weights: [C, M]. counts: [M], default 1 each.
    """
    if not values.size:
        return Points.none(weights.shape[0])
    values += np.float32(0.0)
    packed = pack(order_keys(values))
    packed.sort()
    keys, order = unpack(packed)
    new = keys[1:] != keys[:-1]
    if new.all():  # no ties: the usual case of continuous scores
        grouped = np.broadcast_to(np.int64(1), keys.shape) if counts is None else counts[order]
        sums = np.empty(weights.shape)
        for row, out in zip(weights, sums, strict=True):
            np.take(row, order, out=out, mode="clip")  # positions are valid; "raise" would copy
        return Points(from_order_keys(keys), grouped, sums)
    starts = np.concatenate([[0], np.flatnonzero(new) + 1])
    grouped = np.diff(starts, append=keys.size) if counts is None else np.add.reduceat(counts[order], starts)
    sums = np.empty((weights.shape[0], starts.size))
    for row, out in zip(weights, sums, strict=True):
        np.add.reduceat(row[order], starts, out=out)
    return Points(from_order_keys(keys[starts]), grouped.astype(np.int64, copy=False), sums)


def join(parts: Sequence[Points], connectivities: int) -> Points:
    """The points of several stores, categories or ranks as one."""
    parts = [part for part in parts if part.values.size]
    if len(parts) < 2:
        return parts[0] if parts else Points.none(connectivities)
    return distinct(
        np.concatenate([part.values for part in parts]),
        np.concatenate([part.weights for part in parts], axis=1),
        np.concatenate([part.counts for part in parts]),
    )


def count_above(blocks: Iterable[Callable[[], Sorted]], queries: Sequence[np.ndarray], workers: int = 1) -> list[Above]:
    """Counts normal scores at ascending float32 queries. O(n log n) for the sorts, O(V log n) a block to search.

    Args:
        blocks: each makes one sorted block; called once, in `workers` threads.
        queries: several ascending arrays, answered in the same pass.
        workers: threads. Counts of blocks add, so the result does not depend on it.
    """
    totals = [Above(np.zeros(query.size, np.int64), np.zeros(query.size, np.int64)) for query in queries]
    lock = Lock()

    def one(make: Callable[[], Sorted]) -> None:
        block = make()
        for query, total in zip(queries, totals, strict=True):
            add_counts(block, query, total, lock)

    blocks = list(blocks)
    if workers > 1 and len(blocks) > 1:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(one, blocks))
    else:
        for make in blocks:
            one(make)
    return totals


def add_counts(block: Sorted, query: np.ndarray, total: Above, lock: AbstractContextManager[Any]) -> None:
    """Adds the counts of one sorted block to `total`, piece by piece of the queries.

    A piece is searched only in the part of the block that it spans, which then lies in a cache.
    """
    size = block.values.shape[0]
    for part in pieces(query.size) if size else ():
        asked = query[part]
        if isinstance(block.values, torch.Tensor):
            left, right = _search_on_device(block.values, asked)
        else:
            left, right = _search(block.values, asked)
        if block.before is not None:
            left, right, size = block.before[left], block.before[right], block.before[-1]
        with lock:
            total.greater[part] += size - right
            total.at_least[part] += size - left


def _search(values: np.ndarray, query: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions left and right of ascending queries in ascending values."""
    start, stop = np.searchsorted(values, query[:1])[0], np.searchsorted(values, query[-1:], side="right")[0]
    inside = values[start:stop]
    right = np.searchsorted(inside, query, side="right")
    left = right.copy()  # equal unless the query itself occurs, which is rare in continuous scores
    if inside.size:
        tied = np.flatnonzero(
            inside[right - 1] == query
        )  # a query before all values meets the last one, which is not it
        if tied.size:
            left[tied] = np.searchsorted(inside, query[tied], side="left")
    left += start
    right += start
    return left, right


def _search_on_device(values: torch.Tensor, query: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    on_device = torch.from_numpy(query).to(values.device)
    left, right = (torch.searchsorted(values, on_device, right=right).cpu().numpy() for right in (False, True))
    return left, right


def sorted_copy(scores: Any) -> Sorted:
    """A sorted block; a NumPy array is sorted in place, so give a copy."""
    if isinstance(scores, torch.Tensor):
        return Sorted(torch.sort(scores).values)
    scores.sort()
    return Sorted(scores)
