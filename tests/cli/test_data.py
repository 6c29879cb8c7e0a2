"""`anomaly-vlm data`: what is found beside what the publishers state; the exit status for an incomplete set."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from anomaly_vlm.cli import main
from tests.data.trees import mask, mvtec_category, picture

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
    assert len(json.loads((tmp_path / "meta.json").read_text())["test"]["tile"]) == 4


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
