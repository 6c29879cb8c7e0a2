"""Detectors' answers on disk: hits, damage, what is kept, several writers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from anomaly_vlm.detectors import DetectionStore, Detector, Picture, Queries
from anomaly_vlm.detectors.stores import best
from anomaly_vlm.errors import UserError
from tests.detectors.tiny import picture


class Counting(Detector):
    """Says the same of every image, and counts how often it was asked."""

    name = "counting"
    asked = 0
    weights = "a"

    def look(self, pictures: Sequence[Picture], captions: Sequence[str]) -> list[Queries]:
        self.asked += len(pictures)
        probs = torch.tensor([[0.1, 0.7], [0.01, 0.02], [0.2, 0.3]])
        boxes = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.1, 0.1, 0.1, 0.1], [0.7, 0.7, 0.1, 0.1]])
        return [Queries(boxes, probs.amax(dim=1), probs, ("[CLS]", caption)) for caption in captions]

    def identity(self) -> dict[str, Any]:
        return {"weights": self.weights}


def pair(seed: int = 0, caption: str = "rust.") -> tuple[list[Picture], list[str]]:
    return [Picture(f"{seed}.png", picture(seed))], [caption]


def test_an_image_and_caption_are_computed_once(tmp_path: Path) -> None:
    detector = Counting(DetectionStore(tmp_path))
    first = detector.queries(*pair())[0]
    again = Counting(DetectionStore(tmp_path))  # another run
    second = again.queries(*pair())[0]
    assert (detector.asked, again.asked) == (1, 0)
    assert first.probs is not None and second.probs is not None
    assert torch.equal(first.probs, second.probs) and torch.equal(first.boxes, second.boxes)
    assert first.pieces == second.pieces and first.floor == second.floor == 0.05
    assert len(first) == 2, "the query of score 0.02 is not kept"
    for other in (pair(seed=1), pair(caption="crack.")):
        again.queries(*other)
    assert again.asked == 2
    again.weights = "b"
    again.queries(*pair())
    assert again.asked == 3, "other weights are another entry"


@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
def test_a_damaged_entry_is_computed_anew(tmp_path: Path, damage: bytes | None) -> None:
    detector = Counting(DetectionStore(tmp_path))
    detector.queries(*pair())
    (file,) = tmp_path.rglob("*.safetensors")
    whole = file.read_bytes()
    file.write_bytes(whole[:-3] + b"abc" if damage is None else damage)
    detector.queries(*pair())
    assert detector.asked == 2
    assert file.read_bytes() == whole and not list(tmp_path.rglob("*.unfinished"))


def test_a_batch_of_known_and_new_images(tmp_path: Path) -> None:
    detector = Counting(DetectionStore(tmp_path))
    detector.queries(*pair(1))
    pictures = [Picture(str(i), picture(i)) for i in range(3)]
    answers = detector.queries(pictures, ["a.", "rust.", "c."])
    assert detector.asked == 3 and [answer.pieces[1] for answer in answers] == ["a.", "rust.", "c."]


def test_what_is_kept() -> None:
    scores = torch.tensor([0.2, 0.9, 0.04, 0.5, 0.3])
    answer = Queries(torch.rand(5, 4), scores, scores[:, None], ("a",))
    kept = best(answer, 0.05, 2)
    assert kept.scores.tolist() == pytest.approx([0.9, 0.5]) and kept.floor == pytest.approx(0.3)
    assert torch.equal(kept.boxes, answer.boxes[[1, 3]])
    single = best(answer, 0.95, 50)
    assert single.scores.tolist() == pytest.approx([0.9]) and single.floor == pytest.approx(0.95)
    ready = best(Queries(answer.boxes, scores, phrases=tuple("abcde")), 0.25, 50)
    assert ready.phrases == ("b", "d", "e")


def test_a_folder_that_cannot_be_written_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    detector = Counting(DetectionStore(tmp_path / "file" / "store"))
    assert len(detector.queries(*pair())[0]) == 2 and detector.store is not None and detector.store.written == 0


def test_colours_and_grey_are_told_apart(tmp_path: Path) -> None:
    store = DetectionStore(tmp_path)
    image = picture(0)
    assert store.key(image, "a.", {}) == store.key(Image.fromarray(np.asarray(image)), "a.", {})
    assert store.key(image, "a.", {}) != store.key(image.convert("L"), "a.", {})


def test_wrong_options(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="keep_score 1"):
        DetectionStore(tmp_path, keep_score=1.0)
