"""AUPIMO and F1 at thresholds of normal images: by hand, against brute force, and however the images come."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anomaly_vlm.metrics import AUPIMO, AnomalyMetrics
from anomaly_vlm.metrics.decisions import aupimo, mean_f1, normal_threshold, seg_f1


def brute_force(maps: np.ndarray, masks: np.ndarray, low: float, high: float) -> np.ndarray:
    """The definition on a fine axis: at each false-positive rate, the lowest threshold that does not exceed it."""
    normal = [one for one, mask in zip(maps, masks, strict=True) if not (mask == 1).any()]
    candidates = np.unique(np.concatenate([one.ravel() for one in normal]))
    thresholds = np.append(candidates, np.inf)  # the lowest one of a rate lies just above a normal score: compare by >
    rates = np.array([np.mean([(one > t).mean() for one in normal]) for t in candidates] + [0.0])
    axis = np.exp((np.arange(4000) + 0.5) / 4000 * math.log(high / low)) * low
    out = np.full(len(maps), np.nan)
    for i, (one, mask) in enumerate(zip(maps, masks, strict=True)):
        if (mask == 1).any():
            overlaps = []
            for z in axis:
                t = thresholds[np.flatnonzero(rates <= z + 1e-12)[0]]
                overlaps.append((one[mask == 1] > t).mean())
            out[i] = np.mean(overlaps)
    return out


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([(0.01, 0.2), (0.05, 0.9), (1e-4, 1.0)]), st.integers(2, 12))
def test_aupimo_is_its_definition(seed: int, bounds: tuple[float, float], levels: int) -> None:
    rng = np.random.default_rng(seed)
    maps = rng.integers(levels, size=(6, 5, 7)).astype(np.float32)  # with ties
    masks = (rng.random((6, 5, 7)) < 0.3).astype(np.uint8)
    masks[:3] = 0
    masks[5, 0] = 255
    maps[masks == 1] += 1
    clean = np.where(masks == 255, 0, masks)
    clean_maps = maps.copy()
    expected = brute_force(clean_maps, clean, *bounds)
    np.testing.assert_allclose(aupimo(maps, masks, bounds), expected, atol=2e-3)


def test_aupimo_by_hand() -> None:
    maps = torch.tensor([[[0.1, 0.2], [0.3, 0.4]], [[0.1, 0.1], [0.35, 0.9]]])
    masks = torch.tensor([[[0, 0], [0, 0]], [[0, 0], [1, 1]]])
    expected = (math.log(2.5) * 0.5 + math.log(2) * 1.0) / math.log(5)
    values = aupimo(maps, masks, (0.1, 0.5))
    assert math.isnan(values[0]) and values[1] == pytest.approx(expected)


def test_normal_images_of_different_sizes_weigh_alike() -> None:
    maps = [np.array([[1.0, 0.0]], np.float32), np.zeros((4, 4), np.float32), np.array([[0.5, 0.5]], np.float32)]
    masks = [np.zeros((1, 2), np.uint8), np.zeros((4, 4), np.uint8), np.array([[0, 1]], np.uint8)]
    # The score 1 is half of one of two images: a rate of 0.25. Below that rate the threshold lies above 1.
    values = aupimo(maps, masks, (0.1, 0.5))
    assert values[2] == pytest.approx(math.log(2) / math.log(5))


def test_undefined_without_normal_images_and_refused_bounds() -> None:
    assert np.isnan(aupimo(np.ones((1, 2, 2), np.float32), np.ones((1, 2, 2), np.uint8))).all()
    for wrong in ((0.1,), (0.2, 0.1), (0.0, 0.1)):
        with pytest.raises(ValueError, match="aupimo is"):
            AUPIMO(fpr_bounds=wrong)


def images(seed: int = 0, count: int = 12) -> tuple[np.ndarray, np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    maps = rng.random((count, 16, 16)).astype(np.float32)
    masks = np.zeros((count, 16, 16), np.uint8)
    masks[::2, 3:8, 2:9] = 1
    return maps + 0.5 * masks, masks, ["ab"[i // 2 % 2] for i in range(count)]


def test_batches_merges_repeats_and_state_give_the_same() -> None:
    maps, masks, names = images()
    whole = AUPIMO((1e-2, 0.3))
    whole.update(maps, masks, category=names, index=np.arange(12))
    parts = [AUPIMO((1e-2, 0.3)) for _ in range(2)]
    for i, rows in enumerate((range(7), range(5, 12))):  # images 5 and 6 come twice
        for row in rows:
            parts[i].update(maps[row], masks[row], category=names[row], index=[row])
    parts[0].merge_state(parts[1])
    assert parts[0].compute() == whole.compute()
    whole.persistent(True)
    other = AUPIMO((1e-2, 0.3))
    other.load_state_dict(whole.state_dict())
    assert other.compute() == whole.compute()
    with pytest.raises(ValueError, match="was made with"):
        AUPIMO().load_state_dict(whole.state_dict())
    listed = whole.per_image()
    values = {number: value for rows in listed.values() for number, value in rows}
    assert sorted(values) == [0, 2, 4, 6, 8, 10] and sorted(listed) == ["a", "b"]
    means = [np.mean([value for _, value in rows]) for rows in listed.values()]
    assert whole.compute().item() == pytest.approx(np.mean(means))


def test_a_run_selects_them_by_name() -> None:
    maps, masks, names = images()
    metric = AnomalyMetrics(
        image={"calibration_bins": 5}, whole_images={"aupimo": (1e-2, 0.3), "seg_f1_sigmas": 2, "mean_f1": True}
    )
    labels = masks.any(axis=(1, 2)).astype(int)
    metric.update(maps.max(axis=(1, 2)) / 2, maps, labels, masks, category=names, index=np.arange(12))
    values = metric.compute()
    for name in ("pixel_aupimo", "pixel_seg_f1", "pixel_mean_f1", "image_calibration_error"):
        assert 0 <= values[f"mean/{name}"] <= 1 and f"a/{name}" in values and f"pooled/{name}" in values
    rows = [i for i, name in enumerate(names) if name == "a"]
    normal = [maps[i] for i in rows if not labels[i]]
    threshold = normal_threshold(normal, 2)
    assert values["a/pixel_seg_f1_threshold"].item() == pytest.approx(threshold)
    assert values["a/pixel_seg_f1"].item() == pytest.approx(seg_f1(maps[rows], masks[rows], threshold))
    assert values["a/pixel_mean_f1"].item() == pytest.approx(mean_f1(maps[rows], masks[rows]))
    assert "pixel_aupimo" not in " ".join(AnomalyMetrics().engines)


def test_seg_f1_and_mean_f1_by_hand() -> None:
    normal = np.array([[[0.0, 0.2], [0.2, 0.4]]], np.float32)
    threshold = normal_threshold(normal, 3)
    assert threshold == pytest.approx(0.2 + 3 * math.sqrt(0.02))
    maps = np.array([[[0.0, 1.0], [0.7, 0.5]]], np.float32)
    masks = np.array([[[0, 1], [0, 1]]], np.uint8)
    assert seg_f1(maps, masks, threshold) == pytest.approx(2 * 1 / (2 * 1 + 1 + 1))  # 1.0 found, 0.7 alarm, 0.5 missed
    by_hand = []
    for share in (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8):
        above = maps > np.float32(share)
        hits, alarms = (above & (masks == 1)).sum(), (above & (masks == 0)).sum()
        by_hand.append(2 * hits / (hits + alarms + 2))
    assert mean_f1(maps, masks) == pytest.approx(np.mean(by_hand))
