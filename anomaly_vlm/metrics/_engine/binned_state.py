"""Binned mode: counts of one category in bins of order-preserving keys, in bounded memory.

The key of a score is its float32 bit pattern made order-preserving (`order_keys`). A bin holds all keys with the same
`key >> shift`. `shift` is the least at which at most `limit` bins are occupied. So the state depends on the multiset of
scores alone: not on their order, on batches or on the number of processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from anomaly_vlm.metrics._engine.counts import cache_slices, distinct, join_positions, order_keys, split_positions

KEY_BITS = 32


class Bins(NamedTuple):
    """Occupied bins in ascending order; K bins of 32 B each with one connectivity, C connectivities.

    Attributes:
        low: `[K]` uint32, the smallest key seen in each bin.
        high: `[K]` uint32, the largest key; if it equals `low`, the scores of the bin are tied.
        normals: `[K]` int64 normal items.
        anomalous: `[K]` int64 anomalous items.
        weights: `[C, K]` float64 sums of `1 / |region|` over the anomalous items.
    """

    low: np.ndarray
    high: np.ndarray
    normals: np.ndarray
    anomalous: np.ndarray
    weights: np.ndarray

    @staticmethod
    def empty(connectivities: int) -> Bins:
        """Returns no bins at all, for this number of connectivities."""
        keys, counts = np.empty(0, np.uint32), np.empty(0, np.int64)
        return Bins(keys, keys, counts, counts, np.empty((connectivities, 0)))


def bins_of_normals(scores: np.ndarray, shift: int, limit: int, connectivities: int) -> tuple[Bins, int]:
    """Puts normal scores into bins.

    Args:
        scores: `[M]` float32 without -0.0; overwritten.
        shift: Least shift to use.
        limit: Most bins.
        connectivities: Number of connectivities.

    Returns:
        The bins, and the least shift of at least `shift` at which they are at most `limit`.
    """
    if not scores.size:
        return Bins.empty(connectivities), shift
    scores.sort()
    keys = scores.view(np.uint32)
    for where in cache_slices(keys.size):
        keys[where] = order_keys(scores[where])
    starts = _bin_starts(keys, shift, limit)
    if starts is None:
        shift = least_shift(keys[1:] ^ keys[:-1], shift, limit)
        starts = _bin_starts(keys, shift, limit)
        assert starts is not None
    counts = np.diff(starts, append=keys.size)
    zero, weights = np.zeros(starts.size, np.int64), np.zeros((connectivities, starts.size))
    return Bins(keys[starts], keys[_bin_ends(starts, keys.size)], counts, zero, weights), shift


def _bin_starts(keys: np.ndarray, shift: int, limit: int) -> np.ndarray | None:
    """Returns the first position of every bin of ascending keys, or None if there are more than `limit` bins."""
    starts = [np.zeros(1, np.int64)]
    count = 1
    for where in cache_slices(keys.size - 1):
        steps = keys[where.start + 1 : where.stop + 1] ^ keys[where]
        starts.append(np.flatnonzero(steps >= np.uint32(1 << shift)) + (where.start + 1))
        count += starts[-1].size
        if count > limit:
            return None
    return np.concatenate(starts)


def _bin_ends(starts: np.ndarray, size: int) -> np.ndarray:
    """Returns the last position of every bin."""
    ends: np.ndarray = np.append(starts[1:], size) - 1
    return ends


def bins_of_anomalous(scores: np.ndarray, weights: np.ndarray, shift: int, limit: int) -> tuple[Bins, int]:
    """Puts anomalous scores into bins.

    Args:
        scores: `[M]` float32; overwritten.
        weights: `[C, M]` float64 weights of their regions.
        shift: Least shift to use.
        limit: Most bins.

    Returns:
        The bins, and the least shift of at least `shift` at which they are at most `limit`.
    """
    grouped = distinct(scores, weights)
    keys, zero = order_keys(grouped.values), np.zeros(grouped.values.size, np.int64)
    bins = Bins(keys, keys, zero, grouped.counts, grouped.weights)
    shift = least_shift(keys[1:] ^ keys[:-1], shift, limit)
    return coarsen(bins, shift), shift


def least_shift(steps: np.ndarray, shift: int, limit: int) -> int:
    """Returns the least shift of at least `shift` at which there are at most `limit` bins.

    Args:
        steps: `[M - 1]` uint32, `key_i xor key_(i+1)` of ascending keys. Two neighbours share a bin exactly if
            `step >> shift` is 0.
        shift: Least shift to use.
        limit: Most bins.
    """

    def fits(candidate: int) -> bool:
        return 1 + int(np.count_nonzero(steps >= np.uint32(1 << candidate))) <= limit

    if fits(shift):
        return shift
    low, high = shift, KEY_BITS - 1  # at shift 31 there are two bins: negative and positive scores
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def coarsen(bins: Bins, shift: int) -> Bins:
    """Joins the bins that share a bin at `shift`."""
    if bins.low.size < 2:
        return bins
    # Bins do not overlap, so two neighbours differ at `shift` exactly if the larger key of the one and the smaller key of
    # the other do.
    steps = bins.low[1:] ^ bins.high[:-1]
    starts = np.concatenate([[0], np.flatnonzero(steps >= np.uint32(1 << shift)) + 1])
    if starts.size == bins.low.size:
        return bins
    return Bins(
        bins.low[starts],
        bins.high[_bin_ends(starts, bins.low.size)],
        np.add.reduceat(bins.normals, starts),
        np.add.reduceat(bins.anomalous, starts),
        np.add.reduceat(bins.weights, starts, axis=1),
    )


def join_bins(several: Sequence[Bins], shift: int, connectivities: int) -> Bins:
    """Joins the bins of several states at one shift.

    Args:
        several: Bins of which none are coarser than `shift`.
        shift: Shift of the result.
        connectivities: Number of connectivities.
    """
    several = [bins for bins in several if bins.low.size]
    if len(several) < 2:
        return coarsen(several[0], shift) if several else Bins.empty(connectivities)
    low = np.concatenate([bins.low for bins in several])
    joined = join_positions(low >> np.uint32(shift))
    joined.sort()
    groups, order = split_positions(joined)
    starts = np.concatenate([[0], np.flatnonzero(groups[1:] != groups[:-1]) + 1])
    high = np.concatenate([bins.high for bins in several])
    return Bins(
        np.minimum.reduceat(low[order], starts),
        np.maximum.reduceat(high[order], starts),
        np.add.reduceat(np.concatenate([bins.normals for bins in several])[order], starts),
        np.add.reduceat(np.concatenate([bins.anomalous for bins in several])[order], starts),
        np.add.reduceat(np.concatenate([bins.weights for bins in several], axis=1)[:, order], starts, axis=1),
    )


class Sketch:
    """The binned state of one category.

    Args:
        limit: Most bins.
        connectivities: Number of connectivities C.

    Attributes:
        shift: How coarse the bins are; 0 while every distinct score has a bin of its own.
        bins: The occupied bins.
        regions: `[C]` int64 number of regions.
    """

    def __init__(self, limit: int, connectivities: int) -> None:
        self.limit = limit
        self.shift = 0
        self.bins = Bins.empty(connectivities)
        self.regions = np.zeros(connectivities, np.int64)

    def add(self, normals: np.ndarray, anomalous: np.ndarray, weights: np.ndarray, regions: np.ndarray) -> None:
        """Adds pixels.

        Args:
            normals: `[M]` float32 scores without -0.0; overwritten.
            anomalous: `[Q]` float32 scores; overwritten.
            weights: `[C, Q]` float64 weights of the anomalous pixels.
            regions: `[C]` int64 number of regions that came with them.
        """
        of_normals, shift = bins_of_normals(normals, self.shift, self.limit, weights.shape[0])
        of_anomalous, self.shift = bins_of_anomalous(anomalous, weights, shift, self.limit)
        self._join([of_normals, of_anomalous])
        self.regions = self.regions + regions

    def merge(self, others: Sequence[Sketch]) -> None:
        """Adds other states."""
        self.shift = max([self.shift, *(other.shift for other in others)])
        self._join([other.bins for other in others])
        self.regions = self.regions + sum(other.regions for other in others)

    def _join(self, more: Sequence[Bins]) -> None:
        """Joins bins at `self.shift`, at which none of them may be coarser, and coarsens until they fit."""
        joined = join_bins([self.bins, *more], self.shift, self.regions.size)
        if joined.low.size > self.limit:
            self.shift = least_shift(joined.low[1:] ^ joined.high[:-1], self.shift, self.limit)
            joined = coarsen(joined, self.shift)
        self.bins = joined

    def copy(self) -> Sketch:
        """Returns a state that can change without changing this one; arrays are shared, as they never change in place."""
        out = Sketch(self.limit, self.regions.size)
        out.shift, out.bins, out.regions = self.shift, self.bins, self.regions
        return out

    def pack(self) -> dict[str, np.ndarray]:
        """Returns the state as arrays by name; keys as int32, because torch hardly supports uint32."""
        bins = {
            key: array.view(np.int32) if array.dtype == np.uint32 else array
            for key, array in self.bins._asdict().items()
        }
        return {**bins, "shift": np.array([self.shift], np.int64), "regions": self.regions}

    def unpack(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Replaces the state by that of `pack`."""
        low, high = (arrays[key].view(np.uint32) for key in ("low", "high"))
        self.bins = Bins(low, high, arrays["normals"], arrays["anomalous"], arrays["weights"])
        self.shift, self.regions = int(arrays["shift"][0]), arrays["regions"]
