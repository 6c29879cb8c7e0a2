"""A slow reference that shares nothing with the package: every threshold, flood fill, plain sums."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np


def flood_regions(anomalous: np.ndarray, connectivity: int) -> list[list[tuple[int, int]]]:
    """Pixels of each region."""
    left = {(int(row), int(column)) for row, column in zip(*np.nonzero(anomalous), strict=True)}
    steps = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if (a, b) != (0, 0)]
    if connectivity == 4:
        steps = [(a, b) for a, b in steps if a == 0 or b == 0]
    regions = []
    while left:
        queue = [left.pop()]
        for row, column in queue:
            near = {(row + a, column + b) for a, b in steps} & left
            left -= near
            queue.extend(near)
        regions.append(queue)
    return regions


def brute_force(maps: list[np.ndarray], masks: list[np.ndarray], limit: float = 0.3) -> dict[str, float]:
    """The values of one category, from the confusion counts at every distinct score."""
    names = ("pixel_auroc", "pixel_ap", "pixel_f1_max", "pixel_f1_max_threshold", "pixel_fpr95")
    scores = np.concatenate([part[mask != 255] for part, mask in zip(maps, masks, strict=True)]).astype(np.float64)
    labels = np.concatenate([mask[mask != 255] for mask in masks]) == 1
    overlaps = {
        kind: [
            part.astype(np.float64)[tuple(np.transpose(region))]
            for part, mask in zip(maps, masks, strict=True)
            for region in flood_regions(mask == 1, kind)
        ]
        for kind in (8, 4)
    }
    positives, negatives = int(labels.sum()), int((~labels).sum())
    out = {
        "num_pixels": float(scores.size),
        "num_anomalous_pixels": float(positives),
        "num_regions": float(len(overlaps[8])),
    }
    if not positives or not negatives:
        return {**out, **dict.fromkeys((*names, "pixel_aupro", "pixel_aupro_conn4"), math.nan)}
    wins = sum((scores[~labels] < score).sum() + 0.5 * (scores[~labels] == score).sum() for score in scores[labels])
    ap = recall = best = 0.0
    threshold = fpr95 = math.nan
    curves = {kind: [(0.0, 0.0)] for kind in overlaps}
    for level in np.unique(scores)[::-1]:
        hits, false = int((scores[labels] >= level).sum()), int((scores[~labels] >= level).sum())
        ap += (hits / positives - recall) * hits / (hits + false)
        recall = hits / positives
        f1 = 2 * hits / (hits + false + positives)
        if f1 > best:
            best, threshold = f1, level
        if math.isnan(fpr95) and 20 * hits >= 19 * positives:
            fpr95 = false / negatives
        for kind, regions in overlaps.items():
            curves[kind].append((false / negatives, float(np.mean([(part >= level).mean() for part in regions]))))
    values = (wins / (positives * negatives), ap, best, threshold, fpr95)
    areas = {kind: _area(curve, limit) for kind, curve in curves.items()}
    return {**out, **dict(zip(names, values, strict=True)), "pixel_aupro": areas[8], "pixel_aupro_conn4": areas[4]}


def _area(curve: list[tuple[float, float]], limit: float) -> float:
    total = 0.0
    for (x0, y0), (x1, y1) in pairwise(curve):
        if x0 >= limit:
            break
        if x1 > limit:
            x1, y1 = limit, y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
        total += (x1 - x0) * (y0 + y1) / 2
    return total / limit
