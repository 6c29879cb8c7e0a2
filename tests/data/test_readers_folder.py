"""The user's own folders and the official index."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from anomaly_vlm.data.readers.folder import read_folder, read_unlabelled
from anomaly_vlm.data.readers.meta_json import read_meta_json, write_index
from anomaly_vlm.data.readers.mvtec_ad import read_mvtec_ad
from anomaly_vlm.data.types import Drawn, Sample
from anomaly_vlm.errors import UserError
from tests.data.trees import mask, mvtec_category, picture, write_json


def heap(root: Path, *names: str) -> Path:
    for name in names:
        picture(root / name)
    return root


def test_folder_without_masks_has_image_labels(tmp_path: Path) -> None:
    samples = read_folder(heap(tmp_path, "Good/1.png", "dent/1.png", "scratch/2.jpg"), category="lid")
    assert [(s.label, s.defect, s.kind, s.masks, s.category) for s in samples] == [
        (0, "good", "image", (), "lid"),
        (1, "dent", "image", (), "lid"),
        (1, "scratch", "image", (), "lid"),
    ]


@pytest.mark.parametrize("place", ["ground_truth/dent/1.png", "ground_truth/1_mask.png", "dent/1_mask.png"])
def test_folder_masks_in_ground_truth_or_beside(tmp_path: Path, place: str) -> None:
    heap(tmp_path, "good/1.png", "dent/1.png")
    mask(tmp_path / place)
    samples = read_folder(tmp_path)
    assert [(s.label, s.kind, s.masks) for s in samples] == [(1, "mask", (str(tmp_path / place),)), (0, "mask", ())]


def test_folder_where_one_has_a_mask_all_must(tmp_path: Path) -> None:
    heap(tmp_path, "good/1.png", "dent/1.png", "dent/2.png")
    mask(tmp_path / "ground_truth/dent/1.png")
    with pytest.raises(UserError, match=r"dent/2\.png' has no mask"):
        read_folder(tmp_path)


def test_images_without_masks_beside_others_on_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    heap(tmp_path, "good/1.png", "dent/1.png", "dent/2.png")
    mask(tmp_path / "ground_truth/dent/1.png")
    with pytest.raises(UserError, match=r"reader\.missing_masks=ignore"):
        read_folder(tmp_path)
    samples = read_folder(tmp_path, missing_masks="ignore")
    assert [(s.label, s.kind, len(s.masks)) for s in samples] == [(1, "mask", 1), (1, "image", 0), (0, "mask", 0)]
    assert "1 anomalous images have no mask" in caplog.text


def test_unsorted_folders_are_no_defects(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    heap(tmp_path, "good/1.png", "dent/1.png", "New/1.png", "inbox/1.png", "odd/1.png")
    assert {s.defect for s in read_folder(tmp_path)} == {"good", "dent", "odd"}
    assert "left out, as they are no defects: New, inbox" in caplog.text
    assert {s.defect for s in read_folder(tmp_path, defects=["dent", "New"])} == {"good", "dent", "New"}
    with pytest.raises(UserError, match=r"unknown folder of .* 'dents'"):
        read_folder(tmp_path, defects=["dents"])


def test_folder_without_normal_images_says_how_to_name_them(tmp_path: Path) -> None:
    heap(tmp_path, "fine/1.png", "dent/1.png")
    with pytest.raises(UserError, match=r"has no 'good' for the normal images \(found dent, fine\).*reader\.normal"):
        read_folder(tmp_path)
    assert sorted(s.label for s in read_folder(tmp_path, normal="fine")) == [0, 1]


def test_folder_reads_the_layout_of_mvtec(tmp_path: Path) -> None:
    mvtec_category(tmp_path / "brain")
    heap(tmp_path, "liver/train/good/1.png", "liver/test/good/2.png", "liver/test/Ungood/3.png")
    samples = read_folder(tmp_path)
    assert {(s.category, s.kind) for s in samples} == {("brain", "mask"), ("liver", "image")}
    assert [s.split for s in samples if s.category == "liver"] == ["train", "test", "test"]
    assert read_folder(tmp_path / "brain") == [s for s in samples if s.category == "brain"]


def test_folder_of_flat_images_is_unlabelled(tmp_path: Path) -> None:
    samples = read_folder(heap(tmp_path, "a.png", "b.png"))
    assert [(s.label, s.kind) for s in samples] == [(None, "none")] * 2
    assert read_folder(tmp_path / "absent") == []


def test_unlabelled_images_of_all_sub_folders_in_order(tmp_path: Path) -> None:
    heap(tmp_path, "b.png", "a/2.JPG", "a/1.png", "a.png", ".hidden/3.png", "a/.4.png")
    (tmp_path / "notes.txt").write_text("stray")
    samples = read_unlabelled(tmp_path, category="lid")
    assert [Path(s.path).relative_to(tmp_path).as_posix() for s in samples] == ["a/1.png", "a/2.JPG", "a.png", "b.png"]
    assert {(s.label, s.kind, s.category) for s in samples} == {(None, "none", "lid")}


# ---- layouts and names that people have ------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["ground_truth", "Ground_truth", "gt", "GT", "masks", "Mask", "mask_dir", "labels"])
@pytest.mark.parametrize("inside", ["dent/", ""])
def test_a_folder_of_masks_is_no_class_whatever_it_is_called(tmp_path: Path, folder: str, inside: str) -> None:
    heap(tmp_path, "good/0.png", "dent/1.png")
    mask(tmp_path / folder / f"{inside}1.png")
    samples = read_folder(tmp_path)
    assert [(s.label, len(s.masks)) for s in samples] == [(1, 1), (0, 0)]


@pytest.mark.parametrize("folder", ["ground_truth", "Ground_truth", "gt"])
def test_the_layout_of_mvtec_with_another_name_of_the_masks(tmp_path: Path, folder: str) -> None:
    mvtec_category(tmp_path / "lid")
    (tmp_path / "lid/ground_truth").rename(tmp_path / "lid" / folder)
    assert sorted(len(s.masks) for s in read_folder(tmp_path) if s.split == "test") == [0, 0, 1, 1]
    assert sorted(len(s.masks) for s in read_mvtec_ad(tmp_path, masks=folder.lower()) if s.label) == [1, 1]


@pytest.mark.parametrize(
    "name",
    [
        "7_gt.png",
        "7-mask.png",
        "mask_7.png",
        "7_seg.bmp",
        "7.png.png",
        "7.webp",
        "7_MASK.PNG",
        "gt-7.png",
        "7_label.tif",
    ],
)
def test_masks_by_the_names_that_people_give_them(tmp_path: Path, name: str) -> None:
    heap(tmp_path, "good/0.png", "dent/7.png", "dent/77.png")
    mask(tmp_path / "ground_truth/dent" / name)
    mask(tmp_path / "ground_truth/dent" / name.replace("7", "77", 1).replace("777", "77"))
    found = {Path(s.path).name: s.masks for s in read_folder(tmp_path) if s.label}
    assert found["7.png"] == (str(tmp_path / "ground_truth/dent" / name),)
    assert len(found["77.png"]) == 1 and found["77.png"] != found["7.png"]


def test_masks_that_belong_to_no_image_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    heap(tmp_path, "good/0.png", "dent/1.png")
    for name in ("dent/1.png", "dent/2.png", "good/0.png", "lost.png"):
        mask(tmp_path / "ground_truth" / name)
    read_folder(tmp_path)
    assert "2 mask files belong to no image" in caplog.text
    assert "dent/2.png" in caplog.text and "lost.png" in caplog.text


def test_images_in_sub_folders_and_behind_links(tmp_path: Path) -> None:
    heap(tmp_path, "set/good/0.png", "set/dent/1.png", "set/dent/day1/1.png", "elsewhere/night/2.png")
    mask(tmp_path / "set/ground_truth/dent/1.png")
    mask(tmp_path / "set/ground_truth/dent/day1/1.png", box=(0, 0, 2, 2))
    (tmp_path / "set/good/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "elsewhere")  # a circle ends
    found = {Path(s.path).relative_to(tmp_path / "set").as_posix(): s for s in read_folder(tmp_path / "set")}
    assert sorted(found) == ["dent/1.png", "dent/day1/1.png", "good/0.png", "good/more/night/2.png"]
    assert found["dent/day1/1.png"].masks == (str(tmp_path / "set/ground_truth/dent/day1/1.png"),)
    assert len(read_unlabelled(tmp_path / "set/good")) == 2


def test_a_mask_belongs_to_the_image_of_its_full_name(tmp_path: Path) -> None:
    heap(tmp_path, "good/0.png", "dent/x.png", "dent/x.jpg")
    mask(tmp_path / "ground_truth/dent/x.png")
    with pytest.raises(UserError, match=r"dent/x\.jpg' has no mask"):
        read_folder(tmp_path)
    mask(tmp_path / "ground_truth/dent/x.jpg")
    assert [Path(s.masks[0]).name for s in read_folder(tmp_path) if s.label] == ["x.jpg", "x.png"]


def test_two_images_cannot_share_a_mask(tmp_path: Path) -> None:
    heap(tmp_path, "good/0.png", "dent/x.png", "dent/x.jpg")
    mask(tmp_path / "ground_truth/dent/x_mask.png")
    with pytest.raises(UserError, match=r"share the mask .*x_mask\.png': give them different names"):
        read_folder(tmp_path)


def test_folders_of_masks_are_not_scored_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    heap(tmp_path, "a.png", "masks/a.png")
    assert [Path(s.path).name for s in read_unlabelled(tmp_path)] == ["a.png"]
    assert "not scored: masks" in caplog.text


# ---- meta.json -------------------------------------------------------------------------------------------------------


def entry(image: str, region: str = "", *, name: str = "bottle", anomaly: int = 0, specie: str = "good") -> dict:
    return {"img_path": image, "mask_path": region, "cls_name": name, "specie_name": specie, "anomaly": anomaly}


def test_index_phases_in_any_case_and_absolute_paths(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere/1.png"
    content = {
        "Train": {"bottle": [entry("bottle/train/0.png")]},
        "TEST": {
            "bottle": [entry("bottle/2.png", "m/2.png", anomaly=1, specie="crack"), entry(str(elsewhere))],
            "brain": [entry("brain/3.png", name="brain", anomaly=1, specie="")],
        },
        "validation": {},
    }
    write_json(tmp_path / "set/meta.json", content)
    samples = read_meta_json(tmp_path / "set")
    assert [(s.path, s.masks, s.label, s.defect, s.split, s.kind) for s in samples] == [
        (str(tmp_path / "set/bottle/train/0.png"), (), 0, "good", "train", "mask"),
        (str(tmp_path / "set/bottle/2.png"), (str(tmp_path / "set/m/2.png"),), 1, "crack", "test", "mask"),
        (str(elsewhere), (), 0, "good", "test", "mask"),
        (str(tmp_path / "set/brain/3.png"), (), 1, "anomaly", "test", "image"),
    ]
    assert read_meta_json(tmp_path / "set/meta.json") == samples
    assert read_meta_json(tmp_path) == []


def test_an_index_that_was_written_on_windows(tmp_path: Path) -> None:
    content = {"test": {"7": [entry("7\\test\\é.png", "7\\masks\\é.png", name="7", anomaly=1)]}}
    (tmp_path / "meta.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8-sig")
    (sample,) = read_meta_json(tmp_path)
    assert (sample.path, sample.masks) == (str(tmp_path / "7/test/é.png"), (str(tmp_path / "7/masks/é.png"),))
    assert sample.category == "7"


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "is no index"),
        ('{"night": {"a": [{}]}}', r"KeyError: 'night'"),
        (json.dumps({"test": {"a": [{"img_path": "1.png"}]}}), "KeyError: 'mask_path'"),
        (json.dumps({"test": {"a": [entry("1.png", anomaly=2)]}}), "anomaly is 2, expected 0 or 1"),
        (json.dumps({"test": {"a": [entry("1.png", "m.png", anomaly=1), entry("2.png", anomaly=1)]}}), "no mask_path"),
    ],
)
def test_damaged_index(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "meta.json").write_text(text)
    with pytest.raises(UserError, match=message):
        read_meta_json(tmp_path)


def test_index_round_trip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mvtec_category(tmp_path / "set/bottle")
    picture(tmp_path / "set/bottle/validation/good/9.png")
    mask(tmp_path / "set/bottle/ground_truth/crack/002/000.png")
    mask(tmp_path / "set/bottle/ground_truth/crack/002/001.png")
    picture(tmp_path / "set/bottle/test/crack/002.png")
    monkeypatch.chdir(tmp_path)
    samples = read_mvtec_ad(Path("set"))
    write_index(samples, tmp_path / "set/meta.json")
    content = json.loads((tmp_path / "set/meta.json").read_text())
    assert set(content) == {"train", "validation", "test"}
    assert content["test"]["bottle"][0] == entry(
        "bottle/test/crack/000.png", "bottle/ground_truth/crack/000_mask.png", anomaly=1, specie="crack"
    )
    assert set(read_meta_json(Path("set"))) == set(samples)  # relative roots give relative paths again
    write_index(samples, tmp_path / "elsewhere.json")
    assert json.loads((tmp_path / "elsewhere.json").read_text())["test"]["bottle"][0]["img_path"].startswith("set/")


def test_index_holds_labelled_files_only(tmp_path: Path) -> None:
    class Blank:
        def draw(self) -> Drawn:
            raise AssertionError("never drawn")

    with pytest.raises(UserError, match="'drawn/1' has no file"):
        write_index([Sample("drawn/1", "gear", 0, drawing=Blank())], tmp_path / "meta.json")
    with pytest.raises(UserError, match=r"'1\.png' has no label"):
        write_index([Sample("1.png", "gear", None, kind="none")], tmp_path / "meta.json")
    with pytest.raises(UserError, match="cannot be written"):
        write_index([], tmp_path / "absent/meta.json")
