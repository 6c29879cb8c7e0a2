"""Patch memory against the plain distance matrix; coreset, bounds."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_vlm.errors import UserError
from anomaly_vlm.methods.shared.patch_memory import PatchMemory, aligned_distance, greedy_coreset, nearest_distance


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plain(queries: Tensor, bank: Tensor, neighbours: int) -> Tensor:
    distances = (1 - F.cosine_similarity(queries[..., None, :], bank, dim=-1)) / 2
    return distances.topk(min(neighbours, len(bank)), largest=False).values.mean(dim=-1)


@pytest.mark.parametrize("neighbours", [1, 3, 50])
@pytest.mark.parametrize("memory_mb", [1e-6, 1e-4, 5e-4, 256])  # one similarity, tiles of columns, tiles of rows, all
def test_equals_the_distance_matrix(neighbours: int, memory_mb: float) -> None:
    queries, bank = draw(2, 7, 16) * 3, F.normalize(draw(37, 16, seed=1), dim=-1)
    found = nearest_distance(queries, bank, neighbours=neighbours, memory_mb=memory_mb)
    assert found.shape == (2, 7)
    torch.testing.assert_close(found, plain(queries, bank, neighbours))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_equals_cpu() -> None:
    memory = PatchMemory(draw(3000, 64), memory_mb=0.1)
    queries = draw(4, 30, 64, seed=1)
    expected = memory(queries)
    torch.testing.assert_close(memory.cuda()(queries.cuda()).cpu(), expected, rtol=1e-3, atol=1e-5)


def test_own_patches_are_at_distance_zero_and_opposite_ones_at_one() -> None:
    features = F.normalize(draw(1, 16), dim=-1)
    memory = PatchMemory(features[None])
    torch.testing.assert_close(
        memory(torch.stack([features, -features])), torch.tensor([[0.0], [1.0]]), atol=1e-6, rtol=0
    )
    assert (memory(features) >= 0).all()


def test_half_precision_queries_keep_small_distances_under_autocast() -> None:
    bank = F.normalize(draw(50, 64), dim=-1)
    queries = bank + 0.01 * draw(50, 64, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = nearest_distance(queries, bank)
    torch.testing.assert_close(found, plain(queries, bank, 1))


def test_tiles_bound_the_similarities(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    product = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: sizes.append((out := product(a, b)).nbytes) or out)
    nearest_distance(draw(300, 8), F.normalize(draw(500, 8), dim=-1), memory_mb=0.02)
    assert max(sizes) <= 20_000
    assert sum(sizes) == 300 * 500 * 4


def test_coreset_covers_better_than_a_random_part_and_depends_on_the_seed_alone() -> None:
    features = F.normalize(torch.cat([draw(200, 8) * 0.05 + 1, draw(10, 8, seed=1)]), dim=-1)
    kept = greedy_coreset(features, 12, seed=5)
    assert torch.equal(kept, greedy_coreset(features, 12, seed=5))
    assert len(kept.unique()) == 12
    radius = nearest_distance(features, features[kept]).max()
    assert radius < nearest_distance(features, features[torch.arange(12)]).max() / 2
    assert torch.equal(greedy_coreset(features, 500), torch.arange(210))


def test_coreset_share_and_state() -> None:
    memory = PatchMemory(draw(4, 25, 8), coreset=0.1)
    assert memory.bank.shape == (10, 8)
    assert set(memory.state_dict()) == {"bank"}
    torch.testing.assert_close(memory.bank.norm(dim=-1), torch.ones(10))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"coreset": 0.0}, "method.coreset"),
        ({"memory_mb": 0}, "method.memory_mb"),
        ({"neighbours": 0}, "method.neighbours"),
    ],
)
def test_wrong_options(options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        PatchMemory(draw(5, 4), **options)


def test_aligned_distances_look_near_their_own_position_alone():
    bank, queries = draw(3, 4, 5, 6), draw(2, 4, 5, 6, seed=1)
    unit_bank, unit = F.normalize(bank, dim=-1), F.normalize(queries, dim=-1)
    own = (1 - torch.einsum("bhwd,rhwd->bhwr", unit, unit_bank).amax(dim=-1)) / 2
    torch.testing.assert_close(aligned_distance(queries, bank, radius=0), own)
    everywhere = nearest_distance(queries, unit_bank.flatten(0, 2))
    torch.testing.assert_close(aligned_distance(queries, bank, radius=4), everywhere)
    shifted = bank[:1].roll(1, dims=2)
    assert aligned_distance(shifted, bank[:1], radius=0).mean() > 0.2
    assert aligned_distance(shifted, bank[:1], radius=1)[:, :, 1:].max() < 1e-6


def test_euclidean_distances_are_roots_of_mean_squares():
    queries, bank = draw(7, 5), draw(9, 5, seed=1)
    nearest = torch.cdist(queries, bank).sort(dim=1).values[:, :3]
    found = nearest_distance(queries, bank, neighbours=3, metric="euclidean", memory_mb=1e-4)
    torch.testing.assert_close(found, nearest.square().mean(dim=1).sqrt())
