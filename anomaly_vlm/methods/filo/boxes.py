"""FiLo's use of boxes (HQ-Loc): which are valid, which position they name, and how they damp the map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from anomaly_vlm.detectors import Detections, Queries, clip, detections
from anomaly_vlm.errors import UserError, unknown_choice


def with_valid_phrases(found: Detections, words: Sequence[str], match: str) -> Detections:
    """Boxes whose phrase contains one whole word group of the caption are valid.

    Args:
        words: as spelled in the table.
        match: `reference` compares them as they are, so that one with capitals never matches and a trailing blank counts;
            `casefold` lower-cases and strips them first.
    """
    entries = [word.lower().strip() for word in words] if match == "casefold" else list(words)
    valid = torch.tensor([any(entry in phrase for entry in entries) for phrase in found.phrases], dtype=torch.bool)
    return replace(found, valid=found.valid & valid)


def best_box(found: Detections, cut: int | None) -> int | None:
    """Index of the best valid box, or None.

    Args:
        cut: decimals to which scores are cut (not rounded) before they are compared; the later of two equal ones wins.
    """
    best: tuple[float, int] | None = None
    for i, (score, valid) in enumerate(zip(found.scores.tolist(), found.valid.tolist(), strict=True)):
        value = score if cut is None else math.floor(score * 10**cut)
        if valid and (best is None or value >= best[0]):
            best = (value, i)
    return None if best is None else best[1]


def cell(value: float, side: int, cells: str) -> int | None:
    """Third of an image side (0, 1, 2) in which a pixel coordinate lies.

    `reference`: inclusive ranges [0, S // 3], [S // 3 + 1, 2S // 3 - 1], [2S // 3, S - 1]; in the gaps between them and
    outside there is None. `thirds`: always one.
    """
    if cells == "thirds":
        return min(max(math.floor(3 * value / side), 0), 2)
    first, last = side // 3, 2 * side // 3
    for number, (low, high) in enumerate(((0, first), (first + 1, last - 1), (last, side - 1))):
        if low <= value <= high:
            return number
    return None


def position_of(box: Tensor | None, size: tuple[int, int], cells: str) -> int | None:
    """Which of the nine positions (row by row) a box's centre lies in; the image's centre where there is no box."""
    height, width = size
    x, y = (width / 2, height / 2) if box is None else (float(box[0] + box[2]) / 2, float(box[1] + box[3]) / 2)
    row, column = cell(y, height, cells), cell(x, width, cells)
    return None if row is None or column is None else 3 * row + column


def damped(heat: Tensor, found: Detections, factor: float, *, clip_boxes: bool) -> Tensor:
    """A map [H, W] times `factor` outside of all valid boxes.

    Box edges are cut to whole numbers and used as slices. Unless clipped first, an edge of -1 or less counts from the other
    side, as in the published code, which leaves such a box nearly always empty.
    """
    size = (heat.shape[0], heat.shape[1])
    boxes = found.boxes[found.valid]
    weight = torch.full_like(heat, factor)
    for box in clip(boxes, size) if clip_boxes else boxes:
        left, top, right, bottom = (int(edge) for edge in box.tolist())
        weight[top:bottom, left:right] = 1.0
    return heat * weight


class Located(NamedTuple):
    """Where an image's sentences and map should look: boxes, and the position that the best one names (None: all nine)."""

    found: Detections
    position: int | None


class Locator:
    """HQ-Loc's rules with their options.

    Args:
        box_threshold, text_threshold: of scores, of the caption's word pieces.
        area_threshold: boxes of this share of the image, or more, are dropped.
        phrase_match, score_cut, cells: see `with_valid_phrases`, `best_box` (`none`: full scores), `cell`.
        outside_factor, clip_boxes: see `damped`.

    Raises:
        UserError: an option that is unknown or out of range.
    """

    def __init__(
        self,
        *,
        box_threshold: float,
        text_threshold: float,
        area_threshold: float,
        phrase_match: str,
        score_cut: int | str | None,
        cells: str,
        outside_factor: float,
        clip_boxes: bool,
    ) -> None:
        for name, value, known in (
            ("phrase_match", phrase_match, ("reference", "casefold")),
            ("cells", cells, ("reference", "thirds")),
        ):
            if value not in known:
                raise unknown_choice(f"method.{name}", str(value), known)
        cut = None if score_cut == "none" else score_cut
        if cut is not None and (isinstance(cut, bool) or not isinstance(cut, int) or cut < 0):
            raise UserError(f"method.score_cut is {score_cut!r}: give a number of decimals, or none")
        if not all(0 <= value <= 1 for value in (box_threshold, text_threshold, area_threshold)) or outside_factor < 0:
            raise UserError(
                f"method: box_threshold {box_threshold}, text_threshold {text_threshold}, area_threshold {area_threshold},"
                f" outside_factor {outside_factor}: give numbers from 0 to 1"
            )
        self.box_threshold, self.text_threshold, self.area_threshold = box_threshold, text_threshold, area_threshold
        self.phrase_match, self.score_cut, self.cells = phrase_match, cut, cells
        self.outside_factor, self.clip_boxes = outside_factor, clip_boxes

    def by_queries(self, queries: Queries, words: Sequence[str], size: tuple[int, int]) -> Located:
        """By a detector's answer; `words` are the caption's word groups, `size` the map's (height, width)."""
        found = detections(
            queries,
            size,
            box_threshold=self.box_threshold,
            text_threshold=self.text_threshold,
            max_area=self.area_threshold,
            keep_best=True,
        )
        found = with_valid_phrases(found, words, self.phrase_match)
        best = best_box(found, self.score_cut)
        return Located(found, position_of(None if best is None else found.boxes[best], size, self.cells))

    def by_boxes(self, found: Detections, size: tuple[int, int]) -> Located:
        """By ready boxes, the best first."""
        return Located(found, position_of(found.boxes[0] if len(found) else None, size, self.cells))

    def damped(self, heat: Tensor, found: Detections) -> Tensor:
        """The map [H, W], weaker outside of all valid boxes."""
        return damped(heat, found, self.outside_factor, clip_boxes=self.clip_boxes)
