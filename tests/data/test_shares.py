"""One folder dealt out to training, validation and test."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from anomaly_vlm.data.readers.folder import read_folder
from anomaly_vlm.data.shares import checked_shares, dealt
from anomaly_vlm.data.source import FileSource
from anomaly_vlm.data.types import Sample
from anomaly_vlm.errors import UserError


def samples(**counts: int) -> list[Sample]:
    return [
        Sample(f"{defect}/{i:02d}.png", "lid", int(defect != "good"), defect=defect)
        for defect, count in counts.items()
        for i in range(count)
    ]


def sides_of(found: list[Sample]) -> dict[tuple[str, str], int]:
    counts: dict[tuple[str, str], int] = {}
    for sample in found:
        counts[sample.defect, sample.split] = counts.get((sample.defect, sample.split), 0) + 1
    return counts


def test_every_type_of_defect_is_dealt_out_by_itself() -> None:
    found = dealt(samples(good=20, dent=10, crack=3), checked_shares([0.6, 0.2, 0.2]), seed=0)
    assert sides_of(found) == {
        ("good", "train"): 12, ("good", "val"): 4, ("good", "test"): 4,
        ("dent", "train"): 6, ("dent", "val"): 2, ("dent", "test"): 2,
        ("crack", "train"): 1, ("crack", "val"): 1, ("crack", "test"): 1,
    }  # fmt: skip
    assert found == dealt(samples(good=20, dent=10, crack=3), (0.6, 0.2, 0.2), seed=0)
    assert found != dealt(samples(good=20, dent=10, crack=3), (0.6, 0.2, 0.2), seed=1)


@pytest.mark.parametrize("shares", [0, 1, [0.5, 0.5], [0.5, 0.6, -0.1], [1, 0, 0], ["a", "b", "c"]])
def test_wrong_shares_are_rejected(shares) -> None:
    with pytest.raises(UserError, match="give the share of training"):
        checked_shares(shares)


def test_a_source_hands_each_side_its_own_images(tmp_path: Path) -> None:
    for name in ("good/1", "good/2", "good/3", "dent/1", "dent/2"):
        path = tmp_path / "parts" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    source = FileSource(name=None, root=tmp_path / "parts", reader=read_folder, layout="", shares=0.6, shares_seed=3)
    train, test = ([sample.path for sample in source.samples(side)] for side in ("train", "test"))
    assert len(train) == 3 and len(test) == 2 and not set(train) & set(test)
    assert source.name == "parts" and "split=0.6:0:0.4, seed 3" in source.note
    assert {sample.path for sample in source.references()} <= set(train)
