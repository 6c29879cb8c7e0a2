"""Two and three processes give what one gives: the same values, repeats counted once, no deadlock with idle ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from anomaly_vlm.metrics import AUROC, ImageMetrics, PixelMetrics
from anomaly_vlm.metrics.functional import image_metrics, pixel_metrics
from tests.metrics import ddp_worker
from tests.metrics.cases import EVERYTHING, padded_shares, random_case

Results = dict[str, float]
ROOT = Path(__file__).parents[2]


WORLDS = (2, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where every rank of every group has left its results."""
    out = tmp_path_factory.mktemp("groups")
    command = [sys.executable, "-m", "tests.metrics.ddp_worker", str(out), *map(str, WORLDS)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-4000:]
    return out


@pytest.fixture(params=WORLDS)
def group(request: pytest.FixtureRequest, folder: Path) -> list[dict[str, Results]]:
    """Results of every rank by case."""
    return [np.load(folder / f"{request.param}_{rank}.npy", allow_pickle=True).item() for rank in range(request.param)]


def same(actual: list[Results], expected: dict[str, torch.Tensor]) -> None:
    """Every rank has exactly the expected names and values; counts and thresholds are equal, sums within 1e-12."""
    wanted = {name: float(value) for name, value in expected.items()}
    for rank, values in enumerate(actual):
        assert list(values) == list(wanted), rank
        for name, value in wanted.items():
            exact = "num_" in name or "threshold" in name or "count" in name
            np.testing.assert_allclose(values[name], value, rtol=0, atol=0 if exact else 1e-12, err_msg=name)
        assert values == pytest.approx(actual[0], rel=0, abs=0, nan_ok=True)


def test_repeats_of_the_sampler_count_once(group: list[dict[str, Results]]) -> None:
    case = random_case(1)
    expected = {
        **pixel_metrics(case.maps, case.masks, category=case.category, **EVERYTHING),
        **image_metrics(case.scores, case.labels, category=case.category),
    }
    same([part["padded"] for part in group], expected)


def test_half_precision_tables(group: list[dict[str, Results]]) -> None:
    case = random_case(2)
    maps = [part.astype(np.float16) for part in case.maps]
    same([part["half"] for part in group], pixel_metrics(maps, case.masks, category=case.category, **EVERYTHING))


def test_maps_of_all_precisions(group: list[dict[str, Results]]) -> None:
    case = random_case(3, void=True, levels=8)
    kinds = (torch.float32, torch.float16, torch.bfloat16)
    maps = [torch.from_numpy(part).to(kinds[i % 3]).float() for i, part in enumerate(case.maps)]
    same(
        [part["mixed"] for part in group],
        pixel_metrics(maps, case.masks, category=case.category, aupro_limits=(0.3, 0.1)),
    )


def test_idle_ranks(group: list[dict[str, Results]]) -> None:
    case = random_case(4)
    first = pixel_metrics(case.maps[:10], case.masks[:10], category=case.category[:10])
    both = pixel_metrics(case.maps, case.masks, category=case.category)
    same([part["idle"] for part in group], {**{f"first/{name}": value for name, value in first.items()}, **both})


def test_overlapping_shares(group: list[dict[str, Results]]) -> None:
    case = random_case(5)
    same([part["shared"] for part in group], pixel_metrics(case.maps, case.masks, category=case.category))


def test_without_index_repeats_count_and_one_warning_says_so(group: list[dict[str, Results]]) -> None:
    case = random_case(6)
    shares = padded_shares(23, len(group))
    rows = [i for share in shares for i in share]
    expected = pixel_metrics(
        [case.maps[i] for i in rows], [case.masks[i] for i in rows], category=[case.category[i] for i in rows]
    )
    warned = [part["unnumbered"].pop("warnings") for part in group]
    assert warned == [1.0] + [0.0] * (len(group) - 1)
    same([part["unnumbered"] for part in group], expected)


def test_image_level(group: list[dict[str, Results]]) -> None:
    case = random_case(7)
    same([part["images"] for part in group], image_metrics(case.scores, case.labels, category=case.category))


def test_binned(group: list[dict[str, Results]]) -> None:
    case = random_case(13)
    expected = pixel_metrics(case.maps, case.masks, category=case.category, mode="binned", bins=64, connectivity=(8, 4))
    same([part["binned"] for part in group], expected)


def test_binned_with_an_idle_rank(group: list[dict[str, Results]]) -> None:
    case = random_case(14)
    maps = [part.astype(np.float16) for part in case.maps]
    expected = pixel_metrics(maps, case.masks, category=case.category, mode="binned")
    same([part["binned_idle"] for part in group], expected)


def test_repeats_that_cannot_be_subtracted_raise_everywhere(group: list[dict[str, Results]]) -> None:
    assert [part["stuck"]["named"] for part in group] == [1.0] * len(group)


def test_forward_is_of_one_process(group: list[dict[str, Results]]) -> None:
    case = random_case(9)
    rows = [i for i in range(23) if case.labels[i]]
    everything = AUROC()
    everything.update([case.maps[i] for i in rows], [case.masks[i] for i in rows])
    for part in group:
        row = int(part["forward"]["row"])
        alone = AUROC()
        alone.update(case.maps[row], case.masks[row])
        assert part["forward"]["batch"] == pytest.approx(float(alone.compute()), abs=1e-15)
        assert part["forward"]["all"] == pytest.approx(float(everything.compute()), abs=1e-15)


@pytest.mark.parametrize("cast", [torch.float32, torch.float16])
@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("options", [EVERYTHING, {"mode": "binned", "bins": 50}], ids=["exact", "binned"])
def test_merge_state_does_the_same_in_one_process(cast: torch.dtype, ranks: int, options: dict) -> None:
    case = random_case(10)
    parts = []
    for share in padded_shares(23, ranks):
        parts.append(PixelMetrics(**options))
        ddp_worker.feed(parts[-1], case, share, cast=cast)
    for part in parts[1:]:
        parts[0].merge_state(part)
    maps = [torch.from_numpy(part).to(cast) for part in case.maps]
    same(
        [ddp_worker.as_floats(parts[0].compute())],
        pixel_metrics(maps, case.masks, category=case.category, **options),
    )


def test_merge_state_of_image_scores() -> None:
    case = random_case(11)
    first, second = ImageMetrics(), ImageMetrics()
    first.update(case.scores[:12], case.labels[:12], index=range(12))
    second.update(case.scores[8:], case.labels[8:], index=range(8, 23))
    first.merge_state(second)
    same([ddp_worker.as_floats(first.compute())], image_metrics(case.scores, case.labels))


def test_merge_state_refuses_what_it_cannot_subtract() -> None:
    case = random_case(12)
    first, second = PixelMetrics(), PixelMetrics()
    ddp_worker.feed(first, case, [0, 1, 2], cast=torch.float16)
    ddp_worker.feed(second, case, [3, 1, 4], cast=torch.float16)
    before = ddp_worker.as_floats(first.compute())
    with pytest.raises(ValueError, match=r"index 1,.*cannot subtract"):
        first.merge_state(second)
    assert ddp_worker.as_floats(first.compute()) == pytest.approx(before, rel=0, abs=0, nan_ok=True)
    with pytest.raises(ValueError, match="cannot merge ImageMetrics into PixelMetrics"):
        first.merge_state(ImageMetrics())
    with pytest.raises(ValueError, match=r"recall=0\.9"):
        first.merge_state(PixelMetrics(recall=0.9))
