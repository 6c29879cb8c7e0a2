"""Every golden file at its README's tolerance: exact values 1e-9, thresholds bit for bit, legacy values 1e-6."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from anomaly_vlm.metrics import AnomalyMetrics, PixelMetrics
from anomaly_vlm.metrics.functional import image_metrics, pixel_metrics
from tests.metrics.cases import EVERYTHING, in_batches
from tests.metrics.support import Golden, golden_files, load_golden
from tests.support.golden import LEDGERS

pytestmark = pytest.mark.golden


def tolerance(name: str) -> float:
    if "threshold" in name or "num_" in name or "mean_count" in name:
        return 0.0
    return 1e-6 if "legacy" in name else 1e-9


def compare(golden: Golden, actual: dict[str, torch.Tensor]) -> None:
    wrong = []
    for name, expected in golden.expected.items():
        found = float(actual[name])
        same = math.isnan(found) if math.isnan(expected) else abs(found - expected) <= tolerance(name)
        if not same:
            wrong.append(f"{name}: {found!r}, expected {expected!r}")
    assert not wrong, f"{golden.name}: " + "; ".join(wrong)


def evaluate(golden: Golden, size: int) -> dict[str, torch.Tensor]:
    metric = AnomalyMetrics(pixel=EVERYTHING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of undefined values; test_pixel looks at them
        if not golden.scores.size and golden.maps:
            pixel = PixelMetrics(**EVERYTHING)
            pixel.update(golden.maps, golden.masks)
            return pixel.compute()
        for rows in in_batches(len(golden.maps), size):
            metric.update(
                golden.scores[rows],
                [torch.from_numpy(golden.maps[i]) for i in rows],
                golden.labels[rows],
                [torch.from_numpy(golden.masks[i]) for i in rows],
                category=[golden.category[i] for i in rows] if golden.category else None,
            )
        return metric.compute()


@pytest.mark.parametrize("path", golden_files(), ids=lambda path: path.stem)
def test_every_file(path: Path) -> None:
    golden = load_golden(path)
    assert not golden.keys, f"{golden.name}: neither read nor compared: {sorted(golden.keys)}"
    if golden.raises:
        before = AnomalyMetrics()
        with pytest.raises(ValueError, match="nan"):
            before.update(golden.scores, golden.maps, golden.labels, golden.masks)
        assert not before.engines["pixel"].stores
        LEDGERS[f"metrics/{golden.name}"] = (1, 1)
        return
    compare(golden, evaluate(golden, 2))
    LEDGERS[f"metrics/{golden.name}"] = (len(golden.expected), len(golden.expected))


@pytest.mark.parametrize("bins", [65536, 200])
@pytest.mark.parametrize("path", golden_files(), ids=lambda path: path.stem)
def test_binned_intervals_contain_the_value(path: Path, bins: int) -> None:
    golden = load_golden(path)
    if golden.raises:
        return
    options = {"mode": "binned", "bins": bins, "aupro_limits": (0.3, 0.05, 0.1, 1.0), "connectivity": (8, 4)}
    found = pixel_metrics(golden.maps, golden.masks, category=golden.category, **options)
    checked = 0
    for name, expected in golden.expected.items():
        if "image" in name or "legacy" in name or "mean_count" in name:
            continue
        low, high = float(found[f"{name}/lower"]), float(found[f"{name}/upper"])
        assert (math.isnan(low) and math.isnan(high)) if math.isnan(expected) else low <= expected <= high, name
        checked += 1
    assert checked >= 4


@pytest.mark.parametrize("path", golden_files(), ids=lambda path: path.stem)
def test_functions_give_the_same(path: Path) -> None:
    golden = load_golden(path)
    if golden.raises:
        with pytest.raises(ValueError, match="nan"):
            pixel_metrics(golden.maps, golden.masks)
        return
    found = pixel_metrics(golden.maps, golden.masks, category=golden.category, **EVERYTHING)
    if golden.scores.size or not golden.maps:
        found.update(image_metrics(golden.scores, golden.labels, category=golden.category))
    compare(golden, found)


@pytest.mark.parametrize("path", golden_files(), ids=lambda path: path.stem)
def test_pixels_as_images(path: Path) -> None:
    """The image engine on single pixels gives the pixel values; 18 million of them are beyond a float32 counter."""
    golden = load_golden(path)
    if golden.raises or golden.category or not golden.maps:
        return
    masks = [mask.reshape(-1) for mask in golden.masks]
    scores = np.concatenate([part.reshape(-1)[mask != 255] for part, mask in zip(golden.maps, masks, strict=True)])
    found = image_metrics(scores, np.concatenate([mask[mask != 255] for mask in masks]))
    values = {name.replace("image", "pixel"): value for name, value in found.items()}
    shared = {name: value for name, value in golden.expected.items() if name in values}
    assert len(shared) >= 4
    compare(replace(golden, expected=shared), values)
