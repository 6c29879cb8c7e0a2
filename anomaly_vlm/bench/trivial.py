"""Trivial baselines: anomaly maps made from one image alone, without any learning.

They say how hard a data set is. On the held-out families of the procedural set the best of them stays at or below
`IMAGE_LIMIT` and `PIXEL_LIMIT`; its difficulty was set so and then frozen.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.table import Table
from scipy.ndimage import gaussian_filter, map_coordinates
from sklearn.metrics import roc_auc_score

from anomaly_vlm.data.types import Drawing
from anomaly_vlm.reporting.console import say, show

IMAGE_LIMIT, PIXEL_LIMIT = 62.0, 78.0  # AUROC in percent
TOP = 0.02  # share of the pixels whose mean is the second image score
NEIGHBOURS = 5


def pixel_deviation(image: np.ndarray) -> np.ndarray:
    """Distance of each pixel's colour from the image's median colour. uint8 [H, W, 3] -> float32 [H, W]."""
    values = image.astype(np.float32) / 255
    away = np.sqrt(((values - np.median(values, axis=(0, 1))) ** 2).sum(axis=2))
    smoothed: np.ndarray = gaussian_filter(away, len(image) / 100)
    return smoothed


def local_deviation(image: np.ndarray) -> np.ndarray:
    """Distance of each pixel's colour from that of its surroundings (1/16 of the side). uint8 [H, W, 3] -> [H, W]."""
    values, side = image.astype(np.float32) / 255, len(image)
    fine, coarse = (gaussian_filter(values, (sigma, sigma, 0)) for sigma in (side / 100, side / 16))
    contrast: np.ndarray = np.sqrt(((fine - coarse) ** 2).sum(axis=2))
    return contrast


def mahalanobis(image: np.ndarray) -> np.ndarray:
    """Mahalanobis distance of each patch from all patches of the image. uint8 [H, W, 3] -> [H, W]."""
    patches, grid = _patches(image)
    centred = patches - patches.mean(axis=0)
    covariance = centred.T @ centred / len(centred)
    ridge = 0.01 * np.trace(covariance) / len(covariance) + 1e-6
    inverse = np.linalg.inv(covariance + ridge * np.eye(len(covariance)))
    distance = np.sqrt(np.maximum(np.einsum("nd,de,ne->n", centred, inverse, centred, optimize=True), 0))
    return _spread(distance.reshape(grid), image)


def nearest_neighbours(image: np.ndarray) -> np.ndarray:
    """Mean distance of each patch to its five nearest that do not overlap it. uint8 [H, W, 3] -> [H, W]."""
    patches, (rows, columns) = _patches(image)
    patches = patches.astype(np.float64)  # differences of nearly equal squares
    squares = (patches**2).sum(axis=1)
    squared = squares[:, None] + squares[None, :] - 2 * patches @ patches.T
    row, column = np.divmod(np.arange(len(patches)), columns)
    near = (np.abs(row[:, None] - row[None, :]) < 2) & (np.abs(column[:, None] - column[None, :]) < 2)
    squared[near] = np.inf
    closest = np.partition(squared, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]
    return _spread(np.sqrt(np.maximum(closest, 0)).mean(axis=1).reshape(rows, columns), image)


MAPS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "pixel deviation": pixel_deviation,
    "local deviation": local_deviation,
    "patch Mahalanobis": mahalanobis,
    "patch kNN": nearest_neighbours,
}


def _patches(image: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """Half-overlapping patches of 1/16 of the side, each reduced to 4 x 4 RGB: float32 [N, 48] and the grid."""
    size = _size(image)
    windows = np.lib.stride_tricks.sliding_window_view(image, (size, size), axis=(0, 1))[:: size // 2, :: size // 2]
    rows, columns = windows.shape[:2]
    cells = windows.reshape(rows, columns, 3, 4, size // 4, 4, size // 4).mean(axis=(4, 6), dtype=np.float32)
    return cells.reshape(rows * columns, 48) / np.float32(255), (rows, columns)


def _size(image: np.ndarray) -> int:
    return max(4, 4 * round(len(image) / 64))


def _spread(values: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Values at patch centres [rows, columns] -> every pixel [H, W], bilinear."""
    size = _size(image)
    rows, columns = ((np.arange(count) + 0.5 - size / 2) / (size / 2) for count in image.shape[:2])
    turned: np.ndarray = map_coordinates(values, np.meshgrid(rows, columns, indexing="ij"), order=1, mode="nearest")
    return turned


def image_scores(heat: np.ndarray) -> dict[str, float]:
    """Scores of an image from its map [H, W]: the maximum, and the mean of the top 2 %."""
    flat = np.sort(heat, axis=None)
    return {"max": float(flat[-1]), "top 2 %": float(flat[-max(1, round(TOP * flat.size)) :].mean())}


def evaluate(drawings: Mapping[str, Sequence[tuple[Drawing, int]]]) -> list[dict[str, float | str]]:
    """AUROC in percent of each baseline, pooled over all images and as the mean over categories.

    Args:
        drawings: For each category its (drawing, label) pairs; both labels must occur in each.

    Returns:
        one row a baseline: `map`, `image_max`, `image_top` (pooled), `image_max_mean`, `image_top_mean` (mean over the
        categories), `pixel` (pooled), `pixel_mean`, and `image_top NAME`, `pixel NAME` for each category.
    """
    labels = {name: np.array([label for _, label in pairs]) for name, pairs in drawings.items()}
    pictures = {name: [drawing.draw() for drawing, _ in pairs] for name, pairs in drawings.items()}
    truth = {name: np.stack([drawn.mask for drawn in drawn_list]).ravel() for name, drawn_list in pictures.items()}
    rows: list[dict[str, float | str]] = []
    for title, function in MAPS.items():
        heats = {name: np.stack([function(d.image) for d in drawn_list]) for name, drawn_list in pictures.items()}
        row: dict[str, float | str] = {"map": title}
        for key, score in (("image_max", "max"), ("image_top", "top 2 %")):
            scores = {name: np.array([image_scores(heat)[score] for heat in heats[name]]) for name in heats}
            each = {name: 100 * roc_auc_score(labels[name], scores[name]) for name in heats}
            row[key] = 100 * roc_auc_score(np.concatenate([*labels.values()]), np.concatenate([*scores.values()]))
            row[f"{key}_mean"] = float(np.mean([*each.values()]))
            row |= {f"{key} {name}": value for name, value in each.items()}
        flat = {name: heat.ravel().astype(np.float32) for name, heat in heats.items()}
        row["pixel"] = 100 * roc_auc_score(np.concatenate([*truth.values()]), np.concatenate([*flat.values()]))
        each = {name: 100 * roc_auc_score(truth[name], flat[name]) for name in heats}
        row["pixel_mean"] = float(np.mean([*each.values()]))
        row |= {f"pixel {name}": value for name, value in each.items()}
        rows.append(row)
    return rows


def run(folder: Path, *, quick: bool) -> None:
    """Prints the table of trivial baselines on the held-out procedural families; writes `trivial.json` to `folder`."""
    from anomaly_vlm.data.drawn.products import ProceduralSource

    drawings: dict[str, list[tuple[Drawing, int]]] = {}
    for sample in ProceduralSource(test_count=120 if quick else 600).samples("test"):
        assert sample.drawing is not None and sample.label is not None
        drawings.setdefault(sample.category, []).append((sample.drawing, sample.label))
    rows = evaluate(drawings)
    columns = ("image_max", "image_top", "image_max_mean", "image_top_mean", "pixel", "pixel_mean")
    say(
        f"trivial baselines on procedural, held-out families, {sum(map(len, drawings.values()))} images, AUROC in percent"
    )
    table = Table("map", *columns)
    for row in rows:
        table.add_row(str(row["map"]), *(f"{row[name]:.1f}" for name in columns))
    show(table)
    say(f"limits of the frozen set: image {IMAGE_LIMIT:.0f}, pixel {PIXEL_LIMIT:.0f}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trivial.json").write_text(json.dumps(rows, indent=1))
