"""COCO annotation files: polygons, run lengths, compressed run lengths, boxes; and the splits of BMAD and VAD."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from anomaly_vlm.data.checks import check_files
from anomaly_vlm.data.images import ReadError
from anomaly_vlm.data.readers.bmad import read_bmad, read_splits
from anomaly_vlm.data.readers.coco import read_coco
from anomaly_vlm.data.readers.regions import _decoded, _runs
from anomaly_vlm.data.source import FileSource
from anomaly_vlm.data.transforms import _grey, read_sample
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


def region_of(root: Path) -> np.ndarray:
    region = read_sample(read_coco(root)[1])[1]
    assert region is not None
    assert region.getextrema() == (0, 255)
    return np.asarray(region) > 0


@pytest.mark.parametrize("scale", [2, 1, None])
def test_an_image_may_be_resized_after_it_was_annotated(tmp_path: Path, scale: int | None) -> None:
    written = content([[3, 2, 8, 2, 8, 5, 3, 5]])
    if scale is None:
        for entry in written["images"]:
            entry.update(width=0, height=0)
    tree(tmp_path, written)
    times = scale or 1
    picture(tmp_path / "2.png", size=(10 * times, 8 * times))
    check_files(read_coco(tmp_path))
    np.testing.assert_array_equal(region_of(tmp_path), np.kron(RECTANGLE, np.ones((times, times))) > 0)


@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 7, 8])
@pytest.mark.parametrize("scale", [1, 2])
def test_a_region_turns_with_its_image(tmp_path: Path, orientation: int, scale: int) -> None:
    tree(tmp_path, content([[3, 2, 8, 2, 8, 5, 3, 5]]))
    exif = Image.Exif()
    exif[0x112] = orientation
    pixels = np.kron(RECTANGLE, np.ones((scale, scale)))
    pixels = pixels[::-1, ::-1] if orientation == 3 else pixels  # its size says nothing: annotated as it is shown
    Image.fromarray((pixels * 255).astype(np.uint8)).save(tmp_path / "2.png", exif=exif)
    check_files(read_coco(tmp_path))
    np.testing.assert_array_equal(region_of(tmp_path), np.asarray(read_sample(read_coco(tmp_path)[1])[0])[..., 0] > 0)


def test_an_image_of_another_shape_is_named_before_a_run(tmp_path: Path) -> None:
    picture(tree(tmp_path, content([[3, 2, 8, 2, 8, 5, 3, 5]])) / "2.png", size=(8, 10))
    with pytest.raises(
        ReadError, match=r"2\.png' is 8x10, but its annotation file says 10x8: give the images that were"
    ):
        check_files(read_coco(tmp_path))


def test_a_mask_is_white_whatever_the_bytes_of_true() -> None:
    odd = np.asarray(Image.fromarray(RECTANGLE).resize((10, 8)))
    assert np.asarray(_grey(odd)).max() == 255


def test_white_is_the_same_in_all_images_and_can_be_given(tmp_path: Path) -> None:
    root = tree(tmp_path, content([[3, 2, 8, 2, 8, 5, 3, 5]]))
    for name, value in (("1.png", 1000), ("2.png", 4000)):  # by themselves they would be of 10 and of 12 bits
        Image.fromarray(np.full((8, 10), value, np.uint16)).save(root / name)

    def greys(white: float | None) -> list[int]:
        source = FileSource(name="x", root=root, reader=read_coco, layout="", max_value=white)
        samples = source.samples("test")
        check_files(samples)
        return [int(np.asarray(read_sample(sample)[0]).max()) for sample in samples]

    assert greys(None) == [62, 249] and greys(65535) == [3, 15]
    with pytest.raises(ReadError, match="values from 4000 to 4000: expected 0 to 2000"):
        greys(2000)


def test_ids_may_be_words_or_numbers_and_strays_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    written = content([[3, 2, 8, 2, 8, 5, 3, 5]])
    written["annotations"][0].update(image_id="2", category_id="5")
    written["annotations"].append({"image_id": 77, "category_id": 5, "bbox": [1, 1, 2, 2]})
    assert [s.label for s in read_coco(tree(tmp_path, written))] == [0, 1]
    assert "1 annotations belong to no image (image_id 77)" in caplog.text
    del written["annotations"][0]
    with pytest.raises(UserError, match=r"no annotation of .* belongs to one of its images \(image_id 77\)"):
        read_coco(tree(tmp_path, written))


def test_a_category_of_good_parts_is_no_defect(tmp_path: Path) -> None:
    written = content([[3, 2, 8, 2, 8, 5, 3, 5]])
    written["categories"][0]["name"] = "Good"
    assert [s.label for s in read_coco(tree(tmp_path, written))] == [0, 0]
    assert [s.defect for s in read_coco(tmp_path, defects=["Good"])] == ["good", "Good"]


def test_an_image_that_is_listed_again_counts_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    written = content([[3, 2, 8, 2, 8, 5, 3, 5]])
    assert not read_coco(tree(tmp_path, {**written, "images": [*written["images"], *written["images"]]}))[2:]
    assert "2 entries list an image again" in caplog.text and "1.png" in caplog.text
    written["images"].append({**written["images"][1], "id": 3})
    with pytest.raises(UserError, match=r"lists image '.*2\.png' twice, as dent and as good: keep one entry"):
        read_coco(tree(tmp_path, written))
    written["images"][2]["id"], written["images"][2]["file_name"] = 2, "1.png"
    with pytest.raises(UserError, match=r"has the id 2 for '.*2\.png' and for '.*1\.png'"):
        read_coco(tree(tmp_path, written))


@pytest.mark.parametrize(
    "segmentation, told",
    [
        ([[3, 2, 8, 2, 8, 5, 3]], "a polygon of 7 numbers: expected x and y of three or more corners"),
        ([[]], "a polygon of 0 numbers"),
        ([[float("nan"), 2, 8, 2, 8, 5]], "values that are no numbers"),
        ([[0.1, 0.1, 0.5, 0.1, 0.5, 0.5]], "coordinates between 0 and 1: expected pixels"),
        ({"counts": [20, -5, 65], "size": [8, 10]}, "a run length of -5"),
        ({"counts": "ooo", "size": [8, 10]}, "compressed run lengths that are cut off"),
        ({"counts": "\u00e9", "size": [8, 10]}, "compressed run lengths with the character"),
        ({"counts": [20, 5], "size": [8, 10]}, "run lengths of 25 pixels for an image of 80"),
        ({"counts": [20, 5, 55], "size": [10, 8]}, "run lengths of a mask of 8x10 on an image of 10x8"),
        ({"size": [8, 10]}, "run lengths without counts"),
    ],
)
def test_an_annotation_that_means_no_region_is_named_with_its_image(
    tmp_path: Path, segmentation: Any, told: str
) -> None:
    with pytest.raises(
        UserError, match=rf"annotations\.json' has for image '.*2\.png' .*{told}.*: mend the annotation"
    ):
        read_coco(tree(tmp_path, content(segmentation)))


@pytest.mark.parametrize(
    "segmentation, keys",
    [
        ([[10, 2, 18, 2, 18, 5]], {}),
        ([], {"bbox": [0, 0, 0, 0]}),
        ({"counts": [80], "size": [8, 10]}, {}),
    ],
)
def test_annotations_that_mark_no_pixel_are_told(
    tmp_path: Path, segmentation: Any, keys: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    assert [s.label for s in read_coco(tree(tmp_path, content(segmentation, **keys)))] == [0, 1]
    assert "1 annotations mark no pixel" in caplog.text and "2.png', 10x8)" in caplog.text


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
