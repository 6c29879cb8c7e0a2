"""Orders and limits: arithmetic of epochs, ranks, skips, and balanced parts."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomaly_vlm.data.limits import balanced
from anomaly_vlm.data.sampler import EpochSampler, ShardSampler
from anomaly_vlm.errors import UserError
from tests.data.made import squares


def epoch_of(sampler: EpochSampler, epoch: int) -> list[int]:
    sampler.set_epoch(epoch)
    pairs = list(sampler)
    assert {e for e, _ in pairs} <= {epoch}
    return [i for _, i in pairs]


def test_order_is_a_function_of_seed_and_epoch() -> None:
    sampler = EpochSampler(50, seed=1)
    first, second = epoch_of(sampler, 0), epoch_of(sampler, 1)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    assert epoch_of(EpochSampler(50, seed=1, epoch=1), 1) == second
    assert epoch_of(sampler, 0) == first
    assert epoch_of(EpochSampler(50, seed=2), 0) != first


@given(size=st.integers(1, 40), world=st.integers(1, 5), seed=st.integers(0, 3))
def test_ranks_share_one_permutation(size: int, world: int, seed: int) -> None:
    shares = [epoch_of(EpochSampler(size, seed=seed, rank=r, world_size=world), 2) for r in range(world)]
    assert {len(share) for share in shares} == {-(-size // world)}
    dealt = [i for turn in zip(*shares, strict=True) for i in turn]
    whole = epoch_of(EpochSampler(size, seed=seed), 2)
    assert dealt[:size] == whole
    assert dealt[size:] == (whole * world)[: len(dealt) - size]


@given(size=st.integers(1, 30), skip=st.integers(0, 30), world=st.integers(1, 3))
def test_skip_leaves_the_rest_of_the_first_epoch_only(size: int, skip: int, world: int) -> None:
    whole, resumed = (EpochSampler(size, seed=0, epoch=3, skip=s, world_size=world) for s in (0, skip))
    assert len(resumed) == len(whole)
    assert list(resumed) == list(whole)[skip:]
    assert epoch_of(resumed, 4) == epoch_of(whole, 4)


@given(size=st.integers(1, 40), world=st.integers(1, 5))
def test_shards_hold_every_index_once(size: int, world: int) -> None:
    if size < world:
        with pytest.raises(UserError, match=rf"{size} images for {world} processes: .* set trainer\.devices={size}"):
            ShardSampler(size, rank=0, world_size=world)
        return
    shards = [ShardSampler(size, rank=r, world_size=world) for r in range(world)]
    assert sorted(i for shard in shards for i in shard) == list(range(size))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    assert all(list(shard) == sorted(shard) for shard in shards)


def test_limits_are_balanced_over_category_and_label() -> None:
    samples = squares(40) + squares(6, category="disc") + squares(20, category="axle")
    counts = Counter((s.category, s.label) for s in balanced(samples, 24))
    assert counts == {("axle", 0): 5, ("axle", 1): 5, ("gear", 0): 4, ("gear", 1): 4, ("disc", 0): 3, ("disc", 1): 3}
    assert {(s.category, s.label) for s in balanced(samples, 2)} == {("axle", 0), ("axle", 1)}


@pytest.mark.parametrize("limit", [2, 3, 5, 7])
def test_small_limits_take_whole_categories(limit: int) -> None:
    samples = [sample for i in range(3) for sample in squares(4, category=f"part{i}")]
    part = balanced(samples, limit)
    labels = {name: {s.label for s in part if s.category == name} for name in {s.category for s in part}}
    assert len(part) == limit
    assert labels == {f"part{i}": {0, 1} for i in range(min(3, limit // 2))}


def test_limit_larger_than_the_whole_categories_that_it_serves() -> None:
    samples = squares(1, category="a") + squares(1, category="b", dataset="z") + squares(2, category="c", dataset="zz")
    assert len(balanced(samples, 3)) == 3


@given(limit=st.one_of(st.none(), st.integers(1, 80)))
def test_limits_keep_the_order_and_never_repeat(limit: int | None) -> None:
    samples = squares(40) + squares(7, category="disc")
    part = balanced(samples, limit)
    assert len(part) == min(limit or len(samples), len(samples))
    places = [samples.index(sample) for sample in part]
    assert places == sorted(set(places))
    assert part == balanced(samples, limit)


def test_limits_spread_over_a_group() -> None:
    assert [int(s.path[-5:]) for s in balanced(squares(40), 4) if not s.label] == [10, 30]
