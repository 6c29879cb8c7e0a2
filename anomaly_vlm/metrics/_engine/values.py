"""From counts to values: AUROC, AP, F1-max, FPR at a recall and AUPRO, in float64 on int64 counts.

Let `v_1 > v_2 > ...` be the distinct anomalous scores, `p_j` the anomalous items with score `v_j`, `g_j` the normal items
above `v_j`, `e_j` the normal items at or above it, `P` and `N` the numbers of anomalous and of normal items, and
`TP_j = p_1 + ... + p_j`. Then:

    AUROC  = 1 - sum_j p_j (e_j + g_j) / (2 P N)             (Mann-Whitney: ties count one half)
    AP     = sum_j p_j / P * TP_j / (TP_j + e_j)             (steps, as scikit-learn)
    F1-max = max_j 2 TP_j / (TP_j + e_j + P)                 (the largest threshold that attains it)
    FPR@R  = e_j / N at the first j with TP_j >= R P         (decided in integers)
    AUPRO  = area under (FPR, mean region overlap) from FPR 0 to L, divided by L (Bergmann et al., IJCV 2021)

Beside them, for comparison with the tables of their papers, the AUPRO of the published zero-shot codes over 200 thresholds:

`legacy` (AnomalyCLIP, FAPrompt, APRIL-GAN, FiLo, AnoVL): thresholds `numpy.arange(min, max, (max - min) / 200)`, prediction
`s > t`, points with FPR < 0.3, whose FPR is rescaled to [0, 1], trapezoid area.

`legacy_filled` (WinCLIP, SAA): thresholds `max - i (max - min) / 200`, points with FPR <= 0.3; hits in the holes of a region
count as hits of the region, so the value can exceed 1.

Both values depend on the scale of the scores, so those of two methods can be compared only if their maps are scaled alike.
The thresholds are looked up in the sorted scores, without a loop over them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from anomaly_vlm.metrics._engine.counts import DistinctScores, NormalsAbove, cache_slices

NAN = math.nan
EXACT_INTEGERS = 2**62  # sums of products below this fit int64


def hits_for_recall(recall: float, anomalous: int) -> int:
    """Returns the least number of hits with `hits >= recall * anomalous`; 0.95 means 19/20, not its nearest double."""
    exact_recall = Fraction(repr(float(recall)))
    return max(1, math.ceil(exact_recall * anomalous))


class ThresholdValues(NamedTuple):
    """The four values of one category that need no regions; NaN where there is no anomalous or no normal item.

    Attributes:
        auroc: Area under the ROC curve.
        ap: Average precision.
        f1_max: Largest F1 over all thresholds.
        f1_max_threshold: Largest threshold that attains it; one of the scores.
        fpr: False-positive rate at the recall that was asked for.
    """

    auroc: float = NAN
    ap: float = NAN
    f1_max: float = NAN
    f1_max_threshold: float = NAN
    fpr: float = NAN


class ScoreSlice(NamedTuple):
    """Some neighbouring distinct anomalous scores, in descending order.

    Attributes:
        where: Where they lie among all distinct scores, which ascend.
        counts: `[S]` anomalous items with each score.
        greater: `[S]` normal items above each.
        at_least: `[S]` normal items at or above each.
        hits: `[S]` anomalous items at or above each (true positives).
    """

    where: slice
    counts: np.ndarray
    greater: np.ndarray
    at_least: np.ndarray
    hits: np.ndarray


def descending(scores: DistinctScores, above: NormalsAbove) -> Iterator[ScoreSlice]:
    """Yields the scores from the largest down, slice by slice, as whole arrays would cost page faults and memory."""
    total = 0
    for ascending in cache_slices(scores.values.size):
        where = slice(scores.values.size - ascending.stop, scores.values.size - ascending.start)
        counts, greater, at_least = (array[where][::-1] for array in (scores.counts, *above))
        hits = np.cumsum(counts) + total
        total = int(hits[-1])
        yield ScoreSlice(where, counts, greater, at_least, hits)


def threshold_values(scores: DistinctScores, above: NormalsAbove, normals: int, recall: float) -> ThresholdValues:
    """Computes AUROC, AP, F1-max and FPR at a recall, in O(V).

    Args:
        scores: The distinct anomalous scores.
        above: Normal items above each of them.
        normals: Number of normal items.
        recall: Recall in (0, 1] at which the false-positive rate is taken.
    """
    total = int(scores.counts.sum())
    if total == 0 or normals == 0:
        return ThresholdValues()
    pairs = 2 * total * normals
    in_integers = pairs < EXACT_INTEGERS
    needed, fpr, best, threshold = hits_for_recall(recall, total), NAN, -1.0, NAN
    lost, precisions = [], []
    for chunk in descending(scores, above):
        either = chunk.at_least + chunk.greater
        lost.append(
            int(np.dot(chunk.counts, either)) if in_integers else float(np.dot(1.0 * chunk.counts, 1.0 * either))
        )
        predicted = chunk.hits + chunk.at_least
        precisions.append(float(np.dot(chunk.counts, chunk.hits / predicted)))
        f1 = 2.0 * chunk.hits / (predicted + total)
        first = int(np.argmax(f1))
        if f1[first] > best:  # of equal values the one of the largest threshold came first
            best, threshold = float(f1[first]), float(scores.values[chunk.where][::-1][first])
        if math.isnan(fpr) and chunk.hits[-1] >= needed:
            fpr = int(chunk.at_least[np.searchsorted(chunk.hits, needed)]) / normals
    auroc = 1.0 - (sum(lost) if in_integers else math.fsum(lost)) / pairs
    return ThresholdValues(auroc, math.fsum(precisions) / total, best, threshold, fpr)


def aupro(
    scores: DistinctScores, above: NormalsAbove, normals: int, regions: int, row: int, limits: Sequence[float]
) -> list[float]:
    """Computes the areas under the PRO curve, in O(V) for each limit.

    The curve runs from (0, 0) to (1, 1). It is flat between two anomalous scores and sloped inside a tie of normal and
    anomalous scores, and it is cut at the limit by linear interpolation.

    Args:
        scores: The distinct anomalous scores with their region weights.
        above: Normal pixels above each of them.
        normals: Number of normal pixels.
        regions: Number of regions.
        row: Row of the weights, which stands for a connectivity.
        limits: False-positive rates in (0, 1] up to which the area is taken.

    Returns:
        Area divided by the limit, for each limit; NaN if there is no region or no normal pixel.
    """
    if regions == 0 or normals == 0:
        return [NAN] * len(limits)
    caps = [limit * normals for limit in limits]  # limits in normal pixels
    areas: list[list[float]] = [[] for _ in limits]
    reached, height = 0, 0.0  # normal pixels and mean overlap at the end of the slice before
    for chunk in descending(scores, above):
        after = np.cumsum(scores.weights[row][chunk.where][::-1])
        after /= regions
        after += height
        before = np.concatenate([[height], after[:-1]])
        starts = np.concatenate([[reached], chunk.at_least[:-1]])  # where the flat part before each score starts
        tied = np.flatnonzero(chunk.at_least > chunk.greater)
        for cap, area in zip(caps, areas, strict=True):
            if reached < cap:
                area.append(float(np.dot(before, np.minimum(chunk.greater, cap) - np.minimum(starts, cap))))
                area.append(_area_of_ties(chunk, before, after, tied, cap))
        reached, height = int(chunk.at_least[-1]), float(after[-1])
    ends = [max(cap - reached, 0.0) for cap in caps]  # below the last anomalous score every region is covered
    return [min(1.0, (math.fsum(area) + end) / cap) for area, end, cap in zip(areas, ends, caps, strict=True)]


def _area_of_ties(chunk: ScoreSlice, before: np.ndarray, after: np.ndarray, tied: np.ndarray, cap: float) -> float:
    """Returns the area below the sloped parts of a slice, as far as `cap` normal pixels."""
    width = (chunk.at_least - chunk.greater)[tied]
    inside = np.clip(cap - chunk.greater[tied], 0.0, width)
    rise = after[tied] - before[tied]
    return float(np.dot(inside, before[tied] + inside / width * rise / 2.0))


class ProCurve(NamedTuple):
    """The vertices of a PRO curve, from (0, 0) to (1, 1); K = 2 V + 2.

    Attributes:
        fpr: `[K]` false-positive rate over all normal pixels, ascending.
        overlap: `[K]` mean overlap with the regions, ascending.
    """

    fpr: np.ndarray
    overlap: np.ndarray


def pro_curve(scores: DistinctScores, above: NormalsAbove, normals: int, regions: int, row: int = 0) -> ProCurve | None:
    """Returns the whole PRO curve, or None if there is no region or no normal pixel.

    Between two anomalous scores only the false-positive rate grows; inside a tie both coordinates grow.

    Args:
        scores: The distinct anomalous scores with their region weights.
        above: Normal pixels above each of them.
        normals: Number of normal pixels.
        regions: Number of regions.
        row: Row of the weights, which stands for a connectivity.
    """
    if regions == 0 or normals == 0:
        return None
    size = scores.values.size
    fpr, overlap = np.empty(2 * size + 2), np.empty(2 * size + 2)
    fpr[0], fpr[-1], fpr[1:-1:2], fpr[2:-1:2] = 0, normals, above.greater[::-1], above.at_least[::-1]
    fpr /= normals
    covered = np.cumsum(scores.weights[row, ::-1])
    covered /= regions
    overlap[0], overlap[1], overlap[-1] = 0.0, 0.0, 1.0
    overlap[2:-1:2], overlap[3:-1:2] = covered, covered[:-1]
    return ProCurve(fpr, overlap)


STEPS = 200
LIMIT = 0.3  # largest false-positive rate


class Thresholds(NamedTuple):
    """The thresholds of both variants; empty where the scores are constant or there are none.

    Attributes:
        plain: `[200 or 201]` float32, ascending, of `legacy`.
        filled: `[200]` float32, ascending, of `legacy_filled`.
    """

    plain: np.ndarray
    filled: np.ndarray


NO_THRESHOLDS = Thresholds(np.empty(0, np.float32), np.empty(0, np.float32))


def thresholds(low: float, high: float) -> Thresholds:
    """Returns the thresholds for scores between the float32 values `low` and `high`."""
    smallest, largest = np.float32(low), np.float32(high)
    if not largest > smallest:
        return NO_THRESHOLDS
    with np.errstate(over="ignore"):
        step = (largest - smallest) / np.float32(STEPS)
    if not np.isfinite(step) or step == 0:
        return NO_THRESHOLDS
    filled = largest - np.arange(STEPS, dtype=np.float32) * step
    return Thresholds(round_down(np.arange(smallest, largest, step)), filled[::-1].astype(np.float32))


def round_down(values: np.ndarray) -> np.ndarray:
    """Returns the largest float32 not above each float64 value `[T]`: for float32 scores `s > t` stays the same."""
    near = values.astype(np.float32)
    return np.where(near > values, np.nextafter(near, np.float32(-np.inf)), near)


def weight_above(values: np.ndarray, weights: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Returns the sum of the weights of all scores above each threshold, `[T]`.

    Args:
        values: `[V]` ascending scores.
        weights: `[V]` weight of each.
        limits: `[T]` thresholds.
    """
    remaining = np.concatenate([np.cumsum(weights[::-1])[::-1], [0.0]])
    return remaining[np.searchsorted(values, limits, side="right")]


def legacy_area(
    scores: DistinctScores,
    extra: np.ndarray,
    limits: np.ndarray,
    normals_above: np.ndarray,
    normals: int,
    regions: int,
    *,
    strict: bool,
) -> float:
    """Returns the rescaled trapezoid area under the points of the thresholds.

    Args:
        scores: The distinct anomalous scores; row 0 of their weights is used.
        extra: `[T]` weight of hits that lie in holes, which is added to the overlap.
        limits: `[T]` ascending thresholds.
        normals_above: `[T]` normal pixels above each threshold.
        normals: Number of normal pixels.
        regions: Number of regions.
        strict: Whether a point with a false-positive rate of exactly 0.3 is left out.

    Returns:
        The area; NaN if fewer than two points remain or if all their false-positive rates are equal.
    """
    if regions == 0 or normals == 0 or limits.size == 0:
        return NAN
    overlap = (weight_above(scores.values, scores.weights[0], limits) + extra) / regions
    fpr = normals_above / normals
    kept = fpr < LIMIT if strict else fpr <= LIMIT
    fpr, overlap = fpr[kept], overlap[kept]
    if fpr.size < 2 or fpr.max() == fpr.min():
        return NAN
    scaled = (fpr - fpr.min()) / (fpr.max() - fpr.min())  # descends, as the thresholds ascend
    return float(0.5 * np.dot(scaled[:-1] - scaled[1:], overlap[:-1] + overlap[1:]))
