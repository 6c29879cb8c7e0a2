"""The index of the drawn benchmark: counts, balance, held-out families, choices."""

from __future__ import annotations

from collections import Counter

import pytest

from anomaly_vlm.data.drawn.products import FAMILIES, KINDS, ProceduralSource
from anomaly_vlm.errors import UserError


def test_breadth():
    kinds = Counter(family.kind for family in FAMILIES.values())
    assert kinds["texture"] >= 16 and kinds["object"] >= 10 and len(KINDS) >= 12
    held_out = Counter(family.kind for family in FAMILIES.values() if family.side == "test")
    assert held_out["texture"] >= 3 and held_out["object"] >= 3


def test_held_out_families_are_never_trained_on():
    source = ProceduralSource()
    train, val, test = ({s.category for s in source.samples(side)} for side in ("train", "val", "test"))
    assert train == val and not train & test
    assert train | test == {family.category for family in FAMILIES.values()}


@pytest.mark.parametrize("side", ["train", "val", "test"])
def test_index_is_sorted_counted_and_names_its_rows(side):
    samples = ProceduralSource(train_count=100, val_count=99, test_count=31).samples(side)
    assert len(samples) == {"train": 100, "val": 99, "test": 31}[side]
    paths = [s.path for s in samples]
    assert paths == sorted(paths) and len(set(paths)) == len(paths)
    first = samples[0]
    assert first.path == f"procedural/{side}/{first.drawing.family}/00000"
    assert (first.label, first.defect, first.split, first.dataset, first.kind) == (
        0,
        "good",
        side,
        "procedural",
        "mask",
    )


def test_half_is_anomalous_and_defects_take_turns_in_every_family():
    samples = ProceduralSource().samples("test") + ProceduralSource().samples("train")
    for name, family in FAMILIES.items():
        rows = [s for s in samples if s.drawing.family == name]
        counts = Counter(s.defect for s in rows)
        assert abs(counts["good"] - len(rows) / 2) <= 0.5
        kinds = [counts[kind] for kind in family.defects]
        assert max(kinds) - min(kinds) <= 1 and sum(kinds) == sum(s.label for s in rows)
        assert set(family.defects) <= set(KINDS)


def test_categories_are_families_or_their_words():
    source = ProceduralSource(categories=["leather", "wire mesh", "circuit_board"], train_count=8, test_count=5)
    assert {s.category for s in source.samples("train")} == {"wire mesh", "circuit board"}
    assert {s.category for s in source.samples("test")} == {"leather"} and len(source.samples("test")) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"categories": ["lether"]}, "unknown procedural category 'lether'.*did you mean leather"),
        ({"name": {}}, r"procedural\.name is \{\}: give a text"),
        ({"size": 8}, "procedural size is 8: give a side of 32 to 1024 pixels"),
        ({"seed": -1}, "procedural seed is -1"),
        ({"test_count": -5}, "procedural test_count is -5"),
    ],
)
def test_wrong_options_say_how_to_mend_them(options, message):
    with pytest.raises(UserError, match=message):
        ProceduralSource(**options)


def test_wrong_side_and_empty_side():
    with pytest.raises(UserError, match="unknown side of a data set 'dev'"):
        ProceduralSource().samples("dev")
    with pytest.raises(
        UserError, match="none of the categories wood is on the test side of procedural: choose from button"
    ):
        ProceduralSource(categories=["wood"]).samples("test")


def test_seed_and_side_change_the_pictures():
    keys = {
        ProceduralSource(seed=seed, train_count=42, val_count=42).samples(side)[3].drawing.numbers()
        for seed in (0, 1)
        for side in ("train", "val")
    }
    assert len(keys) == 4
