"""Masks and classes under the names that people give them, and what lies beside them: taken rightly, or named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomaly_vlm.data.readers.folder import read_folder, read_unlabelled
from anomaly_vlm.errors import UserError
from tests.data.trees import mask, mvtec_category, picture


def heap(root: Path, *names: str) -> Path:
    for name in names:
        picture(root / name)
    return root


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


def test_masks_of_another_type_beside_their_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    heap(tmp_path, "good/0.jpg", "bad/1.jpg", "bad/2.jpg")
    for name in ("good/0.png", "bad/1.png", "bad/2.png"):
        mask(tmp_path / name)
    found = {Path(s.path).name: [Path(m).name for m in s.masks] for s in read_folder(tmp_path)}
    assert found == {"0.jpg": [], "1.jpg": ["1.png"], "2.jpg": ["2.png"]}
    assert sorted(Path(s.path).name for s in read_unlabelled(tmp_path)) == ["0.jpg", "1.jpg", "2.jpg"]
    assert "3 masks beside their images are left out" in caplog.text


def test_photographs_in_two_types_stay_two(tmp_path: Path) -> None:
    heap(tmp_path, "a.jpg", "a.png", "b.jpg", "b.png")
    assert len(read_unlabelled(tmp_path)) == 4
