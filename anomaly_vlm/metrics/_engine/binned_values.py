"""Values of binned states, each with bounds between which the exact value lies, whatever lies inside the bins.

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

from typing import NamedTuple

import numpy as np

from anomaly_vlm.metrics._engine.binned_state import Sketch
from anomaly_vlm.metrics._engine.counts import from_order_keys
from anomaly_vlm.metrics._engine.options import PixelOptions, Values, recall_name
from anomaly_vlm.metrics._engine.values import NAN, hits_for_recall

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
