"""AnomalyCLIP and FAPrompt on the golden fixtures, tokens from the cache against tokens computed in the step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from anomaly_vlm.caching.tokens import TokenCache
from anomaly_vlm.data.types import Batch
from anomaly_vlm.methods.anomalyclip.dual_path import DualPathMethod
from tests.methods.anomalyclip.test_anomalyclip_golden import build as build_anomalyclip
from tests.methods.faprompt.test_faprompt_golden import build as build_faprompt
from tests.support.dual_path import make_batch
from tests.support.golden import Fixture, fixture_paths

pytestmark = pytest.mark.golden

EPS = torch.finfo(torch.float32).eps


def anomalyclip(fixture: Fixture, folder: Path) -> list[DualPathMethod]:
    o = fixture.options()
    return [build_anomalyclip(fixture, layers, folder) for layers in (o["layers"], o["multi_layers"])]


def faprompt(fixture: Fixture, folder: Path) -> list[DualPathMethod]:
    return [build_faprompt(fixture, group, folder) for group in ("", "topk")]


METHODS: dict[str, Callable[[Fixture, Path], list[DualPathMethod]]] = {"anomalyclip": anomalyclip, "faprompt": faprompt}
CASES = [(name, path) for name in METHODS for path in fixture_paths(name)]


def loss_and_gradients(method: DualPathMethod, batch: Batch) -> dict[str, Tensor]:
    """Every term, the total, and the gradient of every learned parameter."""
    method.zero_grad(set_to_none=True)
    values = method.losses(batch)
    total = method.total_loss(values)
    total.backward()
    found = {f"loss {name}": value.detach() for name, value in values.items()} | {"loss": total.detach()}
    for name, parameter in method.learnable().items():
        assert parameter.grad is not None, name
        found[f"gradient of {name}"] = parameter.grad.clone()
    return found


def check_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Equal to 1e-6 relative (bit by bit where products do not depend on threads or memory alignment). A gradient sums terms
    of both signs, so that an entry near zero carries the rounding of large ones: a few float32 steps of the tensor's largest
    entry are let through on top."""
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        atol = 8 * EPS * value.abs().max().item()
        torch.testing.assert_close(actual[name], value, rtol=1e-6, atol=atol, msg=lambda m, name=name: f"{name}: {m}")


def served(batch: Batch, cache: TokenCache, *, missing: int = 0) -> Batch:
    """The batch as the loader gives it: tokens in place of the images, but for the first `missing` ones."""
    tokens = [None] * missing + [cache.get(key) for key in batch.key[missing:]]
    assert all(entry is not None for entry in tokens[missing:])
    return replace(batch, unencoded=batch.image[:missing], tokens=tokens)


@pytest.mark.parametrize("kind", ["memory", "disk"])
@pytest.mark.parametrize(("name", "path"), CASES, ids=lambda value: getattr(value, "stem", value))
def test_the_same_loss_and_gradients(
    name: str, path: Path, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixture = Fixture(path)
    batch = make_batch(fixture)
    for method in METHODS[name](fixture, tmp_path):
        expected = loss_and_gradients(method, batch)
        about = method.cache_key() or {}
        options = {"memory_bytes": 10**8} if kind == "memory" else {"folder": tmp_path / "cache"}
        cache = method.token_cache = TokenCache(about, **options)
        check_same(loss_and_gradients(method, batch), expected)  # the epoch that fills the cache
        assert cache.written == (len(batch) if kind == "disk" else 0)
        if kind == "disk":
            cache = method.token_cache = TokenCache(about, **options)  # another run's, which must read the files
        monkeypatch.setattr(type(method), "encode_frozen", _never)
        check_same(loss_and_gradients(method, served(batch, cache)), expected)
        assert cache.hits == len(batch)
        monkeypatch.undo()


@pytest.mark.parametrize(("name", "path"), CASES, ids=lambda value: getattr(value, "stem", value))
def test_a_batch_half_from_the_cache(name: str, path: Path, tmp_path: Path) -> None:
    """The tower sees the missing images alone: a batch of another size, whose products round otherwise, so to 1e-5."""
    fixture = Fixture(path)
    batch = make_batch(fixture)
    for method in METHODS[name](fixture, tmp_path):
        expected = loss_and_gradients(method, batch)
        method.token_cache = TokenCache(method.cache_key() or {}, memory_bytes=10**8)
        loss_and_gradients(method, batch)
        mixed = loss_and_gradients(method, served(batch, method.token_cache, missing=1))
        for key, value in expected.items():
            atol = 1e-5 * value.abs().max().item()
            torch.testing.assert_close(mixed[key], value, rtol=1e-5, atol=atol, msg=lambda m, key=key: f"{key}: {m}")


def _never(self: DualPathMethod, images: Tensor) -> dict[str, Tensor]:
    raise AssertionError(f"{len(images)} images passed the tower")
