"""Counting: the distinct anomalous scores, and how many normal scores lie above each of them.

Every value of the package changes only at scores of anomalous items, of which there are few. So the normal scores are
never sorted with indices: they are sorted plainly, block by block, and searched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch

BLOCK = 8 << 20  # normal scores a block: smaller ones sort no faster and are searched longer


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
    bits = values.view(np.uint32)
    return bits ^ ((values.view(np.int32) >> 31).view(np.uint32) | np.uint32(0x80000000))


def from_order_keys(keys: np.ndarray) -> np.ndarray:
    """Inverse of `order_keys`."""
    flipped = np.where(keys & np.uint32(0x80000000), np.uint32(0x80000000), np.uint32(0xFFFFFFFF))
    return (keys ^ flipped).view(np.float32)


def distinct(values: np.ndarray, weights: np.ndarray, counts: np.ndarray | None = None) -> Points:
    """Groups anomalous items by score.

    Key and position travel in one uint64, so that the sort is NumPy's vectorised one and not an index sort. O(M log M).

    Args:
        values: [M] float32. weights: [C, M]. counts: [M], default 1 each.
    """
    if not values.size:
        return Points.none(weights.shape[0])
    packed = order_keys(values + np.float32(0.0)).astype(np.uint64) << np.uint64(32)
    packed |= np.arange(values.size, dtype=np.uint64)
    packed.sort()
    order = (packed & np.uint64(0xFFFFFFFF)).astype(np.intp)
    keys = (packed >> np.uint64(32)).astype(np.uint32)
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    grouped = np.diff(starts, append=keys.size) if counts is None else np.add.reduceat(counts[order], starts)
    sums = np.empty((weights.shape[0], starts.size))
    for row, out in zip(weights, sums, strict=True):
        out[:] = row[order] if starts.size == keys.size else np.add.reduceat(row[order], starts)
    return Points(from_order_keys(keys[starts]), grouped.astype(np.int64), sums)


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

    def one(make: Callable[[], Sorted]) -> list[Above]:
        block = make()
        return [search(block, query) for query in queries]

    totals = [Above(np.zeros(q.size, np.int64), np.zeros(q.size, np.int64)) for q in queries]
    blocks = list(blocks)
    if workers > 1 and len(blocks) > 1:
        with ThreadPoolExecutor(workers) as pool:
            _add(totals, pool.map(one, blocks))
    else:
        _add(totals, map(one, blocks))
    return totals


def _add(totals: list[Above], results: Iterable[list[Above]]) -> None:
    for result in results:
        for total, part in zip(totals, result, strict=True):
            np.add(total.greater, part.greater, out=total.greater)
            np.add(total.at_least, part.at_least, out=total.at_least)


def search(block: Sorted, query: np.ndarray) -> Above:
    """`Above` of one sorted block."""
    if isinstance(block.values, torch.Tensor):
        return _search_on_device(block.values, query)
    values, size = block.values, block.values.shape[0]
    right = np.searchsorted(values, query, side="right")
    left = right.copy()  # equal unless the query itself occurs, which is rare in continuous scores
    tied = np.flatnonzero((right > 0) & (values[np.maximum(right - 1, 0)] == query)) if size else _NONE
    if tied.size:
        left[tied] = np.searchsorted(values, query[tied], side="left")
    if block.before is not None:
        total = block.before[-1]
        return Above(total - block.before[right], total - block.before[left])
    return Above(size - right, size - left)


_NONE = np.empty(0, np.intp)


def _search_on_device(values: torch.Tensor, query: np.ndarray) -> Above:
    on_device = torch.from_numpy(query).to(values.device)
    sides = (torch.searchsorted(values, on_device, right=right) for right in (True, False))
    greater, at_least = ((values.numel() - side).cpu().numpy() for side in sides)
    return Above(greater, at_least)


def sorted_copy(scores: Any) -> Sorted:
    """A sorted block; a NumPy array is sorted in place, so give a copy."""
    if isinstance(scores, torch.Tensor):
        return Sorted(torch.sort(scores).values)
    scores.sort()
    return Sorted(scores)
