"""Bounded state of binned mode: counts in bins of order-preserving keys, as fine as the data allows.

The key of a score is its float32 bit pattern made order-preserving (`order_keys`). A bin is all keys with the same
`key >> shift`. `shift` is the least at which at most `limit` bins are occupied, so the state depends on the multiset of
scores alone: not on their order, on batches or on the number of processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from anomaly_vlm.metrics._engine.counts import distinct, order_keys, pack, pieces, unpack

KEY_BITS = 32


class Bins(NamedTuple):
    """Occupied bins in ascending order. 32 B a bin with one connectivity.

    Attributes:
        low, high: [K] uint32, smallest and largest key seen in each; equal: a pure tie.
        normals, anomalous: [K] int64. weights: [C, K] float64, sums of `1 / |region|`.
    """

    low: np.ndarray
    high: np.ndarray
    normals: np.ndarray
    anomalous: np.ndarray
    weights: np.ndarray

    @staticmethod
    def none(connectivities: int) -> Bins:
        keys, counts = np.empty(0, np.uint32), np.empty(0, np.int64)
        return Bins(keys, keys, counts, counts, np.empty((connectivities, 0)))


def bins_of_normals(scores: np.ndarray, shift: int, limit: int, connectivities: int) -> tuple[Bins, int]:
    """Bins of [M] float32 scores (no -0.0), at the least shift >= `shift` at which they fit; sorts `scores` in place."""
    if not scores.size:
        return Bins.none(connectivities), shift
    scores.sort()
    keys = scores.view(np.uint32)
    for part in pieces(keys.size):
        keys[part] = order_keys(scores[part])
    starts = _starts(keys, shift, limit)
    if starts is None:
        shift = least_shift(keys[1:] ^ keys[:-1], shift, limit)
        starts = _starts(keys, shift, limit)
        assert starts is not None
    counts = np.diff(starts, append=keys.size)
    zero, weights = np.zeros(starts.size, np.int64), np.zeros((connectivities, starts.size))
    return Bins(keys[starts], keys[_ends(starts, keys.size)], counts, zero, weights), shift


def _starts(keys: np.ndarray, shift: int, limit: int) -> np.ndarray | None:
    """First position of every bin of ascending keys; None if there are more than `limit`."""
    found = [np.zeros(1, np.int64)]
    count = 1
    for part in pieces(keys.size - 1):
        steps = keys[part.start + 1 : part.stop + 1] ^ keys[part]
        found.append(np.flatnonzero(steps >= np.uint32(1 << shift)) + (part.start + 1))
        count += found[-1].size
        if count > limit:
            return None
    return np.concatenate(found)


def bins_of_anomalous(scores: np.ndarray, weights: np.ndarray, shift: int, limit: int) -> tuple[Bins, int]:
    """Bins of [M] float32 scores with [C, M] weights, at the least shift >= `shift` at which they fit."""
    points = distinct(scores, weights)
    keys, zero = order_keys(points.values), np.zeros(points.values.size, np.int64)
    bins = Bins(keys, keys, zero, points.counts, points.weights)
    shift = least_shift(keys[1:] ^ keys[:-1], shift, limit)
    return coarsen(bins, shift), shift


def least_shift(steps: np.ndarray, shift: int, limit: int) -> int:
    """The least shift >= `shift` with at most `limit` bins; `steps` are `key_i xor key_(i+1)` of ascending keys.

    Two neighbours share a bin exactly where `step >> shift` is 0.
    """

    def fits(candidate: int) -> bool:
        return 1 + int(np.count_nonzero(steps >= np.uint32(1 << candidate))) <= limit

    if fits(shift):
        return shift
    low, high = shift, KEY_BITS - 1  # at 31 there are two bins: negative and positive
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def _ends(starts: np.ndarray, size: int) -> np.ndarray:
    """Last position of every bin."""
    return np.append(starts[1:], size) - 1


def coarsen(bins: Bins, shift: int) -> Bins:
    """Joins the bins that are one at `shift`."""
    if bins.low.size < 2:
        return bins
    # A bin's largest and the next one's smallest key part where any of their keys part, for bins do not overlap.
    steps = bins.low[1:] ^ bins.high[:-1]
    starts = np.concatenate([[0], np.flatnonzero(steps >= np.uint32(1 << shift)) + 1])
    if starts.size == bins.low.size:
        return bins
    return Bins(
        bins.low[starts],
        bins.high[_ends(starts, bins.low.size)],
        np.add.reduceat(bins.normals, starts),
        np.add.reduceat(bins.anomalous, starts),
        np.add.reduceat(bins.weights, starts, axis=1),
    )


def join(parts: Sequence[Bins], shift: int, connectivities: int) -> Bins:
    """The bins of several states at one shift."""
    parts = [part for part in parts if part.low.size]
    if len(parts) < 2:
        return coarsen(parts[0], shift) if parts else Bins.none(connectivities)
    low = np.concatenate([part.low for part in parts])
    packed = pack(low >> np.uint32(shift))
    packed.sort()
    groups, order = unpack(packed)
    starts = np.concatenate([[0], np.flatnonzero(groups[1:] != groups[:-1]) + 1])
    high = np.concatenate([part.high for part in parts])
    return Bins(
        np.minimum.reduceat(low[order], starts),
        np.maximum.reduceat(high[order], starts),
        np.add.reduceat(np.concatenate([part.normals for part in parts])[order], starts),
        np.add.reduceat(np.concatenate([part.anomalous for part in parts])[order], starts),
        np.add.reduceat(np.concatenate([part.weights for part in parts], axis=1)[:, order], starts, axis=1),
    )


class Sketch:
    """The binned state of one category.

    Args:
        limit: most bins. connectivities: number of weight sums.
    """

    def __init__(self, limit: int, connectivities: int) -> None:
        self.limit = limit
        self.shift = 0
        self.bins = Bins.none(connectivities)
        self.regions = np.zeros(connectivities, np.int64)

    def add(self, normals: np.ndarray, anomalous: np.ndarray, weights: np.ndarray, regions: np.ndarray) -> None:
        """Adds pixels.

        Args:
            normals: [M] float32, overwritten; no -0.0. anomalous: [Q] float32. weights: [C, Q].
            regions: [C] number of regions that came with them.
        """
        first, shift = bins_of_normals(normals, self.shift, self.limit, weights.shape[0])
        second, self.shift = bins_of_anomalous(anomalous, weights, shift, self.limit)
        self._join([first, second])
        self.regions = self.regions + regions

    def merge(self, others: Sequence[Sketch]) -> None:
        """Adds other states."""
        self.shift = max([self.shift, *(other.shift for other in others)])
        self._join([other.bins for other in others])
        self.regions = self.regions + sum(other.regions for other in others)

    def _join(self, parts: Sequence[Bins]) -> None:
        """Joins at `self.shift`, at which no part may be coarser, and coarsens until the bins fit."""
        joined = join([self.bins, *parts], self.shift, self.regions.size)
        if joined.low.size > self.limit:
            self.shift = least_shift(joined.low[1:] ^ joined.high[:-1], self.shift, self.limit)
            joined = coarsen(joined, self.shift)
        self.bins = joined

    def copy(self) -> Sketch:
        """A state that can change without changing this one (arrays are never changed in place)."""
        out = Sketch(self.limit, self.regions.size)
        out.shift, out.bins, out.regions = self.shift, self.bins, self.regions
        return out

    def pack(self) -> dict[str, np.ndarray]:
        """The state as arrays."""
        bins = {
            key: array.view(np.int32) if array.dtype == np.uint32 else array
            for key, array in self.bins._asdict().items()
        }
        return {**bins, "shift": np.array([self.shift], np.int64), "regions": self.regions}

    def unpack(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Replaces the state."""
        low, high = (arrays[key].view(np.uint32) for key in ("low", "high"))
        self.bins = Bins(low, high, arrays["normals"], arrays["anomalous"], arrays["weights"])
        self.shift, self.regions = int(arrays["shift"][0]), arrays["regions"]
