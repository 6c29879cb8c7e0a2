"""Properties that hold for every input, on small random cases: against a brute-force reference and against itself."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from anomaly_vlm.metrics import PixelMetrics
from anomaly_vlm.metrics._engine import binned as binned_engine
from anomaly_vlm.metrics.functional import image_metrics, pixel_metrics
from tests.metrics.reference import brute_force

SETTINGS = settings(
    deadline=None,
    max_examples=60,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)

SPECIAL = [0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 3.4e38, -3.4e38, 0.5, 0.25, 1e-20]
SCORES = st.one_of(st.sampled_from(SPECIAL), st.integers(-8, 8).map(float), st.floats(-10, 10, width=32))
GRID = st.integers(-6, 6).map(lambda level: level / 4)

Images = list[tuple[np.ndarray, np.ndarray]]


@st.composite
def images(draw: Any, scores: st.SearchStrategy[float] = SCORES, most: int = 4) -> Images:
    """Up to `most` images of up to 7 x 7 pixels; void pixels and regions of any shape."""
    out = []
    for _ in range(draw(st.integers(1, most))):
        shape = draw(st.tuples(st.integers(1, 7), st.integers(1, 7)))
        mask = draw(hnp.arrays(np.uint8, shape, elements=st.sampled_from([0, 0, 0, 1, 1, 255])))
        out.append((draw(hnp.arrays(np.float32, shape, elements=scores)), mask))
    return out


def unzip(pairs: Images) -> tuple[list[np.ndarray], list[np.ndarray]]:
    return [part for part, _ in pairs], [mask for _, mask in pairs]


def close(
    actual: dict[str, torch.Tensor], expected: dict[str, Any], *, skip: str = "-", tolerance: float = 1e-12
) -> None:
    for name, value in expected.items():
        if skip in name:
            continue
        found, wanted = float(actual[name]), float(value)
        assert math.isnan(found) == math.isnan(wanted), (name, found, wanted)
        bound = 0.0 if "num_" in name or "threshold" in name else tolerance
        assert math.isnan(wanted) or abs(found - wanted) <= bound, (name, found, wanted)


@SETTINGS
@given(images())
def test_exact_is_the_brute_force_value(pairs: Images) -> None:
    maps, masks = unzip(pairs)
    close(pixel_metrics(maps, masks, connectivity=(8, 4)), brute_force(maps, masks))


@SETTINGS
@given(images(), st.sampled_from([0.01, 0.05, 0.5, 1.0]))
def test_limits(pairs: Images, limit: float) -> None:
    maps, masks = unzip(pairs)
    found = pixel_metrics(maps, masks, aupro_limits=limit)[f"pixel_aupro_limit{limit:g}"]
    close({"value": found}, {"value": brute_force(maps, masks, limit)["pixel_aupro"]})


@SETTINGS
@given(images(GRID), st.sampled_from(["cube", "exp", "rank", "tiny"]))
def test_increasing_maps_change_only_the_threshold(pairs: Images, kind: str) -> None:
    maps, masks = unzip(pairs)
    levels = np.unique(np.concatenate([part.reshape(-1) for part in maps]))
    new = {
        "cube": lambda part: part**3,
        "exp": lambda part: np.exp(4 * part),
        "rank": lambda part: np.searchsorted(levels, part).astype(np.float32),
        "tiny": lambda part: (part * np.float32(1e-38)).astype(np.float32),
    }[kind]
    changed = [new(part).astype(np.float32) for part in maps]
    close(pixel_metrics(changed, masks), pixel_metrics(maps, masks), skip="threshold")
    bins = {"mode": "binned", "bins": 1000}  # more than there are scores
    close(pixel_metrics(changed, masks, **bins), pixel_metrics(maps, masks, **bins), skip="threshold")


@SETTINGS
@given(images(), st.randoms(use_true_random=False), st.sampled_from(["exact", "half", "binned"]))
def test_order_and_batches_do_not_matter(pairs: Images, random: Any, kind: str) -> None:
    options = {"exact": {}, "half": {"half": True}, "binned": {"mode": "binned", "bins": 7}}[kind]
    if kind == "half":
        pairs = [(np.clip(part, -6e4, 6e4), mask) for part, mask in pairs]
    maps, masks = unzip(pairs)
    expected = pixel_metrics(maps, masks, **options)
    order = list(range(len(pairs)))
    random.shuffle(order)
    metric = PixelMetrics(**options)
    while order:
        take = random.randint(1, len(order))
        rows, order = order[:take], order[take:]
        metric.update([maps[i] for i in rows], [masks[i] for i in rows], index=rows)
        metric.update([maps[i] for i in rows], [masks[i] for i in rows], index=rows)  # a repeat counts once
    metric._warned.add("pixel")
    actual = metric.compute()
    close(actual, expected)
    close(metric.compute(), actual, tolerance=0.0)


@SETTINGS
@given(images(st.floats(-100, 100, width=16)), st.sampled_from([torch.float16, torch.bfloat16]))
def test_half_precision_maps_are_exact(pairs: Images, kind: torch.dtype) -> None:
    maps, masks = unzip(pairs)
    halves = [torch.from_numpy(part).to(kind) for part in maps]
    options = {"connectivity": (8, 4), "legacy": True, "aupro_limits": (0.3, 1.0)}
    expected = pixel_metrics([part.float() for part in halves], masks, **options)
    close(pixel_metrics(halves, masks, **options), expected)


TIED = [
    (np.zeros((5, 6), np.float32), np.zeros((5, 6), np.uint8)),
    (np.eye(1, 6, 5, dtype=np.float32), np.ones((1, 6), np.uint8)),
]


@SETTINGS
@example(pairs=TIED, bins=2, flush=4)  # two thresholds attain the same F1: the larger one is the exact one
@given(images(), st.integers(2, 40), st.integers(4, 60))
def test_binned_intervals_contain_the_exact_value(pairs: Images, bins: int, flush: int) -> None:
    maps, masks = unzip(pairs)
    options = {"connectivity": (8, 4), "aupro_limits": (0.3, 0.05, 1.0)}
    exact = pixel_metrics(maps, masks, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(binned_engine, "FLUSH", flush)
        binned = pixel_metrics(maps, masks, mode="binned", bins=bins, **options)
    close(binned, pixel_metrics(maps, masks, mode="binned", bins=bins, **options))  # the buffer's size changes nothing
    assert binned["bins"] <= bins
    for name, value in exact.items():
        low, high, middle = (float(binned[f"{name}{part}"]) for part in ("/lower", "/upper", ""))
        if math.isnan(value):
            assert math.isnan(low) and math.isnan(high) and math.isnan(middle), name
            continue
        assert low <= float(value) <= high, (name, low, float(value), high)
        assert low <= middle <= high, name
        if binned["shift"] == 0:
            assert high - low <= 3e-12, name


@SETTINGS
@given(st.lists(st.tuples(SCORES, st.integers(0, 1)), min_size=1, max_size=30))
def test_image_level_is_the_brute_force_value(pairs: list[tuple[float, int]]) -> None:
    scores = np.array([score for score, _ in pairs], np.float32)
    labels = np.array([label for _, label in pairs], np.uint8)
    expected = brute_force([scores[None]], [labels[None]])
    actual = image_metrics(scores, labels)
    close(
        {name.replace("image", "pixel"): value for name, value in actual.items()},
        {name: value for name, value in expected.items() if "num_" not in name and "aupro" not in name},
    )
