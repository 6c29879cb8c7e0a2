"""COCO annotation files: polygons, run lengths, compressed run lengths, boxes; and the splits of BMAD and VAD."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomaly_vlm.data.readers.bmad import read_bmad, read_splits
from anomaly_vlm.data.readers.coco import _decoded, _runs, read_coco
from anomaly_vlm.errors import UserError
from tests.data.trees import mask, picture, write_json

RECTANGLE = np.zeros((8, 10), bool)
RECTANGLE[2:5, 3:8] = True


def runs_of(region: np.ndarray) -> list[int]:
    flat = region.T.ravel().astype(int)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [1 - flat[-1]]]))).tolist()
    return np.diff([0, *edges]).tolist() if edges else [len(flat)]


def compressed(counts: list[int]) -> str:
    """The published encoding: differences from the third count on, 5 bits a character, the lowest first."""
    out = ""
    for i, count in enumerate(counts):
        value = count - counts[i - 2] if i > 2 else count
        more = True
        while more:
            code = value & 31
            value >>= 5
            more = value != (-1 if code & 16 else 0)
            out += chr((code | 32 if more else code) + 48)
    return out


def content(segmentation: Any, **keys: Any) -> dict[str, Any]:
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 10, "height": 8} for i in (1, 2)],
        "categories": [{"id": 5, "name": "dent"}, {"id": 6, "name": "label"}],
        "annotations": [{"image_id": 2, "category_id": 5, "segmentation": segmentation, **keys}],
    }


ABSENT = {"id": 1, "file_name": "9.png", "width": 1, "height": 1}


def tree(root: Path, written: Any) -> Path:
    for i in (1, 2):
        picture(root / f"{i}.png", size=(10, 8))
    write_json(root / "annotations.json", written)
    return root


@pytest.mark.parametrize(
    "segmentation, keys",
    [
        ([[3, 2, 8, 2, 8, 5, 3, 5]], {}),
        ({"size": [8, 10], "counts": runs_of(RECTANGLE)}, {}),
        ({"size": [8, 10], "counts": compressed(runs_of(RECTANGLE))}, {}),
        ([], {"bbox": [3, 2, 5, 3]}),
    ],
)
def test_the_region_is_the_annotated_one(tmp_path: Path, segmentation: Any, keys: dict[str, Any]) -> None:
    normal, anomalous = read_coco(tree(tmp_path, content(segmentation, **keys)), category="lid")
    assert [(s.label, s.defect, s.category) for s in (normal, anomalous)] == [(0, "good", "lid"), (1, "dent", "lid")]
    assert normal.drawing is not None and not normal.drawing.draw().mask.any()
    assert anomalous.drawing is not None
    np.testing.assert_array_equal(anomalous.drawing.draw().mask, RECTANGLE)


@pytest.mark.parametrize(
    "written, image",
    [
        ("annotations/instances_{split}.json", "images/{split}/{i}.png"),
        ("annotations/instances_{split}2017.json", "{split}2017/{i}.png"),
        ("{split}/_annotations.coco.json", "{split}/{i}.png"),
    ],
)
def test_layouts_and_splits_of_labelling_tools(tmp_path: Path, written: str, image: str) -> None:
    for split in ("train", "val"):
        for i in (1, 2):
            picture(tmp_path / image.format(split=split, i=i), size=(10, 8))
        path = tmp_path / written.format(split=split)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, content([[3, 2, 8, 2, 8, 5, 3, 5]]))
    found = read_coco(tmp_path)
    assert [(s.split, s.label) for s in found] == [("train", 0), ("train", 1), ("val", 0), ("val", 1)]
    assert all(Path(sample.path).is_file() for sample in found)
    assert [s.split for s in read_coco(tmp_path, annotations=written.format(split="val"))] == ["val", "val"]


@given(st.integers(0, 2**20 - 1))
def test_compressed_run_lengths_come_back(bits: int) -> None:
    region = np.array([bits >> i & 1 for i in range(20)], bool).reshape(4, 5)
    counts = runs_of(region)
    assert _decoded(compressed(counts)) == counts
    np.testing.assert_array_equal(_runs(counts, (5, 4)), region)


def test_only_the_named_categories_are_defects(tmp_path: Path) -> None:
    written = content([[3, 2, 8, 2, 8, 5, 3, 5]])
    assert [s.label for s in read_coco(tree(tmp_path, written), defects=["label"])] == [0, 0]
    with pytest.raises(UserError, match=r"defects names crack, which .* does not have: choose of dent, label"):
        read_coco(tmp_path, defects=["crack"])


@pytest.mark.parametrize(
    "written, told",
    [
        ([], "is no COCO file"),
        ({"images": []}, "is no COCO file .KeyError"),
        (content([]), "neither segmentation nor bbox"),
        (
            {**content([[0, 0, 1, 1, 2, 0]]), "images": [{"id": 1, "file_name": "9.png", "width": 1, "height": 1}]},
            "is not below",
        ),
    ],
)
def test_what_is_no_such_file_is_rejected(tmp_path: Path, written: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        read_coco(tree(tmp_path, written))


def test_bmad_with_and_without_masks(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        picture(tmp_path / f"Brain_AD/{split}/good/img/1.png")
        picture(tmp_path / f"Chest_AD/{split}/good/1.png")
    picture(tmp_path / "Brain_AD/test/Ungood/img/2.png")
    mask(tmp_path / "Brain_AD/test/Ungood/label/2.png")
    picture(tmp_path / "Chest_AD/test/Ungood/2.png")
    found = {(s.category, s.split, s.label): (s.kind, len(s.masks)) for s in read_bmad(tmp_path)}
    assert found["Brain", "test", 1] == ("mask", 1) and found["Chest", "test", 1] == ("image", 0)
    assert {key[1] for key in found} == {"train", "val", "test"}
    assert read_bmad(tmp_path / "Brain_AD") == [s for s in read_bmad(tmp_path) if s.category == "Brain"]


def test_vad_has_defects_in_training_too(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for kind in ("good", "bad"):
            picture(tmp_path / f"vad/{split}/{kind}/1.png")
    found = read_splits(tmp_path, category="part")
    assert [(s.split, s.label, s.kind) for s in found] == [
        ("train", 0, "image"), ("train", 1, "image"), ("test", 0, "image"), ("test", 1, "image"),
    ]  # fmt: skip
