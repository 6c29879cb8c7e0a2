"""`anomaly-vlm data`: what is found beside what the publishers state; the exit status for an incomplete set."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from anomaly_vlm.cli import main
from tests.data.test_readers_coco import content
from tests.data.trees import mask, mvtec_category, picture, write_json

FEW = "dataset.test.published_counts={train: [2, 0], test: [2, 2]}"


def told(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    return captured.out + captured.err


def test_a_complete_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mvtec_category(tmp_path / "tile")
    for i, place in enumerate(sorted((tmp_path / "tile").rglob("*.png"))):
        if "ground_truth" not in place.parts:
            picture(place, value=10 + i)
    words = ["data", "mvtec_ad", str(tmp_path), FEW, "--verify", "--meta-json", f"sheet={tmp_path / 'sheet.png'}"]
    assert main(words) == 0
    said = told(capsys)
    assert "train: 2 normal, 0 anomalous, as published" in said and "test: 2 normal, 2 anomalous, as published" in said
    assert "sizes: 8x8" in said and "complete" in said and "same" not in said
    assert (tmp_path / "sheet.png").is_file()
    index = json.loads((tmp_path / "meta.json").read_text())
    assert len(index["test"]["tile"]) == 4 and len(index["train"]["tile"]) == 2


def test_what_is_wrong_is_named_and_is_the_exit_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mvtec_category(tmp_path / "tile")
    shutil.copy(tmp_path / "tile/train/good/000.png", tmp_path / "tile/test/good/000.png")  # training and test share it
    (tmp_path / "tile/test/crack/001.png").write_bytes(b"no image")
    assert main(["data", "dataset=mvtec_ad", f"dataset.test.root={tmp_path}"]) == 1
    said = told(capsys)
    assert "test: 2 normal, 2 anomalous; PUBLISHED: 467 normal, 1,258 anomalous" in said
    assert "1 files that cannot be read:" in said and "crack/001.png" in said
    assert "groups of images that are the same" in said and "train: " in said and " = test: " in said
    assert "not complete" in said


def test_unusual_masks_are_named_when_they_are_decoded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(tmp_path / "good/0.png", value=1)
    picture(tmp_path / "dent/1.png", value=2)
    mask(tmp_path / "ground_truth/1.png", box=None)
    assert main(["data", "folder", str(tmp_path), "--verify"]) == 0
    assert "1 of 1 masks mark no pixel at all" in told(capsys)


@pytest.mark.parametrize("words", [[], ["--verify"]])
def test_images_whose_masks_are_annotations_are_read(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(tmp_path / "1.png", value=1, size=(10, 8))
    picture(tmp_path / "2.png", value=2, size=(10, 8))
    write_json(tmp_path / "annotations.json", content([[3, 2, 8, 2, 8, 5, 3, 5]]))
    assert main(["data", "coco", str(tmp_path), *words]) == 0
    assert "sizes: 10x8" in told(capsys)
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:40])
    assert main(["data", "coco", str(tmp_path), *words]) == 1
    said = told(capsys)
    assert "1 files that cannot be read:" in said and "2.png" in said and "not complete (2 images looked at)" in said


def test_a_folder_that_is_dealt_out_is_looked_at_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(5):
        picture(tmp_path / f"good/{i}.png", value=10 + i)
        picture(tmp_path / f"dent/{i}.png", value=20 + i)
    assert main(["data", "own", str(tmp_path)]) == 0
    said = told(capsys)
    assert "train: " in said and "test: " in said and "complete (10 images looked at)" in said
    for path in tmp_path.rglob("*.png"):
        whole = path.read_bytes()
        path.write_bytes(b"no image")
        assert main(["data", "own", str(tmp_path)]) == 1, path
        path.write_bytes(whole)


def test_images_without_labels_are_not_called_good(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,label\na.png,\n")
    main(["data", "hugging_face", str(tmp_path)])
    said = told(capsys)
    assert " unlabelled " in said and " good " not in said


def test_an_image_of_another_size_than_annotated_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(tmp_path / "1.png", value=1, size=(10, 8))
    picture(tmp_path / "2.png", value=2, size=(8, 10))
    write_json(tmp_path / "annotations.json", content([[3, 2, 8, 2, 8, 5, 3, 5]]))
    assert main(["data", "coco", str(tmp_path)]) == 1
    said = told(capsys)
    assert "2.png' is 8x10, but its annotation file says 10x8" in said and "not complete" in said


def test_drawn_sets_need_no_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "procedural"]) == 0
    assert "test: " in told(capsys)


def test_an_unknown_set_and_a_missing_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "mvtec"]) == 2
    assert "mvtec_ad" in told(capsys)
    assert main(["data", "visa", "/nowhere"]) == 2
    assert "visa: no folder '/nowhere'" in told(capsys)


def test_a_run_says_that_counts_differ(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mvtec_category(tmp_path / "tile")
    words = ["evaluate", "method=winclip", "backbone=tiny_random", "dataset=mvtec_ad", "dataset.train=null"]
    assert (
        main([*words, f"dataset.test.root={tmp_path}", f"output_dir={tmp_path / 'out'}", "pictures.per_category=0"])
        == 0
    )
    assert "test has 2 normal and 2 anomalous images, the publishers state 467 and 1258" in caplog.text


def test_a_folder_whose_name_has_an_equals_sign(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(tmp_path / "a=b/good/0.png")
    picture(tmp_path / "a=b/dent/1.png")
    assert main(["data", "folder", str(tmp_path / "a=b")]) == 0
    assert "2 images looked at" in told(capsys)
