"""Precomputed boxes in JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from anomaly_vlm.detectors.boxes_file import FileDetector
from anomaly_vlm.errors import UserError


def write(folder: Path, images: dict[str, Any], size: str = "pixels") -> str:
    path = folder / "boxes.json"
    path.write_text(json.dumps({"format": 1, "size": size, "images": images}))
    return str(path)


def image(folder: Path, name: str) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (200, 100)).save(path)
    return str(path)


def test_boxes_in_pixels_of_the_image(tmp_path: Path) -> None:
    entry = {"boxes": [[20, 10, 40, 30], [0, 0, 200, 100]], "scores": [0.9, 0.8], "phrases": ["rust", "all"]}
    detector = FileDetector(write(tmp_path, {"crack/001.png": entry}))
    path = image(tmp_path, "data/crack/001.png")
    (found,) = detector.detect([path], ["rust."], size=(50, 50), max_area=0.7)
    torch.testing.assert_close(found.boxes, torch.tensor([[5.0, 5.0, 10.0, 15.0]]))
    assert found.phrases == ("rust",) and found.scores.tolist() == pytest.approx([0.9])


def test_relative_boxes_with_defaults(tmp_path: Path) -> None:
    detector = FileDetector(write(tmp_path, {"001.png": {"boxes": [[0.1, 0.2, 0.3, 0.4]]}}, "relative"))
    (found,) = detector.detect([image(tmp_path, "001.png")], ["rust."], size=(100, 100))
    torch.testing.assert_close(found.boxes, torch.tensor([[10.0, 20.0, 30.0, 40.0]]))
    assert found.phrases == ("anomaly",) and found.scores.tolist() == [1.0]


def test_the_longest_name_wins(tmp_path: Path) -> None:
    one, two = {"boxes": [[0, 0, 0.5, 0.5]]}, {"boxes": []}
    detector = FileDetector(write(tmp_path, {"001.png": one, "good/001.png": two}, "relative"))
    paths = [image(tmp_path, "good/001.png"), image(tmp_path, "bad/001.png")]
    assert [len(found) for found in detector.detect(paths, ["a."] * 2, size=(9, 9))] == [0, 1]


def test_an_image_without_an_entry(tmp_path: Path) -> None:
    path = write(tmp_path, {})
    lone = image(tmp_path, "001.png")
    with pytest.raises(UserError, match=r"no entry for image '.*001\.png'.*detector\.missing=none"):
        FileDetector(path).detect([lone], ["a."], size=(9, 9))
    assert len(FileDetector(path, missing="none").detect([lone], ["a."], size=(9, 9), keep_best=True)[0]) == 0


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "no JSON"),
        ('{"format": 2}', "expected {'format': 1"),
        ('{"format": 1, "size": "pixels"}', "has no 'images'"),
        ('{"format": 1, "size": "pixels", "images": {"a": {}}}', "image 'a': no list 'boxes'"),
        ('{"format": 1, "size": "pixels", "images": {"a": {"boxes": [[3, 0, 1, 1]]}}}', "in the order"),
        ('{"format": 1, "size": "pixels", "images": {"a": {"boxes": [[0, 0, 1, NaN]]}}}', "finite"),
        ('{"format": 1, "size": "pixels", "images": {"a": {"boxes": [], "scores": [1]}}}', "'scores' does not fit"),
    ],
)
def test_wrong_files(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "boxes.json"
    path.write_text(text)
    with pytest.raises(UserError, match=told.replace("{", r"\{")):
        FileDetector(str(path))


def test_no_file() -> None:
    with pytest.raises(UserError, match=r"detector\.path=FILE"):
        FileDetector(None)
    with pytest.raises(UserError, match="does not exist"):
        FileDetector("absent.json")
    with pytest.raises(UserError, match=r"unknown detector\.missing"):
        FileDetector("absent.json", missing="maybe")  # type: ignore[arg-type]
