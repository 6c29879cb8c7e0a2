"""Values of binned states, each with an interval that contains the exact value whatever lies inside the bins.

In a bin, ties and order are unknown unless its smallest and largest key are equal (a pure tie, exact). With counts before
the bin `T0, F0` (anomalous, normal, in descending order of scores), after it `T1, F1`, and `p = T1 - T0`, `n = F1 - F0`:

    AUROC  best: the p before the n; worst: after; in the middle: as tied
    AP     best: all p first and tied; worst: all n first, then the p one by one, with
           sum_i (T0 + i) / (T0 + i + F1) >= p - F1 ln(1 + p / (T0 + F1)); the value assumes an even mixture
    F1     attained at the bin's smallest score; at best its p come before its n
    FPR@R  between F0 / N and F1 / N in the bin that reaches the recall
    AUPRO  overlap between its values at the bin's ends
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from anomaly_vlm.metrics._engine.binned_state import Sketch
from anomaly_vlm.metrics._engine.counts import from_order_keys
from anomaly_vlm.metrics._engine.options import PixelOptions, Values, recall_name
from anomaly_vlm.metrics._engine.values import NAN, needed_hits

ROUNDING = 1e-12


class Interval(NamedTuple):
    """A value and bounds between which the exact value lies."""

    value: float = NAN
    lower: float = NAN
    upper: float = NAN

    def widened(self) -> Interval:
        """Bounds moved outward for rounding and clamped to [0, 1]; the value between them."""
        lower, upper = max(0.0, self.lower - ROUNDING), min(1.0, self.upper + ROUNDING)
        return Interval(min(max(self.value, lower), upper), lower, upper)


class Descending(NamedTuple):
    """Bins in descending order of scores; counts as float64 (exact below 2^53)."""

    p: np.ndarray
    n: np.ndarray
    hits: np.ndarray  # T1
    false: np.ndarray  # F1
    pure: np.ndarray
    low: np.ndarray  # float32 scores
    high: np.ndarray

    @staticmethod
    def of(sketch: Sketch) -> Descending:
        bins = sketch.bins
        p, n = bins.anomalous[::-1], bins.normals[::-1]
        low, high = bins.low[::-1], bins.high[::-1]
        hits, false = np.cumsum(p), np.cumsum(n)
        return Descending(
            p.astype(np.float64),
            n.astype(np.float64),
            hits.astype(np.float64),
            false.astype(np.float64),
            low == high,
            from_order_keys(low),
            from_order_keys(high),
        )

    @property
    def hits_before(self) -> np.ndarray:
        return self.hits - self.p

    @property
    def false_before(self) -> np.ndarray:
        return self.false - self.n


def auroc(b: Descending) -> Interval:
    pairs = b.hits[-1] * b.false[-1]
    middle = 1.0 - float(np.dot(b.p, b.false_before + b.false)) / (2.0 * pairs)
    half = float(np.dot(b.p * ~b.pure, b.n)) / (2.0 * pairs)
    return Interval(middle, middle - half, middle + half).widened()


def average_precision(b: Descending) -> Interval:
    some = b.p > 0
    b = Descending(*(part[some] for part in b))
    p, t0, t1, f0, f1 = b.p, b.hits_before, b.hits, b.false_before, b.false
    lower = np.where(t0 + f1 > 0, p - f1 * np.log1p(p / np.maximum(t0 + f1, 1.0)), p)
    upper = p * t1 / (t1 + f0)
    a, h = 1.0 + b.n / p, t0 + 0.5
    start = h + f0
    mixed = np.clip(p / a + (h - start / a) / a * np.log1p(a * p / start), lower, upper)
    tied = p * t1 / (t1 + f1)
    total = b.hits[-1]
    parts = (float(np.where(b.pure, tied, part).sum()) / total for part in (mixed, lower, upper))
    return Interval(*parts).widened()


def f1_max(b: Descending) -> tuple[Interval, Interval]:
    """F1-max, and the threshold: that of the value, between the smallest and largest that the exact one can be."""
    total = b.hits[-1]
    attained = 2.0 * b.hits / (b.hits + b.false + total)
    possible = np.where(b.pure, attained, 2.0 * b.hits / (b.hits + b.false_before + total))
    possible[b.p == 0] = -1.0
    best = int(np.argmax(attained))
    lower = float(attained[best])
    # The exact maximum is larger than the attained one, or equal and then at no smaller score. Both sides round alike.
    reach = np.flatnonzero((possible > lower) | ((possible == lower) & (np.arange(possible.size) <= best)))
    threshold = Interval(float(b.low[best]), float(b.low[reach].min()), float(b.high[reach].max()))
    return Interval(lower, lower, float(possible.max())).widened(), threshold


def fpr_at_recall(b: Descending, recall: float) -> Interval:
    total, normals = b.hits[-1], b.false[-1]
    i = int(np.searchsorted(b.hits, needed_hits(recall, int(total))))
    before, after = float(b.false_before[i]) / normals, float(b.false[i]) / normals
    if b.pure[i]:
        return Interval(after, after, after).widened()
    share = (recall * total - float(b.hits_before[i])) / float(b.p[i])
    return Interval(before + (after - before) * min(max(share, 0.0), 1.0), before, after).widened()


def aupro(b: Descending, weights: np.ndarray, regions: int, limit: float) -> Interval:
    """`weights` [K] ascending, as in the sketch."""
    normals = b.false[-1]
    after = np.cumsum(weights[::-1]) / regions
    before = np.concatenate([[0.0], after[:-1]])
    width = b.n / normals
    inside = np.clip(limit - b.false_before / normals, 0.0, width)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(width > 0, inside / width, 0.0)
    value = inside * (before + share * (after - before) / 2.0)
    low, high = (np.where(b.pure, value, inside * bound) for bound in (before, after))
    return Interval(*(float(part.sum()) / limit for part in (value, low, high))).widened()


def binned_values(sketch: Sketch, options: PixelOptions) -> Values:
    """Values of one category by name, with `/lower` and `/upper`; `shift` and `bins` say how coarse they are."""
    anomalous, normals = int(sketch.bins.anomalous.sum()), int(sketch.bins.normals.sum())
    out: dict[str, Interval] = {}
    fpr = f"pixel_{recall_name(options.recall)}"
    names = ["pixel_auroc", "pixel_ap", "pixel_f1_max", "pixel_f1_max_threshold", fpr]
    b = Descending.of(sketch)
    if anomalous == 0 or normals == 0:
        out.update({name: Interval() for name in names})
    else:
        intervals = [auroc(b), average_precision(b), *f1_max(b), fpr_at_recall(b, options.recall)]
        out.update(zip(names, intervals, strict=True))
    for name, row, limit in options.aupro_names():
        regions = int(sketch.regions[row])
        defined = regions > 0 and normals > 0
        out[name] = aupro(b, sketch.bins.weights[row], regions, limit) if defined else Interval()
    counts = {"num_pixels": normals + anomalous, "num_anomalous_pixels": anomalous}
    if sketch.regions.size:
        counts = {"num_regions": int(sketch.regions[0]), **counts}
    out.update({name: Interval(count, count, count) for name, count in counts.items()})
    values = {name: float(interval.value) for name, interval in out.items()}
    for name, interval in out.items():
        values[f"{name}/lower"], values[f"{name}/upper"] = float(interval.lower), float(interval.upper)
    values["shift"], values["bins"] = float(sketch.shift), float(sketch.bins.low.size)
    return values
