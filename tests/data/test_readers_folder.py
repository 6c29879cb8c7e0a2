"""The user's own folders and the official index."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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


# ---- masks under loose names -------------------------------------------------------------------------------------------


def photograph(path: Path, *, seed: int = 0) -> Path:
    """Noise of many values, as a mask never holds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(256, size=(8, 8, 3), dtype=np.uint8)).save(path)
    return path


def photographs(root: Path, *names: str) -> Path:
    for seed, name in enumerate(names):
        photograph(root / name, seed=seed)
    return root


LOOSE_FOLDERS = (
    *("bad_mask", "bad_gt", "mask_bad", "label_bad", "defect_mask", "binary_masks", "masks_png", "mask2", "gt_mask"),
    *("groundtruth_masks", "pixel_labels", "SegmentationClass", "maskes", "annotated", "Ground_Truth_bad"),
)


@pytest.mark.parametrize("inside", ["", "test/"])
@pytest.mark.parametrize("folder", LOOSE_FOLDERS)
def test_folders_whose_names_hold_a_mask_word_and_whose_files_are_masks(
    tmp_path: Path, folder: str, inside: str
) -> None:
    photographs(tmp_path, f"{inside}good/0.png", f"{inside}bad/0.png")
    mask(tmp_path / inside / folder / "0.png")
    assert [(s.label, len(s.masks)) for s in read_folder(tmp_path)] == [(1, 1), (0, 0)]
    assert all(folder not in s.path for s in read_unlabelled(tmp_path))


def test_masks_in_a_folder_for_each_class(tmp_path: Path) -> None:
    photographs(tmp_path, "good/0.png", "bad/0.png", "dent/0.png")
    for folder in ("bad_mask", "dent_mask", "good_mask"):
        mask(tmp_path / folder / "0.png", box=None if folder == "good_mask" else (0, 0, 2, 2))
    found = {s.defect: s.masks for s in read_folder(tmp_path)}
    assert found == {"good": (), **{name: (str(tmp_path / f"{name}_mask/0.png"),) for name in ("bad", "dent")}}


def test_a_defect_with_a_mask_word_in_its_name_stays_a_defect(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    photographs(tmp_path, "good/0.png", "label_defect/0.png", "solder_mask/0.png")
    assert {s.defect for s in read_folder(tmp_path)} == {"good", "label_defect", "solder_mask"}
    assert not caplog.messages
    photographs(tmp_path, "bad/0.png", "bad_label/0.png")
    assert "bad_label" in {s.defect for s in read_folder(tmp_path)}
    assert "bad_label' counts as a defect" in caplog.text


def test_a_folder_of_masks_without_a_mask_word_is_refused(tmp_path: Path) -> None:
    photographs(tmp_path, "good/0.png", "bad/0.png")
    mask(tmp_path / "regions/0.png")
    with pytest.raises(UserError, match=r"regions' holds images of at most three values.*reader\.defects"):
        read_folder(tmp_path)
    assert {s.defect for s in read_folder(tmp_path, defects=["bad", "regions"])} == {"good", "bad", "regions"}


@pytest.mark.parametrize("place", ["test/masks/bad", "test/masks", "test/Ground_Truth/bad", "test/bad/masks"])
def test_masks_inside_the_test_folder(tmp_path: Path, place: str) -> None:
    photographs(tmp_path, "train/good/0.png", "test/good/0.png", "test/bad/0.png")
    mask(tmp_path / place / "0.png")
    assert [(s.defect, s.split, s.masks) for s in read_folder(tmp_path)] == [
        ("good", "train", ()),
        ("bad", "test", (str(tmp_path / place / "0.png"),)),
        ("good", "test", ()),
    ]


@pytest.mark.parametrize("inside", ["", "test/"])
@pytest.mark.parametrize(
    "name",
    ["mask_7.png", "7_gt.png", "7-mask.PNG", "7.mask.png", "7_mask_1.png", "7.png_mask.png", "7.png.png", "7_mask.gif"],
)
def test_masks_beside_the_image_by_any_name(tmp_path: Path, name: str, inside: str) -> None:
    photographs(tmp_path, f"{inside}good/0.png", f"{inside}bad/7.png")
    region = mask(tmp_path / inside / "bad" / name)
    assert [(s.label, s.masks) for s in read_folder(tmp_path)] == [(1, (str(region),)), (0, ())]


def test_numbered_masks_of_an_image_are_all_its_masks(tmp_path: Path) -> None:
    photographs(tmp_path, "good/0.png", "bad/7.png")
    for i in (1, 2):
        mask(tmp_path / f"bad/7_mask_{i}.png")
    assert [len(s.masks) for s in read_folder(tmp_path)] == [2, 0]


def test_the_layout_of_mvtec_keeps_to_the_rules_of_the_flat_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    heap(tmp_path, "train/ok/0.png", "val/ok/1.png", "test/ok/2.png", "test/ko/3.png", "test/inbox/4.png")
    with pytest.raises(UserError, match=r"has no 'good' for the normal images \(found ok, ko\)"):
        read_folder(tmp_path)
    caplog.clear()
    assert [(s.defect, s.split) for s in read_folder(tmp_path, normal="ok")] == [
        ("good", "train"), ("good", "val"), ("ko", "test"), ("good", "test")
    ]  # fmt: skip
    assert "left out, as they are no defects: inbox" in caplog.text
    assert "inbox" in {s.defect for s in read_folder(tmp_path, normal="ok", defects=["ko", "inbox"])}


def test_a_link_upwards_leads_nowhere(tmp_path: Path) -> None:
    heap(tmp_path, "good/0.png", "bad/1.png")
    (tmp_path / "bad/up").symlink_to(tmp_path)
    assert [s.defect for s in read_folder(tmp_path)] == ["bad", "good"]


@pytest.mark.parametrize("name", ["bad/q.HEIC", "good/day/q.jfif", "stray.png", "heic_only/q.heic", "bad/link.png"])
def test_picture_files_that_are_not_read_are_named(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    heap(tmp_path, "good/0.png", "bad/1.png", "good/Thumbs.db", "notes.txt")
    read_folder(tmp_path)
    assert not caplog.messages
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).symlink_to(tmp_path / ("absent.png" if "link" in name else "good/0.png"))
    assert len(read_folder(tmp_path)) == 2
    assert f"1 files are not read ({name})" in caplog.text


def test_files_outside_the_folders_of_categories_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mvtec_category(tmp_path / "lid")
    read_folder(tmp_path)
    assert not caplog.messages
    heap(tmp_path, "a.png", "cup/good/b.png", "lid/c.png", "lid/test/d.png")
    read_folder(tmp_path)
    assert "2 files are not read (a.png, cup/good/b.png)" in caplog.text
    assert "2 files are not read (c.png, test/d.png)" in caplog.text


def test_files_in_folders_of_masks_that_are_not_read_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    heap(tmp_path, "good/0.png", "bad/1.png", "ground_truth/good/readme.txt", "ground_truth/bad/1.npy")
    read_folder(tmp_path)
    assert "1 files in folders of masks are not read" in caplog.text and "1.npy" in caplog.text


@pytest.mark.parametrize("suffix", [".gif", ".pgm", ".ppm"])
def test_masks_have_the_formats_of_images(tmp_path: Path, suffix: str) -> None:
    heap(tmp_path, "good/0.png", "bad/1.png")
    mask(tmp_path / f"ground_truth/bad/1_mask{suffix}")
    assert [len(s.masks) for s in read_folder(tmp_path)] == [1, 0]


@pytest.mark.parametrize("box, named", [(None, False), ((0, 0, 2, 2), True)])
def test_masks_of_normal_images_mark_nothing(
    tmp_path: Path, box: tuple[int, int, int, int] | None, named: bool, caplog: pytest.LogCaptureFixture
) -> None:
    heap(tmp_path, "good/0.png", "bad/1.png")
    mask(tmp_path / "ground_truth/bad/1.png")
    mask(tmp_path / "ground_truth/good/0.png", box=box)
    read_folder(tmp_path)
    assert ("1 of those looked at mark pixels" in caplog.text) is named


def test_masks_beside_images_are_not_scored_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    heap(tmp_path, "a.png", "a_mask.png", "b_mask.png")
    assert [Path(s.path).name for s in read_unlabelled(tmp_path)] == ["a.png", "b_mask.png"]
    assert "1 masks beside their images are left out" in caplog.text


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
