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
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from anomaly_vlm.metrics._counts import Above, Points

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


def scalars(points: Points, above: Above, normals: int, recall: float) -> Scalars:
    """The four threshold metrics. `above` answers `points.values`."""
    counts = points.counts[::-1]
    total = int(counts.sum())
    if total == 0 or normals == 0:
        return Scalars()
    greater, at_least = above.greater[::-1], above.at_least[::-1]
    hits = np.cumsum(counts)
    either = at_least + greater
    if 2 * total * normals < EXACT_INTEGERS:
        lost: float = int(np.dot(counts, either)) / (2 * total * normals)
    else:
        lost = float(np.dot(counts.astype(np.float64), either.astype(np.float64))) / (2.0 * total * normals)
    predicted = (hits + at_least).astype(np.float64)
    precision = hits / predicted
    f1 = 2.0 * hits / (predicted + total)
    best = int(np.argmax(f1))
    reached = int(np.searchsorted(hits, needed_hits(recall, total)))
    return Scalars(
        auroc=1.0 - lost,
        ap=float(np.dot(counts, precision)) / total,
        f1_max=float(f1[best]),
        f1_max_threshold=float(points.values[::-1][best]),
        fpr=int(at_least[reached]) / normals,
    )


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


def area_up_to(curve: ProCurve | None, limit: float) -> float:
    """Trapezoid area of the curve for FPR in [0, limit], cut by linear interpolation, divided by `limit`."""
    if curve is None:
        return NAN
    fpr, overlap = curve
    end = int(np.searchsorted(fpr, limit, side="right"))  # the first vertex beyond
    width, height = np.diff(fpr[:end]), overlap[1:end] + overlap[: end - 1]
    area = 0.5 * float(np.dot(width, height))
    if end < fpr.size and fpr[end - 1] < limit:
        rise = (overlap[end] - overlap[end - 1]) / (fpr[end] - fpr[end - 1])
        rest = limit - fpr[end - 1]
        area += float(rest * (overlap[end - 1] + 0.5 * rest * rise))
    return min(1.0, area / limit)
