"""Readers of the industrial sets on fake trees of each layout: counts, labels, masks, splits, what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from anomaly_vlm.data.readers.dagm import read_dagm
from anomaly_vlm.data.readers.kolektor import read_ksdd, read_ksdd2
from anomaly_vlm.data.readers.magnetic_tile import read_magnetic_tile
from anomaly_vlm.data.readers.mvtec_ad import read_mvtec_ad
from anomaly_vlm.data.readers.real_iad import read_real_iad
from anomaly_vlm.data.readers.visa import read_visa
from anomaly_vlm.data.transforms import read_sample
from anomaly_vlm.data.types import Sample
from anomaly_vlm.errors import UserError
from tests.data.trees import mask, mvtec_category, picture, visa_download, write_json


def public(samples: list[Sample]) -> list[Sample]:
    return [sample for sample in samples if sample.split == "test"]


def rows(samples: list[Sample], root: Path) -> list[tuple]:
    """What counts of each sample, with paths relative to `root`."""
    return sorted(
        (Path(s.path).relative_to(root).as_posix(), s.category, s.label, s.defect, len(s.masks))
        for s in public(samples)
    )


def test_mvtec_ad_labels_by_folder_and_pairs_masks_by_stem(tmp_path: Path) -> None:
    mvtec_category(tmp_path / "bottle")
    mvtec_category(tmp_path / "screw", defect="scratch")
    samples = read_mvtec_ad(tmp_path)
    assert rows(samples, tmp_path) == [
        ("bottle/test/crack/000.png", "bottle", 1, "crack", 1),
        ("bottle/test/crack/001.png", "bottle", 1, "crack", 1),
        ("bottle/test/good/000.png", "bottle", 0, "good", 0),
        ("bottle/test/good/001.png", "bottle", 0, "good", 0),
        ("screw/test/good/000.png", "screw", 0, "good", 0),
        ("screw/test/good/001.png", "screw", 0, "good", 0),
        ("screw/test/scratch/000.png", "screw", 1, "scratch", 1),
        ("screw/test/scratch/001.png", "screw", 1, "scratch", 1),
    ]
    assert sum(sample.split == "train" for sample in samples) == 4
    assert [s.masks[0] for s in samples if s.label][1] == str(tmp_path / "bottle/ground_truth/crack/001_mask.png")
    assert read_mvtec_ad(tmp_path / "bottle") == [
        s for s in samples if s.category == "bottle"
    ]  # a single category as root


def test_missing_mask_is_named(tmp_path: Path) -> None:
    mvtec_category(tmp_path / "bottle")
    (tmp_path / "bottle/ground_truth/crack/001_mask.png").unlink()
    with pytest.raises(
        UserError, match=r"anomalous image '.*bottle/test/crack/001\.png' has no mask: expected 001\.png or"
    ):
        read_mvtec_ad(tmp_path)


def test_two_masks_of_one_image_are_refused(tmp_path: Path) -> None:
    mvtec_category(tmp_path / "bottle")
    mask(tmp_path / "bottle/ground_truth/crack/001.bmp")
    with pytest.raises(UserError, match=r"001\.png' has 2 masks in .*\(001\.bmp, 001_mask\.png\): keep one"):
        read_mvtec_ad(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["{}.png", "{}.PNG", "{}_mask.bmp", "{}_label.tif", "{}_GT.png", "{}_Segmentation.png", "{}_segmentation.JPG"],
)
def test_every_mask_name_is_found(tmp_path: Path, name: str) -> None:
    mvtec_category(tmp_path / "a b", mask_name=name)  # a blank in the folder as well
    assert [len(sample.masks) for sample in public(read_mvtec_ad(tmp_path)) if sample.label] == [1, 1]


def test_btad_normal_folder_is_ok_and_its_masks_are_ignored(tmp_path: Path) -> None:
    mvtec_category(tmp_path / "01", normal="ok", defect="ko", mask_name="{}.png")
    picture(tmp_path / "01/test/ko/007.bmp")
    mask(tmp_path / "01/ground_truth/ko/007.png")
    mask(tmp_path / "01/ground_truth/ok/000.png", box=None)
    assert [(row[2], row[4]) for row in rows(read_mvtec_ad(tmp_path, normal="ok"), tmp_path)] == [(1, 1)] * 3 + [
        (0, 0)
    ] * 2


def test_loco_unites_the_masks_of_an_image(tmp_path: Path) -> None:
    folder = tmp_path / "juice_bottle"
    picture(folder / "validation/good/000.png")
    picture(folder / "test/good/000.png")
    picture(folder / "test/logical_anomalies/000.png")
    mask(folder / "ground_truth/logical_anomalies/000/000.png", box=(0, 0, 2, 2), value=7)
    mask(folder / "ground_truth/logical_anomalies/000/001.png", box=(4, 4, 8, 8), value=9)
    samples = read_mvtec_ad(tmp_path)
    (anomalous,) = [sample for sample in samples if sample.label]
    assert len(anomalous.masks) == 2
    assert sorted(sample.split for sample in samples) == ["test", "test", "val"]
    region = read_sample(anomalous)[1]
    assert region is not None
    assert sum(region.histogram()[255:]) == 2 * 2 + 4 * 4


def test_mvtec_ad2_keeps_its_masks_inside_the_public_test_folder(tmp_path: Path) -> None:
    folder = tmp_path / "can"
    for name in ("train/good/0.png", "validation/good/1.png", "test_public/good/2.png", "test_public/bad/3.png"):
        picture(folder / name)
    picture(folder / "test_private/4.png")
    mask(folder / "test_public/ground_truth/bad/3_mask.png")
    samples = read_mvtec_ad(tmp_path, test="test_public", masks="test_public/ground_truth")
    assert rows(samples, folder) == [
        ("test_public/bad/3.png", "can", 1, "bad", 1),
        ("test_public/good/2.png", "can", 0, "good", 0),
    ]
    assert len(samples) == 4


def test_visa_as_downloaded_follows_its_table(tmp_path: Path) -> None:
    samples = read_visa(visa_download(tmp_path, categories=("candle", "pcb1")))
    assert rows(samples, tmp_path)[:2] == [
        ("candle/Data/Images/Anomaly/000.JPG", "candle", 1, "anomaly", 1),
        ("candle/Data/Images/Normal/0001.JPG", "candle", 0, "good", 0),
    ]
    assert sum(sample.split == "train" for sample in samples) == 2
    region = read_sample(next(sample for sample in samples if sample.label))[1]
    assert region is not None
    assert region.getextrema() == (0, 255)  # class number 2 counts


@pytest.mark.parametrize("inside", ["", "1cls"])
def test_visa_converted_layout(tmp_path: Path, inside: str) -> None:
    folder = tmp_path / inside / "pcb1"
    picture(folder / "train/good/0.JPG")
    picture(folder / "test/good/1.JPG")
    picture(folder / "test/bad/2.JPG")
    mask(folder / "ground_truth/bad/2.png")
    assert [(s.label, len(s.masks)) for s in public(read_visa(tmp_path))] == [(1, 1), (0, 0)]


def test_visa_reads_backslashes_and_counts_repeated_rows_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = visa_download(tmp_path)
    expected = read_visa(root)
    table = root / "split_csv/1cls.csv"
    head, *lines = table.read_text().splitlines()
    table.write_text("\n".join([head, *(line.replace("/", "\\") for line in lines), lines[-1]]))
    assert read_visa(root) == expected
    assert "1 entries list an image again" in caplog.text
    table.write_text("\n".join([head, *lines, lines[-1].replace("anomaly,", "normal,", 1)]))
    with pytest.raises(UserError, match=r"lists image '.*000\.JPG' twice, as anomaly and as good"):
        read_visa(root)


@pytest.mark.parametrize(
    "added, encoding, told",
    [
        ("pcb1,test", "utf-8", r"1cls\.csv' line 5: fewer than 5 values"),
        ("pièce,test,normal,x,", "latin-1", r"1cls\.csv' is no text in UTF-8: save it as UTF-8"),
        ("", "utf-16", r"1cls\.csv' is no text in UTF-8"),
        ("x" * 200_000, "utf-8", r"1cls\.csv' line 4: field larger than"),
    ],
)
def test_visa_refuses_damaged_tables(tmp_path: Path, added: str, encoding: str, told: str) -> None:
    table = visa_download(tmp_path) / "split_csv/1cls.csv"
    table.write_bytes((table.read_text() + added).encode(encoding))
    with pytest.raises(UserError, match=told):
        read_visa(tmp_path)


def test_visa_refuses_unknown_or_missing_tables(tmp_path: Path) -> None:
    root = visa_download(tmp_path)
    with pytest.raises(UserError, match=r"unknown split_csv '2cls': choose one of 1cls, 2cls_fewshot, 2cls_highshot"):
        read_visa(root, split_csv="2cls")
    with pytest.raises(UserError, match=r"has no split_csv/2cls_fewshot\.csv"):
        read_visa(root, split_csv="2cls_fewshot")
    (root / "split_csv/1cls.csv").write_text("object,split,label,image\n")
    with pytest.raises(UserError, match=r"lacks the column mask"):
        read_visa(root)


def test_magnetic_tile(tmp_path: Path) -> None:
    picture(tmp_path / "MT_Free/Imgs/exp1_num_1.jpg", mode="L")
    mask(tmp_path / "MT_Free/Imgs/exp1_num_1.png", box=None)
    picture(tmp_path / "MT_Crack/Imgs/exp1_num_2.jpg", mode="L")
    mask(tmp_path / "MT_Crack/Imgs/exp1_num_2.png")
    picture(tmp_path / "MT_Uneven/Imgs/exp3_num_45042.jpg", mode="L")
    mask(tmp_path / "MT_Uneven/Imgs/exp3_num_45042.png", box=None)  # empty: anomalous all the same
    (tmp_path / "README.md").write_text("read me")
    assert rows(read_magnetic_tile(tmp_path), tmp_path) == [
        ("MT_Crack/Imgs/exp1_num_2.jpg", "magnetic tile", 1, "crack", 1),
        ("MT_Free/Imgs/exp1_num_1.jpg", "magnetic tile", 0, "good", 0),
        ("MT_Uneven/Imgs/exp3_num_45042.jpg", "magnetic tile", 1, "uneven", 1),
    ]
    (tmp_path / "MT_Crack/Imgs/exp1_num_2.png").unlink()
    with pytest.raises(UserError, match=r"exp1_num_2\.jpg' has no mask"):
        read_magnetic_tile(tmp_path)


def dagm(root: Path) -> Path:
    for split, count in (("Train", 4), ("Test", 3)):
        folder = root / "Class1" / split
        for i in range(1, count + 1):
            picture(folder / f"{i:04d}.PNG", mode="L")
        mask(folder / "Label" / "0002_label.PNG")
        (folder / "Label" / "Labels.txt").write_text("1\n1\t0\t0001.PNG\t0\t0\n2\t1\t0002.PNG\t0\t0002_label.PNG\n")
    return root


def test_dagm_own_folders(tmp_path: Path) -> None:
    samples = read_dagm(dagm(tmp_path))
    assert [(s.label, s.split) for s in samples if s.label] == [(1, "train"), (1, "test")]
    assert len(public(samples)) == 3


def test_dagm_balanced_takes_equally_many_normal_ones_of_each_folder(tmp_path: Path) -> None:
    samples = read_dagm(dagm(tmp_path), protocol="balanced")
    assert sorted(s.label for s in public(samples)) == [0, 0, 1, 1]
    assert {s.label for s in samples if s.split == "train"} == {0}
    assert len(samples) == 7


def test_dagm_lost_mask_does_not_turn_an_image_normal(tmp_path: Path) -> None:
    (dagm(tmp_path) / "Class1/Test/Label/0002_label.PNG").unlink()
    with pytest.raises(UserError, match=r"Class1/Test/0002\.PNG' has no mask"):
        read_dagm(tmp_path)
    with pytest.raises(UserError, match="unknown protocol 'balance': choose one of balanced"):
        read_dagm(tmp_path, protocol="balance")


def test_dagm_converted_layout(tmp_path: Path) -> None:
    mvtec_category(tmp_path / "Class1")
    assert len(public(read_dagm(tmp_path))) == 4


def test_ksdd_cuts_thirds_and_labels_them_by_their_masks(tmp_path: Path) -> None:
    for i in range(4):
        picture(tmp_path / f"kos0{i}/Part0.jpg", size=(4, 10), mode="L", value=20 * i)
        mask(tmp_path / f"kos0{i}/Part0_label.bmp", size=(4, 10), box=(0, 3, 4, 6) if i == 1 else None)
    samples = read_ksdd(tmp_path)
    anomalous = [sample for sample in samples if sample.label]
    assert [Path(s.path).name for s in anomalous] == ["Part0.jpg#2"]  # rows 3..6 of 10 are the second third
    assert len(samples) == 12
    normal_test = [s for s in public(samples) if not s.label]
    assert len(normal_test) == 3  # a quarter of 11, rounded up
    assert samples == read_ksdd(tmp_path)
    image, region = read_sample(anomalous[0])
    assert image.size == (4, 3)
    assert region is not None
    assert region.getextrema() == (255, 255)
    image, region = read_sample(next(s for s in samples if s.path.endswith("kos01/Part0.jpg#3")))
    assert (image.size, region) == ((4, 4), None)


def test_ksdd_converted_layout(tmp_path: Path) -> None:
    mvtec_category(tmp_path / "SDD", defect="defect")
    assert {s.category for s in read_ksdd(tmp_path)} == {"SDD"}


def test_ksdd2_labels_by_mask(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for i in range(3):
            picture(tmp_path / split / f"2000{i}.png")
            mask(tmp_path / split / f"2000{i}_GT.png", box=(0, 0, 1, 1) if i == 2 else None)
    assert rows(read_ksdd2(tmp_path), tmp_path) == [
        ("test/20000.png", "ksdd2", 0, "good", 0),
        ("test/20001.png", "ksdd2", 0, "good", 0),
        ("test/20002.png", "ksdd2", 1, "defect", 1),
    ]


def real_iad(root: Path, mask_path: str | None) -> Path:
    entries = [
        {"image_path": "OK/S0001/toy_1_C1.jpg", "mask_path": None, "anomaly_class": "OK"},
        {"image_path": "NG/HS/S0002/toy_2_C1.jpg", "mask_path": mask_path, "anomaly_class": "HS"},
    ]
    write_json(root / "realiad_jsons/realiad_jsons/toy.json", {"meta": {}, "train": entries[:1], "test": entries})
    picture(root / "realiad_1024/toy/OK/S0001/toy_1_C1.jpg")
    picture(root / "realiad_1024/toy/NG/HS/S0002/toy_2_C1.jpg")
    return root


def test_real_iad(tmp_path: Path) -> None:
    samples = read_real_iad(real_iad(tmp_path, "NG/HS/S0002/toy_2_C1_mask.png"))
    base = tmp_path / "realiad_1024/toy"
    assert rows(samples, base) == [
        ("NG/HS/S0002/toy_2_C1.jpg", "toy", 1, "HS", 1),
        ("OK/S0001/toy_1_C1.jpg", "toy", 0, "good", 0),
    ]
    assert len(samples) == 3
    assert read_real_iad(tmp_path, resolution=256) == []


def test_real_iad_refuses_damaged_lists(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"toy_2_C1\.jpg' has no mask_path"):
        read_real_iad(real_iad(tmp_path, None))
    write_json(tmp_path / "realiad_jsons/realiad_jsons/toy.json", {"test": []})
    with pytest.raises(UserError, match=r"toy\.json' is no list of Real-IAD \(KeyError: 'train'\)"):
        read_real_iad(tmp_path)
