"""Random cases for the tests of the metrics."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

EVERYTHING = {"aupro_limits": (0.3, 0.05, 0.1, 1.0), "connectivity": (8, 4), "legacy": True}


def in_batches(count: int, size: int) -> list[list[int]]:
    return [list(range(start, min(start + size, count))) for start in range(0, count, size)]


@dataclass
class Case:
    """Random images: `maps` float32 of different sizes, masks uint8, image scores and labels, categories."""

    maps: list[np.ndarray]
    masks: list[np.ndarray]
    scores: np.ndarray
    labels: np.ndarray
    category: list[str]

    def rows(self, rows: list[int]) -> dict[str, list]:
        """Arguments of `PixelMetrics.update` for some images."""
        return {
            "maps": [self.maps[i] for i in rows],
            "masks": [self.masks[i] for i in rows],
            "category": [self.category[i] for i in rows],
            "index": rows,
        }


def random_case(seed: int, count: int = 23, *, void: bool = False, levels: int = 0) -> Case:
    """`count` images of three categories; `levels` > 0 puts the scores on a grid, so that many tie."""
    rng = np.random.default_rng(seed)
    maps, masks = [], []
    for i in range(count):
        height, width = rng.integers(12, 30, 2)
        mask = np.zeros((height, width), np.uint8)
        for _ in range(int(rng.integers(0, 4)) if i % 4 else 0):
            top, left = rng.integers(0, height - 4), rng.integers(0, width - 4)
            mask[top : top + rng.integers(1, 6), left : left + rng.integers(1, 6)] = 1
        scores = rng.normal(size=(height, width)) + 1.2 * mask
        if void:
            mask[rng.random(mask.shape) < 0.1] = 255
        if levels:
            scores = np.round(scores * levels) / levels
        maps.append(scores.astype(np.float32))
        masks.append(mask)
    labels = np.array([int((mask == 1).any()) for mask in masks])
    names = [("screw", "cable", "tile")[i % 3 if i > 4 else i % 2] for i in range(count)]
    return Case(maps, masks, rng.normal(size=count).astype(np.float32) + labels, labels, names)


def padded_shares(count: int, ranks: int) -> list[list[int]]:
    """What a distributed sampler without shuffling gives each rank: strided, the last round padded from the start."""
    total = -(-count // ranks) * ranks
    order = [i % count for i in range(total)]
    return [order[rank::ranks] for rank in range(ranks)]
