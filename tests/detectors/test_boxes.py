"""Choosing, naming and drawing boxes, on hand-made cases."""

from __future__ import annotations

import math

import pytest
import torch

from anomaly_vlm.detectors import Queries, caption_of, clip, corners, detections, phrase_of, select
from anomaly_vlm.detectors.boxes import queries_of
from anomaly_vlm.errors import UserError

BOXES = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0.9, 0.9], [0.1, 0.2, 0.1, 0.3], [0.3, 0.3, 0.2, 0.1]])
SCORES = torch.tensor([0.3, 0.9, 0.2, 0.25])


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"max_area": 0.7}, [0]),  # the large box is out, a score at the threshold too
        ({}, [0, 1]),
        ({"box_threshold": 0.1}, [0, 1, 2, 3]),  # query order, not by score
        ({"box_threshold": 0.95}, []),
        ({"box_threshold": 0.95, "keep_best": True}, [1]),
        ({"box_threshold": 0.5, "max_area": 0.7, "keep_best": True}, [1]),  # taken back whatever its area
    ],
)
def test_select(options: dict, kept: list[int]) -> None:
    assert select(BOXES, SCORES, **options).tolist() == kept


def test_nothing_to_select() -> None:
    assert select(torch.empty(0, 4), torch.empty(0), keep_best=True).tolist() == []


def test_an_area_limit_of_one_lets_the_whole_image_in() -> None:
    whole = torch.tensor([[0.5, 0.5, 1.0, 1.0]])
    assert select(whole, torch.tensor([0.9]), max_area=1.0).tolist() == [0]
    assert select(whole, torch.tensor([0.9]), max_area=0.99).tolist() == []


def test_phrases_glue_word_pieces_and_leave_the_ends_out() -> None:
    pieces = ["[CLS]", "contam", "##ination", ".", "rust", "[SEP]"]
    probs = torch.tensor([0.9, 0.5, 0.4, 0.1, 0.3, 0.2])
    assert phrase_of(probs, pieces, 0.25) == "contamination rust"
    assert phrase_of(probs, pieces, 0.45) == "contam"
    assert phrase_of(torch.tensor([0.9] * 257), ["x"] * 257, 0.25).count("x") == 254  # columns 0, 255, 256 never count


def test_captions_end_with_one_full_stop() -> None:
    assert caption_of(["Anomaly", "frayed Edges "]) == "anomaly . frayed edges."
    assert caption_of(["broken."]) == "broken."


def test_corners_and_clip() -> None:
    boxes = corners(torch.tensor([[0.5, 0.5, 0.5, 1.2]]), (100, 200))
    torch.testing.assert_close(boxes, torch.tensor([[50.0, -10.0, 150.0, 110.0]]))
    assert clip(boxes, (100, 200)).tolist() == [[50.0, 0.0, 150.0, 100.0]]


def test_detections_of_queries() -> None:
    probs = torch.tensor([[0.1, 0.6, 0.1], [0.1, 0.2, 0.1]])
    queries = Queries(BOXES[:2], probs.amax(dim=1), probs, ("[CLS]", "rust", "[SEP]"), floor=0.05)
    found = detections(queries, (10, 10), text_threshold=0.5)
    assert found.phrases == ("rust",) and found.valid.tolist() == [True]
    torch.testing.assert_close(found.boxes, torch.tensor([[4.0, 4.0, 6.0, 6.0]]))
    assert len(detections(queries, (10, 10), box_threshold=0.7)) == 0
    assert detections(queries, (10, 10), box_threshold=0.7).boxes.shape == (0, 4)
    with pytest.raises(UserError, match=r"box_threshold 0\.01.*above 0\.05 were kept"):
        detections(queries, (10, 10), box_threshold=0.01)


def test_a_models_output() -> None:
    logits = torch.full((1, 256), -math.inf)
    logits[0, :3] = torch.tensor([0.0, 2.0, -100.0])
    found = queries_of(logits, BOXES[:1], ["[CLS]", "rust", "."], "a.png")
    assert found.probs is not None and found.probs.shape == (1, 3)
    assert found.scores.item() == pytest.approx(1 / (1 + math.exp(-2)))
    with pytest.raises(UserError, match=r"not finite for image 'a\.png'"):
        queries_of(logits, BOXES[:1] * math.inf, ["[CLS]", "rust", "."], "a.png")
