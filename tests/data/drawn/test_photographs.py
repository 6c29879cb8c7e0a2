"""Drawn defects in photographs of good parts: what changes, what stays, and who is shown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomaly_vlm.data.drawn.photographs import DEFECTS, GoodPlusDrawnDefects
from anomaly_vlm.data.overlap import contents, shared_images
from anomaly_vlm.data.types import Sample
from anomaly_vlm.errors import UserError


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("parts")
    (root / "good").mkdir()
    (root / "dent").mkdir()
    for i in range(4):
        shades = np.random.default_rng(i).integers(90, 140, (40, 60), dtype=np.uint8)
        Image.fromarray(shades).save(root / "good" / f"{i}.png")
    Image.new("L", (60, 40)).save(root / "dent" / "0.png")
    return root


def test_only_the_mask_changes_and_grey_stays_grey(parts: Path) -> None:
    found = GoodPlusDrawnDefects(str(parts), count=2 * len(DEFECTS), size=64).samples("train")
    assert [sample.label for sample in found[:4]] == [0, 1, 0, 1]
    assert {sample.defect for sample in found} == {"good", *DEFECTS} and len(DEFECTS) == 18
    for good, bad in list(zip(found[::2], found[1::2], strict=True))[:6]:
        before, after = good.drawing.draw(), bad.drawing.draw()
        assert good.path == bad.path and not before.mask.any() and after.mask.any()
        changed = (before.image != after.image).any(axis=2)
        assert changed[after.mask].mean() > 0.5 and not changed[~after.mask].any()
        assert not np.ptp(after.image, axis=2).any()
        assert (after.image == bad.drawing.draw().image).all()


def test_good_parts_alone_are_used_and_a_share_of_them(parts: Path) -> None:
    source = GoodPlusDrawnDefects(str(parts), count=20, share=0.5)
    assert {Path(sample.path).name for sample in source.samples("train")} == {"0.png", "2.png"}
    assert {Path(sample.path).parent.name for sample in source.samples("train")} == {"good"}
    tested = [Sample(str(parts / "good" / f"{i}.png"), "object", 0) for i in range(4)]
    assert shared_images(tested, contents(source.samples("train"))) == [tested[0].path, tested[2].path]


def test_wrong_calls(parts: Path) -> None:
    with pytest.raises(UserError, match="not for side test"):
        GoodPlusDrawnDefects(str(parts)).samples("test")
    with pytest.raises(UserError, match="no good parts given"):
        GoodPlusDrawnDefects(None).samples("train")
    with pytest.raises(UserError, match="a share above 0"):
        GoodPlusDrawnDefects(str(parts), share=0.0)
