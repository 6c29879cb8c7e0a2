"""From counts to values: AUROC, AP, F1-max, FPR at a recall, AUPRO. Everything in float64 on int64 counts.

With the distinct anomalous scores `v_1 > v_2 > ...`, `p_j` anomalous items at `v_j`, `g_j` normal items above and `e_j` at
or above it, `P` and `N` items in all, and `TP_j = p_1 + ... + p_j`:

    AUROC  = 1 - sum_j p_j (e_j + g_j) / (2 P N)             (Mann-Whitney: ties count one half)
    AP     = sum_j p_j / P * TP_j / (TP_j + e_j)             (steps, as scikit-learn)
    F1-max = max_j 2 TP_j / (TP_j + e_j + P)                 (the largest threshold that attains it)
    FPR@R  = e_j / N at the first j with TP_j >= R P         (decided in integers)
    AUPRO  = area under (FPR, mean region overlap) from FPR 0 to L, divided by L (Bergmann et al., IJCV 2021)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from anomaly_vlm.metrics._engine.counts import Above, Points, pieces

NAN = math.nan
EXACT_INTEGERS = 2**62


def needed_hits(recall: float, anomalous: int) -> int:
    """The least number of hits with `hits >= recall * anomalous`; 0.95 means 19/20, not its nearest double."""
    share = Fraction(repr(float(recall)))
    return max(1, math.ceil(share * anomalous))


class Scalars(NamedTuple):
    """Values of one category; NaN where there is no anomalous or no normal item."""

    auroc: float = NAN
    ap: float = NAN
    f1_max: float = NAN
    f1_max_threshold: float = NAN
    fpr: float = NAN


class Piece(NamedTuple):
    """Some neighbouring distinct scores in descending order, and where they lie in the points."""

    where: slice
    counts: np.ndarray
    greater: np.ndarray
    at_least: np.ndarray
    hits: np.ndarray  # TP at each


def descending(points: Points, above: Above) -> Iterator[Piece]:
    """The points from the largest score down, piece by piece: whole arrays would cost page faults and memory."""
    found = 0
    for part in pieces(points.values.size):
        where = slice(points.values.size - part.stop, points.values.size - part.start)
        counts, greater, at_least = (array[where][::-1] for array in (points.counts, *above))
        hits = np.cumsum(counts) + found
        found = int(hits[-1])
        yield Piece(where, counts, greater, at_least, hits)


def scalars(points: Points, above: Above, normals: int, recall: float) -> Scalars:
    """The four threshold metrics. `above` answers `points.values`. O(V)."""
    total = int(points.counts.sum())
    if total == 0 or normals == 0:
        return Scalars()
    whole = 2 * total * normals < EXACT_INTEGERS
    needed, fpr, best, threshold = needed_hits(recall, total), NAN, -1.0, NAN
    lost, gained = [], []
    for piece in descending(points, above):
        either = piece.at_least + piece.greater
        lost.append(int(np.dot(piece.counts, either)) if whole else float(np.dot(1.0 * piece.counts, 1.0 * either)))
        predicted = piece.hits + piece.at_least
        gained.append(float(np.dot(piece.counts, piece.hits / predicted)))
        f1 = 2.0 * piece.hits / (predicted + total)
        first = int(np.argmax(f1))
        if f1[first] > best:  # of equal ones the largest threshold, which came first
            best, threshold = float(f1[first]), float(points.values[piece.where][::-1][first])
        if math.isnan(fpr) and piece.hits[-1] >= needed:
            fpr = int(piece.at_least[np.searchsorted(piece.hits, needed)]) / normals
    pairs = 2 * total * normals
    auroc = 1.0 - (sum(lost) if whole else math.fsum(lost)) / pairs
    return Scalars(auroc, math.fsum(gained) / total, best, threshold, fpr)


def aupro(points: Points, above: Above, normals: int, regions: int, row: int, limits: Sequence[float]) -> list[float]:
    """Areas under the PRO curve of connectivity `row` up to each limit, divided by the limit. O(V) a limit.

    The curve runs from (0, 0) to (1, 1), flat between two anomalous scores and sloped inside a tie; it is cut at the limit
    by linear interpolation. NaN where there is no region or no normal pixel.
    """
    if regions == 0 or normals == 0:
        return [NAN] * len(limits)
    caps = [limit * normals for limit in limits]  # in normal pixels
    areas: list[list[float]] = [[] for _ in limits]
    reached, height = 0, 0.0  # normal pixels and overlap at the end of the piece before
    for piece in descending(points, above):
        after = np.cumsum(points.weights[row][piece.where][::-1])
        after /= regions
        after += height
        before = np.concatenate([[height], after[:-1]])
        starts = np.concatenate([[reached], piece.at_least[:-1]])  # of the flat part before each score
        tied = np.flatnonzero(piece.at_least > piece.greater)
        for cap, area in zip(caps, areas, strict=True):
            if reached < cap:
                area.append(float(np.dot(before, np.minimum(piece.greater, cap) - np.minimum(starts, cap))))
                area.append(_tie_area(piece, before, after, tied, cap))
        reached, height = int(piece.at_least[-1]), float(after[-1])
    ends = [max(cap - reached, 0.0) for cap in caps]  # beyond the last score everything is covered
    return [min(1.0, (math.fsum(area) + end) / cap) for area, end, cap in zip(areas, ends, caps, strict=True)]


def _tie_area(piece: Piece, before: np.ndarray, after: np.ndarray, tied: np.ndarray, cap: float) -> float:
    """Area below the sloped parts of a piece, as far as `cap`."""
    width = (piece.at_least - piece.greater)[tied]
    inside = np.clip(cap - piece.greater[tied], 0.0, width)
    rise = after[tied] - before[tied]
    return float(np.dot(inside, before[tied] + inside / width * rise / 2.0))


class ProCurve(NamedTuple):
    """Vertices of mean region overlap against pooled FPR, from (0, 0) to (1, 1), both ascending."""

    fpr: np.ndarray
    overlap: np.ndarray


def pro_curve(points: Points, above: Above, normals: int, regions: int, row: int = 0) -> ProCurve | None:
    """The curve of connectivity `row`; None where there is no region or no normal pixel.

    Between two anomalous scores only the FPR grows (flat); inside a tie both grow (sloped).
    """
    if regions == 0 or normals == 0:
        return None
    size = points.values.size
    fpr, overlap = np.empty(2 * size + 2), np.empty(2 * size + 2)
    fpr[0], fpr[-1], fpr[1:-1:2], fpr[2:-1:2] = 0, normals, above.greater[::-1], above.at_least[::-1]
    fpr /= normals
    covered = np.cumsum(points.weights[row, ::-1])
    covered /= regions
    overlap[0], overlap[1], overlap[-1] = 0.0, 0.0, 1.0
    overlap[2:-1:2], overlap[3:-1:2] = covered, covered[:-1]
    return ProCurve(fpr, overlap)
