"""States: copied, stored, moved, sorted in threads, and of bounded size."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch

from anomaly_vlm.metrics import AnomalyMetrics, PixelMetrics
from anomaly_vlm.metrics._engine.columns import DeviceColumn
from anomaly_vlm.metrics._engine.exact import ExactEngine
from anomaly_vlm.metrics.functional import pixel_metrics
from tests.metrics.cases import EVERYTHING, random_case
from tests.metrics.test_inputs import square
from tests.metrics.test_metric import MODES, NAMES, equal, filled


@pytest.mark.filterwarnings("ignore:the (pixel|image) values:UserWarning")
@pytest.mark.parametrize("options", MODES, ids=NAMES)
def test_copies_are_independent(options: dict[str, Any]) -> None:
    case = random_case(37)
    metric = filled(case, **options)
    expected = metric.compute()
    for twin in (pickle.loads(pickle.dumps(metric)), copy.deepcopy(metric), metric.clone()):
        equal(twin.compute(), expected)
        twin.update(
            [0.5], *(part[None] for part in (torch.ones(9, 9), torch.tensor([1]))), torch.ones(1, 9, 9), category="new"
        )
        assert "new/pixel_auroc" in twin.values()
        equal(metric.compute(), expected)


@pytest.mark.filterwarnings("ignore:the (pixel|image) values:UserWarning")
@pytest.mark.parametrize("options", MODES, ids=NAMES)
def test_checkpoints(options: dict[str, Any]) -> None:
    case = random_case(38)
    metric = torch.nn.ModuleDict({"metric": filled(case, **options)})
    assert not metric.state_dict()
    metric["metric"].persistent(True)
    buffer = io.BytesIO()
    torch.save(metric.state_dict(), buffer)
    buffer.seek(0)
    other = torch.nn.ModuleDict({"metric": AnomalyMetrics(pixel=options)})
    other.load_state_dict(torch.load(buffer, weights_only=True))
    equal(other["metric"].compute(), metric["metric"].compute())
    more = ([0.5], torch.rand(1, 9, 9, generator=torch.Generator().manual_seed(0)), [1], torch.eye(9)[None])
    for part in (metric, other):
        part["metric"].update(*more, category="tile", index=[3])  # a repeat
        part["metric"].update(*more, category="tile", index=[99])
    equal(other["metric"].compute(), metric["metric"].compute())
    with pytest.raises(ValueError, match="the stored metric was made with mode="):
        AnomalyMetrics(pixel={"recall": 0.5}).load_state_dict(metric["metric"].state_dict())


def test_moving_keeps_states_on_the_cpu() -> None:
    metric = filled(random_case(39))
    expected = metric.compute()
    equal(metric.to("cpu").half().double().compute(), expected)
    assert metric.to("meta").device == torch.device("meta")
    equal(metric.compute(), expected)


def test_states_as_tensors_of_a_device() -> None:
    """The path of `device="cuda"`, run on CPU tensors: tensor sorts and searches."""
    case, metric = random_case(40, void=True, levels=16), PixelMetrics(**EVERYTHING, device="cuda")
    engine: ExactEngine = metric.engines["pixel"]
    engine.to(torch.device("meta"))
    assert engine.moves and engine.options.device == torch.device("meta")
    object.__setattr__(engine.options, "device", torch.device("cpu"))
    for rows in ([0, 1, 2], list(range(3, 23)), [1]):
        given = case.rows(rows)
        metric.update([torch.from_numpy(part) for part in given.pop("maps")], given.pop("masks"), **given)
    assert all(isinstance(store.normals, DeviceColumn) for store in engine.stores.values())
    expected = pixel_metrics(case.maps, case.masks, category=case.category, **EVERYTHING)
    equal(metric.compute(), expected)
    metric.to("cpu")
    assert not any(isinstance(store.normals, DeviceColumn) for store in engine.stores.values())
    equal(metric.compute(), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("device", [None, "cuda"])
def test_maps_on_a_gpu(device: str | None) -> None:
    case = random_case(41)
    metric = PixelMetrics(**EVERYTHING, device=device)
    for maps, mask in zip(case.maps, case.masks, strict=True):
        metric.update(torch.from_numpy(maps).cuda(), torch.from_numpy(mask).cuda())
    equal(metric.compute(), pixel_metrics(case.maps, case.masks, **EVERYTHING))


def test_workers_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from anomaly_vlm.metrics._engine import columns, counts

    case = random_case(44)
    expected = pixel_metrics(case.maps, case.masks, **EVERYTHING, workers=1)
    monkeypatch.setattr(counts, "BLOCK", 500)
    monkeypatch.setattr(columns.Column, "smallest", 64)
    monkeypatch.setattr(columns.Column, "largest", 300)
    equal(pixel_metrics(case.maps, case.masks, **EVERYTHING, workers=3), expected)


def test_half_state_does_not_grow() -> None:
    maps, masks = square(5, count=4, side=64)
    metric = PixelMetrics(**EVERYTHING)
    sizes = []
    for _ in range(3):
        metric.update(maps.half(), masks)
        sizes.append(sum(array.nbytes for array in metric.engines["pixel"].pack().values()))
    assert sizes[0] == sizes[2] < 3.2e6


def test_binned_state_does_not_grow() -> None:
    metric, sizes = PixelMetrics(mode="binned", bins=1000), []
    for seed in range(6):
        metric.update(*square(seed, count=4, side=64), category="a")
        sizes.append(sum(array.nbytes for array in metric.engines["pixel"].pack().values()))
    assert max(sizes) < 40_000
