"""Golden files of the metrics."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.support.golden import ROOT


def golden_files() -> list[Path]:
    """All metrics files of the fixture folder; none at all is an error, never a skip."""
    found = sorted((ROOT / "metrics").glob("*.npz"))
    if not found:
        raise FileNotFoundError(f"no golden file of the metrics in {ROOT}")
    return found


@dataclass
class Golden:
    """One file: `images` of map and mask, image scores and labels, names of categories, expected values."""

    name: str
    maps: list[np.ndarray]
    masks: list[np.ndarray]
    scores: np.ndarray
    labels: np.ndarray
    category: list[str] | None
    expected: dict[str, float]
    raises: str | None
    keys: set[str]


READ = {"maps", "masks", "num_images", "image_scores", "image_labels", "category", "category_names", "raises"}
NOTES = {"note"}  # what the file is about


def load_golden(path: Path) -> Golden:
    with np.load(path, allow_pickle=False) as data:
        arrays = {key: data[key] for key in data.files}
    expected = {key.removeprefix("expected/"): float(arrays[key]) for key in arrays if key.startswith("expected/")}
    numbered = {key for key in arrays if key.startswith(("map_", "mask_"))}
    left = set(arrays) - READ - NOTES - numbered - {f"expected/{name}" for name in expected}
    if "values" in arrays:
        left -= {"values", "neg_counts", "pos_counts"}
        normals = np.repeat(arrays["values"], arrays["neg_counts"])
        anomalous = np.repeat(arrays["values"], arrays["pos_counts"])
        maps = [np.concatenate([normals, anomalous])[None]]
        masks = [np.concatenate([np.zeros(normals.size, np.uint8), np.ones(anomalous.size, np.uint8)])[None]]
    elif "maps" in arrays:
        maps, masks = list(arrays["maps"]), list(arrays["masks"])
    else:
        count = len(numbered) // 2
        maps, masks = ([arrays[f"{what}_{i}"] for i in range(count)] for what in ("map", "mask"))
    if "num_images" in arrays and int(arrays["num_images"]) != len(maps):
        raise ValueError(f"{path.name}: num_images is {arrays['num_images']} but there are {len(maps)} maps")
    names = arrays.get("category_names")
    return Golden(
        name=path.stem,
        maps=maps,
        masks=masks,
        scores=arrays.get("image_scores", np.empty(0, np.float32)),
        labels=arrays.get("image_labels", np.empty(0, np.int64)),
        category=None if names is None else [str(names[i]) for i in arrays["category"]],
        expected=expected,
        raises=str(arrays["raises"]) if "raises" in arrays else None,
        keys=left,
    )
