"""Counting: the distinct scores of anomalous items, and how many normal items score above each of them.

Every metric value changes only at scores of anomalous items, and anomalous items are few. So the normal scores need no
index sort: they are sorted plainly, block by block, and the anomalous scores are searched in each block. Counts of blocks
add up, so blocks may be sorted by several threads and may lie on several processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from threading import Lock
from typing import NamedTuple

import numpy as np
import torch

SLICE_ITEMS = 1 << 14  # items that NumPy works on at once where whole arrays would not fit into a processor cache
BLOCK = 8 << 20  # normal scores in a block: smaller blocks sort no faster and are searched more often


def block_size(workers: int) -> int:
    """Returns how many scores a block has, so that the blocks that `workers` threads sort at a time take at most 64 MB."""
    return min(BLOCK, 2 * BLOCK // workers)


class DistinctScores(NamedTuple):
    """The distinct scores of anomalous items; V scores, C connectivities.

    Attributes:
        values: `[V]` float32, ascending, without -0.0.
        counts: `[V]` int64, the number of anomalous items with each score.
        weights: `[C, V]` float64, the sum of `1 / |region|` over these items for each connectivity; C is 0 where there are
            no regions (image scores).
    """

    values: np.ndarray
    counts: np.ndarray
    weights: np.ndarray

    @staticmethod
    def empty(connectivities: int) -> DistinctScores:
        """Returns no scores at all, for this number of connectivities."""
        return DistinctScores(np.empty(0, np.float32), np.empty(0, np.int64), np.empty((connectivities, 0), np.float64))


class SortedBlock(NamedTuple):
    """A block of normal scores.

    Attributes:
        values: `[M]` float32, ascending; a tensor where states live on an accelerator.
        before: `[M + 1]` int64, how many items lie before each value where a value stands for several items; None where
            each value stands for one item.
    """

    values: np.ndarray | torch.Tensor
    before: np.ndarray | None = None


BlockReader = Callable[[], SortedBlock]
"""Reads a block of normal scores and sorts it; called when the block is counted, so that few blocks exist at a time."""


class NormalsAbove(NamedTuple):
    """How many normal items score above each of V query scores.

    Attributes:
        greater: `[V]` int64, normal items with a score `> v`.
        at_least: `[V]` int64, normal items with a score `>= v`.
    """

    greater: np.ndarray
    at_least: np.ndarray

    @staticmethod
    def zeros(size: int) -> NormalsAbove:
        """Returns counts of zero for `size` queries."""
        return NormalsAbove(np.zeros(size, np.int64), np.zeros(size, np.int64))


def order_keys(values: np.ndarray) -> np.ndarray:
    """Returns uint32 keys `[M]` of float32 values `[M]` without -0.0, in the same order as the values.

    The bit pattern of a negative value is flipped whole, that of another value gets its sign bit set.
    """
    keys = (values.view(np.int32) >> 31).view(np.uint32)  # all bits set where the value is negative
    keys |= np.uint32(0x80000000)
    keys ^= values.view(np.uint32)
    return keys


def from_order_keys(keys: np.ndarray) -> np.ndarray:
    """Returns the float32 values `[M]` of `order_keys`."""
    flipped = keys >> np.uint32(31)
    flipped -= np.uint32(1)
    flipped |= np.uint32(0x80000000)
    flipped ^= keys
    return flipped.view(np.float32)


def join_positions(keys: np.ndarray) -> np.ndarray:
    """Returns uint64 `[M]` that hold a key in the upper and its position in the lower 32 bits.

    Sorting these with NumPy's vectorised sort gives what an index sort gives, in a fraction of the time.
    """
    joined = np.empty(keys.size, np.uint64)
    for where in cache_slices(keys.size):
        np.left_shift(keys[where], np.uint64(32), out=joined[where])
        joined[where] |= np.arange(where.start, where.stop, dtype=np.uint64)
    return joined


def split_positions(joined: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns keys and positions `[M]` of `join_positions`; overwrites `joined`."""
    keys = np.empty(joined.size, np.uint32)
    np.right_shift(joined, np.uint64(32), out=keys, casting="unsafe")
    joined &= np.uint64(0xFFFFFFFF)
    return keys, joined.view(np.int64)


def cache_slices(size: int) -> Iterator[slice]:
    """Yields [0, size) in slices that fit a processor cache: fresh memory above some 100 kB costs page faults."""
    for start in range(0, size, SLICE_ITEMS):
        yield slice(start, min(start + SLICE_ITEMS, size))


def distinct(values: np.ndarray, weights: np.ndarray, counts: np.ndarray | None = None) -> DistinctScores:
    """Groups anomalous items by their score, in O(M log M).

    Args:
        values: `[M]` float32 scores; overwritten, as -0.0 becomes +0.0.
        weights: `[C, M]` float64 weight of each item for each connectivity.
        counts: `[M]` int64 number of items that each entry stands for; None stands for one each.
    """
    if not values.size:
        return DistinctScores.empty(weights.shape[0])
    values += np.float32(0.0)
    joined = join_positions(order_keys(values))
    joined.sort()
    keys, order = split_positions(joined)
    differs = keys[1:] != keys[:-1]
    if differs.all():  # no ties: the usual case of continuous scores
        grouped = np.broadcast_to(np.int64(1), keys.shape) if counts is None else counts[order]
        sums = np.empty(weights.shape)
        for row, out in zip(weights, sums, strict=True):
            np.take(row, order, out=out, mode="clip")  # all positions are valid, and mode "raise" would copy
        return DistinctScores(from_order_keys(keys), grouped, sums)
    starts = np.concatenate([[0], np.flatnonzero(differs) + 1])
    grouped = np.diff(starts, append=keys.size) if counts is None else np.add.reduceat(counts[order], starts)
    sums = np.empty((weights.shape[0], starts.size))
    for row, out in zip(weights, sums, strict=True):
        np.add.reduceat(row[order], starts, out=out)
    return DistinctScores(from_order_keys(keys[starts]), grouped.astype(np.int64, copy=False), sums)


def join_distinct(several: Sequence[DistinctScores], connectivities: int) -> DistinctScores:
    """Joins the distinct scores of several stores, categories or processes.

    Args:
        several: The scores to join, in the order in which their weights are added.
        connectivities: Number of connectivities, for the case that there are no scores.
    """
    several = [scores for scores in several if scores.values.size]
    if len(several) < 2:
        return several[0] if several else DistinctScores.empty(connectivities)
    return distinct(
        np.concatenate([scores.values for scores in several]),
        np.concatenate([scores.weights for scores in several], axis=1),
        np.concatenate([scores.counts for scores in several]),
    )


def count_above(blocks: Iterable[BlockReader], queries: Sequence[np.ndarray], workers: int = 1) -> list[NormalsAbove]:
    """Counts the normal scores above query scores; O(n log n) to sort, and O(V log n) to search each block.

    Args:
        blocks: Readers of the blocks; each is called once, in one of the threads.
        queries: Several ascending float32 arrays `[V]`, all answered in the same pass over the blocks.
        workers: Number of threads. The result does not depend on it.

    Returns:
        The counts for each array of queries.
    """
    totals = [NormalsAbove.zeros(query.size) for query in queries]
    lock = Lock()

    def count_block(read: BlockReader) -> None:
        block = read()
        for query, total in zip(queries, totals, strict=True):
            add_counts(block, query, total, lock)

    readers = list(blocks)
    if workers > 1 and len(readers) > 1:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(count_block, readers))
    else:
        for read in readers:
            count_block(read)
    return totals


def add_counts(
    block: SortedBlock, query: np.ndarray, total: NormalsAbove, lock: AbstractContextManager[bool | None]
) -> None:
    """Adds the counts of one sorted block to `total`.

    The queries are taken in slices. Each slice is searched only in the part of the block that it spans, which then lies in
    a processor cache.

    Args:
        block: Sorted normal scores.
        query: `[V]` ascending float32 scores.
        total: Counts for `query`, changed in place.
        lock: Held while `total` changes.
    """
    size = block.values.shape[0]
    for where in cache_slices(query.size) if size else ():
        asked = query[where]
        if isinstance(block.values, torch.Tensor):
            left, right = _search_on_device(block.values, asked)
        else:
            left, right = _search(block.values, asked)
        if block.before is not None:
            left, right, size = block.before[left], block.before[right], block.before[-1]
        with lock:
            total.greater[where] += size - right
            total.at_least[where] += size - left


def _search(values: np.ndarray, query: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the positions `[V]` left and right of ascending queries in ascending values."""
    start, stop = np.searchsorted(values, query[:1])[0], np.searchsorted(values, query[-1:], side="right")[0]
    inside = values[start:stop]
    right = np.searchsorted(inside, query, side="right")
    left = right.copy()  # the same unless the query itself occurs, which is rare for continuous scores
    if inside.size:
        # A query below all values has right = 0 and is compared with the last value, which it cannot equal.
        tied = np.flatnonzero(inside[right - 1] == query)
        if tied.size:
            left[tied] = np.searchsorted(inside, query[tied], side="left")
    left += start
    right += start
    return left, right


def _search_on_device(values: torch.Tensor, query: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Does what `_search` does, for values on an accelerator."""
    on_device = torch.from_numpy(query).to(values.device)
    left, right = (torch.searchsorted(values, on_device, right=right).cpu().numpy() for right in (False, True))
    return left, right


def sorted_block(scores: np.ndarray | torch.Tensor) -> SortedBlock:
    """Returns `scores` `[M]` as a sorted block; a NumPy array is sorted in place, so give a copy."""
    if isinstance(scores, torch.Tensor):
        return SortedBlock(torch.sort(scores).values)
    scores.sort()
    return SortedBlock(scores)
