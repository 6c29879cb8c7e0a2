"""Binned mode: counts of one category in bins of order-preserving keys, in bounded memory.

The key of a score is its float32 bit pattern made order-preserving (`order_keys`). A bin holds all keys with the same
`key >> shift`. `shift` is the least at which at most `limit` bins are occupied. So the state depends on the multiset of
scores alone: not on their order, on batches or on the number of processes.

Its values come with bounds between which the exact value lies, whatever lies inside the bins.
Inside a bin, ties and order are unknown, unless its smallest and largest key are equal: such a bin is a tie, and exact.
Let `T0, F0` be the anomalous and the normal items above a bin, `T1, F1` those above or in it, `p = T1 - T0`, `n = F1 - F0`:

    AUROC  at best the p items come before the n, at worst after them; the value takes them as tied
    AP     at best all p come first and are tied; at worst all n come first, and then the p one by one, with
           sum_i (T0 + i) / (T0 + i + F1) >= p - F1 ln(1 + p / (T0 + F1)); the value takes an even mixture
    F1     is attained at the bin's smallest score; at best its p items come before its n
    FPR@R  lies between F0 / N and F1 / N in the bin that reaches the recall
    AUPRO  has an overlap between the overlaps at the bin's ends
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from anomaly_vlm.metrics._engine.counts import (
    cache_slices,
    distinct,
    from_order_keys,
    join_positions,
    order_keys,
    split_positions,
)
from anomaly_vlm.metrics._engine.inputs import PixelOptions, Values, recall_name
from anomaly_vlm.metrics._engine.values import NAN, hits_for_recall

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


ROUNDING = 1e-12  # by how much bounds move outward


class Interval(NamedTuple):
    """A value, and bounds between which the exact value lies; NaN where undefined."""

    value: float = NAN
    lower: float = NAN
    upper: float = NAN

    def widened(self) -> Interval:
        """Returns the interval with its bounds moved outward for rounding and clamped to [0, 1]; the value lies between."""
        lower, upper = max(0.0, self.lower - ROUNDING), min(1.0, self.upper + ROUNDING)
        return Interval(min(max(self.value, lower), upper), lower, upper)


class DescendingBins(NamedTuple):
    """The bins in descending order of scores; K bins, counts as float64 (exact below 2^53).

    Attributes:
        p: `[K]` anomalous items in each bin.
        n: `[K]` normal items in each bin.
        tp: `[K]` anomalous items in or above each bin, `T1`.
        fp: `[K]` normal items in or above each bin, `F1`.
        tied: `[K]` bool, whether all scores of the bin are equal.
        low: `[K]` float32, the smallest score of each bin.
        high: `[K]` float32, the largest score of each bin.
    """

    p: np.ndarray
    n: np.ndarray
    tp: np.ndarray
    fp: np.ndarray
    tied: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @staticmethod
    def of(sketch: Sketch) -> DescendingBins:
        """Returns the bins of a sketch."""
        bins = sketch.bins
        p, n = bins.anomalous[::-1], bins.normals[::-1]
        low, high = bins.low[::-1], bins.high[::-1]
        return DescendingBins(
            p=p.astype(np.float64),
            n=n.astype(np.float64),
            tp=np.cumsum(p).astype(np.float64),
            fp=np.cumsum(n).astype(np.float64),
            tied=low == high,
            low=from_order_keys(low),
            high=from_order_keys(high),
        )

    @property
    def tp_before(self) -> np.ndarray:
        """`[K]` anomalous items above each bin, `T0`."""
        before: np.ndarray = self.tp - self.p
        return before

    @property
    def fp_before(self) -> np.ndarray:
        """`[K]` normal items above each bin, `F0`."""
        before: np.ndarray = self.fp - self.n
        return before


def auroc(b: DescendingBins) -> Interval:
    """Returns the AUROC of bins that hold anomalous and normal items."""
    pairs = b.tp[-1] * b.fp[-1]
    middle = 1.0 - float(np.dot(b.p, b.fp_before + b.fp)) / (2.0 * pairs)
    half = float(np.dot(b.p * ~b.tied, b.n)) / (2.0 * pairs)
    return Interval(middle, middle - half, middle + half).widened()


def average_precision(b: DescendingBins) -> Interval:
    """Returns the average precision of bins that hold anomalous and normal items."""
    has_anomalous = b.p > 0
    b = DescendingBins(*(column[has_anomalous] for column in b))
    p, t0, t1, f0, f1 = b.p, b.tp_before, b.tp, b.fp_before, b.fp
    lower = np.where(t0 + f1 > 0, p - f1 * np.log1p(p / np.maximum(t0 + f1, 1.0)), p)
    upper = p * t1 / (t1 + f0)
    a, h = 1.0 + b.n / p, t0 + 0.5
    start = h + f0
    mixed = np.clip(p / a + (h - start / a) / a * np.log1p(a * p / start), lower, upper)
    tied = p * t1 / (t1 + f1)
    total = b.tp[-1]
    value, low, high = (float(np.where(b.tied, tied, terms).sum()) / total for terms in (mixed, lower, upper))
    return Interval(value, low, high).widened()


def f1_max(b: DescendingBins) -> tuple[Interval, Interval]:
    """Returns F1-max and its threshold, of bins that hold anomalous and normal items.

    The threshold is that of the value; its bounds are the smallest and the largest that the exact threshold can be.
    """
    total = b.tp[-1]
    attained = 2.0 * b.tp / (b.tp + b.fp + total)
    possible = np.where(b.tied, attained, 2.0 * b.tp / (b.tp + b.fp_before + total))
    possible[b.p == 0] = -1.0
    best = int(np.argmax(attained))
    lower = float(attained[best])
    # The exact maximum is larger than the attained one, or equal to it and then at no smaller score. Both are rounded alike.
    reach = np.flatnonzero((possible > lower) | ((possible == lower) & (np.arange(possible.size) <= best)))
    threshold = Interval(float(b.low[best]), float(b.low[reach].min()), float(b.high[reach].max()))
    return Interval(lower, lower, float(possible.max())).widened(), threshold


def fpr_at_recall(b: DescendingBins, recall: float) -> Interval:
    """Returns the false-positive rate at a recall in (0, 1], of bins that hold anomalous and normal items."""
    total, normals = b.tp[-1], b.fp[-1]
    i = int(np.searchsorted(b.tp, hits_for_recall(recall, int(total))))
    before, after = float(b.fp_before[i]) / normals, float(b.fp[i]) / normals
    if b.tied[i]:
        return Interval(after, after, after).widened()
    fraction = (recall * total - float(b.tp_before[i])) / float(b.p[i])
    return Interval(before + (after - before) * min(max(fraction, 0.0), 1.0), before, after).widened()


def aupro(b: DescendingBins, weights: np.ndarray, regions: int, limit: float) -> Interval:
    """Returns the AUPRO of bins with at least one region and one normal pixel.

    Args:
        b: The bins.
        weights: `[K]` float64 region weights in ascending order of the bins, as in the sketch.
        regions: Number of regions.
        limit: False-positive rate in (0, 1] up to which the area is taken.
    """
    normals = b.fp[-1]
    after = np.cumsum(weights[::-1]) / regions
    before = np.concatenate([[0.0], after[:-1]])
    width = b.n / normals
    inside = np.clip(limit - b.fp_before / normals, 0.0, width)
    with np.errstate(invalid="ignore", divide="ignore"):
        fraction = np.where(width > 0, inside / width, 0.0)
    value = inside * (before + fraction * (after - before) / 2.0)
    low, high = (np.where(b.tied, value, inside * bound) for bound in (before, after))
    return Interval(*(float(terms.sum()) / limit for terms in (value, low, high))).widened()


def binned_values(sketch: Sketch, options: PixelOptions) -> Values:
    """Returns the values of one category by name, with `/lower` and `/upper`; `shift` and `bins` say how coarse they are."""
    anomalous, normals = int(sketch.bins.anomalous.sum()), int(sketch.bins.normals.sum())
    intervals: dict[str, Interval] = {}
    fpr = f"pixel_{recall_name(options.recall)}"
    names = ["pixel_auroc", "pixel_ap", "pixel_f1_max", "pixel_f1_max_threshold", fpr]
    b = DescendingBins.of(sketch)
    if anomalous == 0 or normals == 0:
        intervals.update({name: Interval() for name in names})
    else:
        of_thresholds = [auroc(b), average_precision(b), *f1_max(b), fpr_at_recall(b, options.recall)]
        intervals.update(zip(names, of_thresholds, strict=True))
    for name, row, limit in options.aupro_names():
        regions = int(sketch.regions[row])
        defined = regions > 0 and normals > 0
        intervals[name] = aupro(b, sketch.bins.weights[row], regions, limit) if defined else Interval()
    counts = {"num_pixels": normals + anomalous, "num_anomalous_pixels": anomalous}
    if sketch.regions.size:
        counts = {"num_regions": int(sketch.regions[0]), **counts}
    intervals.update({name: Interval(count, count, count) for name, count in counts.items()})
    values = {name: float(interval.value) for name, interval in intervals.items()}
    for name, interval in intervals.items():
        values[f"{name}/lower"], values[f"{name}/upper"] = float(interval.lower), float(interval.upper)
    values["shift"], values["bins"] = float(sketch.shift), float(sketch.bins.low.size)
    return values
