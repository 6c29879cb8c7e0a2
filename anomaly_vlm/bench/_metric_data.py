"""Images for the metrics benchmark: maps as methods give them, drawn from (seed, index)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy import ndimage

GRID = 37  # patches a side: maps of ViTs are upsampled from such grids


def draw(seed: int, index: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """One map [S, S] float32 in (0, 1) with continuous scores, and its mask [S, S] uint8; every fourth image is normal."""
    rng = np.random.default_rng((seed, index))
    mask = np.zeros((side, side), np.uint8)
    if index % 4:
        rows, columns = np.ogrid[:side, :side]
        for _ in range(int(rng.integers(1, 5))):
            y, x = rng.uniform(0.1, 0.9, 2) * side
            height, width = rng.uniform(0.015, 0.13, 2) * side
            mask |= ((rows - y) / height) ** 2 + ((columns - x) / width) ** 2 < 1
    coarse = rng.normal(-2.5, 0.9, (GRID, GRID))
    inside = ndimage.zoom(mask.astype(np.float32), GRID / side, order=1, grid_mode=True, mode="nearest")
    coarse += 4.0 * inside[:GRID, :GRID] + 1.5 * (rng.random((GRID, GRID)) < 0.01)
    logits = ndimage.zoom(coarse.astype(np.float32), side / GRID, order=1, grid_mode=True, mode="nearest")[:side, :side]
    logits = logits + rng.normal(0, 0.05, (side, side)).astype(np.float32)
    return (1 / (1 + np.exp(-logits))).astype(np.float32), mask


def write_set(folder: Path, seed: int, count: int, side: int) -> float:
    """Writes `maps.npy` and `masks.npy`; gives the share of anomalous pixels."""
    folder.mkdir(parents=True)
    pairs = [draw(seed, i, side) for i in range(count)]
    masks = np.stack([mask for _, mask in pairs])
    np.save(folder / "maps.npy", np.stack([scores for scores, _ in pairs]))
    np.save(folder / "masks.npy", masks)
    return float(masks.mean())
