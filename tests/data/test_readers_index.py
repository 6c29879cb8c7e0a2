"""`meta.json` as people write it by hand or on Windows: repeats, contradictions, masks that are odd."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from anomaly_vlm.data.readers.meta_json import read_meta_json
from anomaly_vlm.errors import UserError
from tests.data.trees import mask, picture, write_json


def entry(number: int, anomaly: int, **keys: Any) -> dict[str, Any]:
    region = f"masks/{number}.png" if anomaly else ""
    base = {"img_path": f"images/{number}.png", "mask_path": region, "cls_name": "nut", "specie_name": "bad"}
    return {**base, "anomaly": anomaly, **keys}


def tree(root: Path, *entries: dict[str, Any]) -> Path:
    for number in range(3):
        picture(root / f"images/{number}.png")
        mask(root / f"masks/{number}.png")
    mask(root / "masks/black.png", box=None)
    write_json(root / "meta.json", {"test": {"nut": list(entries)}})
    return root


def test_slashes_of_windows_may_be_mixed(tmp_path: Path) -> None:
    mixed = entry(1, 1, img_path=r"./images\1.png", mask_path=r".\masks\1.png")
    (sample,) = read_meta_json(tree(tmp_path, mixed))
    assert (sample.path, sample.masks) == (str(tmp_path / "images/1.png"), (str(tmp_path / "masks/1.png"),))


def test_repeats_count_once_and_contradictions_are_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert len(read_meta_json(tree(tmp_path, entry(0, 0), entry(1, 1), entry(0, 0), entry(1, 1)))) == 2
    assert "2 entries list an image again" in caplog.text
    with pytest.raises(UserError, match=r"lists image '.*1\.png' twice, as bad and as good: keep one entry"):
        read_meta_json(tree(tmp_path, entry(1, 1), entry(1, 0)))
    with pytest.raises(UserError, match=r"lists image '.*1\.png' twice, with different regions"):
        read_meta_json(tree(tmp_path, entry(1, 1), entry(1, 1, mask_path="masks/2.png")))


def test_shared_masks_and_masks_of_normal_images_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read_meta_json(tree(tmp_path, entry(0, 0, mask_path="masks/black.png"), entry(1, 1), entry(2, 1)))
    assert not caplog.text
    read_meta_json(
        tree(tmp_path, entry(0, 0, mask_path="masks/0.png"), entry(1, 1), entry(2, 1, mask_path="masks/1.png"))
    )
    assert "1 images share their mask with another one" in caplog.text and "images/2.png" in caplog.text
    assert "masks of normal images mark pixels, which do not count" in caplog.text and "masks/0.png" in caplog.text
