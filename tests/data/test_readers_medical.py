"""Readers of the medical sets and of tables, on fake trees of each layout."""

from __future__ import annotations

from pathlib import Path

import pytest

from anomaly_vlm.data.readers.class_folders import read_class_folders
from anomaly_vlm.data.readers.images_masks import read_images_masks
from anomaly_vlm.data.readers.tables import read_elpv, read_headct
from anomaly_vlm.errors import UserError
from tests.data.trees import mask, mvtec_category, picture


def brain(root: Path, **options) -> list[tuple]:
    options = {"category": "brain_mri", "normal": ["no"], "anomalous": ["yes"]} | options
    samples = read_class_folders(root, **options)
    return sorted((Path(s.path).relative_to(root).as_posix(), s.label, s.defect, s.kind) for s in samples)


def test_brain_mri_names_with_blanks_and_mixed_suffixes(tmp_path: Path) -> None:
    for name in ("no/no 1.jpg", "no/44no.jpg", "yes/Y1.JPG", "yes/Y2.jpeg", "yes/Y3.png"):
        picture(tmp_path / name)
    (tmp_path / "yes/Thumbs.db").write_bytes(b"stray")
    assert brain(tmp_path) == [
        ("no/44no.jpg", 0, "good", "image"),
        ("no/no 1.jpg", 0, "good", "image"),
        ("yes/Y1.JPG", 1, "yes", "image"),
        ("yes/Y2.jpeg", 1, "yes", "image"),
        ("yes/Y3.png", 1, "yes", "image"),
    ]


def test_br35h_pred_is_left_out(tmp_path: Path) -> None:
    for name in ("no/1.jpg", "yes/1.jpg", "pred/pred0.jpg"):
        picture(tmp_path / name)
    assert [row[0] for row in brain(tmp_path)] == ["no/1.jpg", "yes/1.jpg"]


@pytest.mark.parametrize("normal, inside", [("Normal", "images/"), ("NORMAL", "")])
def test_covid_ignores_lung_masks_and_other_diseases(tmp_path: Path, normal: str, inside: str) -> None:
    for name in (normal, "COVID", "Lung_Opacity", "Viral Pneumonia"):
        picture(tmp_path / name / f"{inside}{name}-1.png")
        if inside:
            mask(tmp_path / name / f"masks/{name}-1.png")
    found = brain(tmp_path, category="chest", normal=["Normal"], anomalous=["COVID"])
    assert [row[1:] for row in found] == [(1, "covid", "image"), (0, "good", "image")]


def test_class_folders_read_the_converted_layout_without_masks(tmp_path: Path) -> None:
    mvtec_category(tmp_path / "brain_mri", defect="defect")
    found = brain(tmp_path)
    assert len(found) == 6
    assert {row[3] for row in found} == {"image"}


def polyps(root: Path, pairs: list[list[str]], inside: str = "") -> list[tuple]:
    samples = read_images_masks(root, category="ColonDB", folders=pairs, inside=inside)
    assert {(s.label, s.kind, s.category) for s in samples} == {(1, "mask", "ColonDB")}
    return [
        (Path(s.path).relative_to(root).as_posix(), *(Path(m).relative_to(root).as_posix() for m in s.masks))
        for s in samples
    ]


def test_polyps_pair_equal_names(tmp_path: Path) -> None:
    for i in (1, 2):
        picture(tmp_path / f"images/{i}.png")
        mask(tmp_path / f"masks/{i}.png")
    assert polyps(tmp_path, [["images", "masks"]]) == [("images/1.png", "masks/1.png"), ("images/2.png", "masks/2.png")]
    (tmp_path / "masks/2.png").unlink()
    with pytest.raises(UserError, match=r"images/2\.png' has no mask"):
        polyps(tmp_path, [["images", "masks"]])


def test_clinicdb_original_layout(tmp_path: Path) -> None:
    picture(tmp_path / "Original/1.tif")
    mask(tmp_path / "Ground Truth/1.tif")
    pairs = [["images", "masks"], ["Original", "Ground Truth"]]
    assert polyps(tmp_path, pairs) == [("Original/1.tif", "Ground Truth/1.tif")]


def test_isic_and_tn3k(tmp_path: Path) -> None:
    picture(tmp_path / "Data/ISIC_0000003.jpg")
    mask(tmp_path / "Truth/ISIC_0000003_Segmentation.png")
    assert polyps(tmp_path, [["Data", "Truth"]]) == [("Data/ISIC_0000003.jpg", "Truth/ISIC_0000003_Segmentation.png")]
    picture(tmp_path / "tn3k/test-image/0000.jpg")
    mask(tmp_path / "tn3k/test-mask/0000.jpg")
    picture(tmp_path / "tn3k/trainval-image/0001.jpg")
    pairs = [["test-image", "test-mask"]]
    assert polyps(tmp_path, pairs, inside="tn3k") == [("tn3k/test-image/0000.jpg", "tn3k/test-mask/0000.jpg")]


def test_polyps_read_adaclips_copy(tmp_path: Path) -> None:
    picture(tmp_path / "ColonDB/test/defect/1.png")
    mask(tmp_path / "ColonDB/ground_truth/defect/1.png")
    (tmp_path / "ColonDB/test/good").mkdir()
    assert polyps(tmp_path, [["images", "masks"]]) == [
        ("ColonDB/test/defect/1.png", "ColonDB/ground_truth/defect/1.png")
    ]


def head_ct(root: Path, table: str) -> Path:
    for i in range(2):
        picture(root / f"head_ct/head_ct/{i:03d}.png")
    (root / "labels.csv").write_text(table)
    return root


def test_headct_labels_from_the_table(tmp_path: Path) -> None:
    samples = read_headct(head_ct(tmp_path, "id, hemorrhage\n0,1\n1,0\n"))
    assert [(Path(s.path).name, s.label, s.defect, s.kind) for s in samples] == [
        ("000.png", 1, "hemorrhage", "image"),
        ("001.png", 0, "good", "image"),
    ]


@pytest.mark.parametrize(
    "table, message",
    [
        ("id,h\n0,1\n", r"001\.png' is not listed"),
        ("id,h\n0,x\n", "is damaged"),
        ("id,h\n0\n", "is damaged"),
        ("id,h\n0,1\n1,-1\n", r"is damaged \(-1\)"),
        ("id,h\n0,1\n1,0\n1,1\n", "lists image 1 as good and as hemorrhage"),
    ],
)
def test_headct_refuses_a_table_that_does_not_fit(tmp_path: Path, table: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_headct(head_ct(tmp_path, table))


def elpv(root: Path) -> Path:
    rows = [
        ("1", "0.0", "mono"),
        ("2", "0.3333333333333333", "mono"),
        ("3", "0.6666666666666666", "poly"),
        ("4", "1.0", "poly"),
    ]
    (root / "labels.csv").write_text("".join(f"images/cell000{n}.png  {p}   {kind}\n" for n, p, kind in rows))
    return root


@pytest.mark.parametrize(
    "options, labels",
    [({}, [0, 0, 1, 1]), ({"positive": "any"}, [0, 1, 1, 1]), ({"positive": "certain"}, [0, 0, 0, 1]),
     ({"exclude_uncertain": True}, [0, 1])],
)  # fmt: skip
def test_elpv_rules(tmp_path: Path, options: dict, labels: list[int]) -> None:
    samples = read_elpv(elpv(tmp_path), **options)
    assert [sample.label for sample in samples] == labels
    assert samples[0].category == "mono"
    assert samples[-1].path == str(tmp_path / "images/cell0004.png")


def test_elpv_with_the_mark_of_windows(tmp_path: Path) -> None:
    table = elpv(tmp_path) / "labels.csv"
    expected = read_elpv(tmp_path)
    table.write_text(table.read_text().replace("/", "\\"), encoding="utf-8-sig")
    assert read_elpv(tmp_path) == expected


@pytest.mark.parametrize(
    "written, told", [(b"a.png nan mono", "is not 'file"), (b"a\xe9.png 1 mono", "no text in UTF-8")]
)
def test_elpv_refuses_other_numbers_and_encodings(tmp_path: Path, written: bytes, told: str) -> None:
    (tmp_path / "labels.csv").write_bytes(written)
    with pytest.raises(UserError, match=told):
        read_elpv(tmp_path)


def test_elpv_refuses_unknown_rules_and_damaged_tables(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown positive 'all': choose one of half, any, certain"):
        read_elpv(tmp_path, positive="all")
    assert read_elpv(tmp_path) == []
    (tmp_path / "labels.csv").write_text("images/cell0001.png  high  mono\n")
    with pytest.raises(UserError, match=r"line 'images/cell0001\.png high mono' is not 'file probability type'"):
        read_elpv(tmp_path)
