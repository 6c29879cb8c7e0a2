"""FiLo's use of boxes (HQ-Loc, section 3.3.1): which are valid, which position they name, and how they damp the map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal, NamedTuple

import torch
from torch import Tensor

from anomaly_vlm.detectors import Detections, Queries, clip, detections
from anomaly_vlm.options import AtLeast, Fraction

PhraseMatch = Literal["published", "casefold"]
Cells = Literal["published", "thirds"]


@dataclass(frozen=True)
class BoxOptions:
    """Which boxes count, and what they do to the map.

    Args:
        box_threshold: Score above which a box counts.
        text_threshold: Score above which a word of the caption belongs to a box's phrase.
        area_threshold: Boxes that cover this share of the image, or more, are dropped.
        phrase_match: See `with_valid_phrases`.
        score_cut: Decimals to which scores are cut before they are compared, see `best_box`; None for full scores.
        cells: See `cell`.
        outside_factor: Factor on the map outside of all valid boxes.
        clip: Whether boxes are cut to the image before they damp the map, see `damped`; the published code does not.
    """

    box_threshold: Fraction = 0.25
    text_threshold: Fraction = 0.25
    area_threshold: Fraction = 0.7
    phrase_match: PhraseMatch = "published"
    score_cut: Annotated[int, AtLeast(0)] | None = 2
    cells: Cells = "published"
    outside_factor: Annotated[float, AtLeast(0)] = 0.7
    clip: bool = False


def with_valid_phrases(found: Detections, words: Sequence[str], match: PhraseMatch) -> Detections:
    """Marks the boxes as valid whose phrase contains one whole word group of the caption.

    Args:
        found: Detections of an image.
        words: Word groups of the caption, as the table spells them.
        match: `published`: words are compared as they are, although phrases are in lower case, so that one with capitals
            never matches and a trailing blank counts. `casefold`: words are lower-cased and stripped first.
    """
    entries = [word.lower().strip() for word in words] if match == "casefold" else list(words)
    valid = torch.tensor([any(entry in phrase for entry in entries) for phrase in found.phrases], dtype=torch.bool)
    return replace(found, valid=found.valid & valid)


def best_box(found: Detections, cut: int | None) -> int | None:
    """Index of the best valid box, or None where there is none.

    Args:
        found: Detections of an image.
        cut: Decimals to which scores are cut (not rounded) before they are compared; of two equal ones the later wins.
            None for full scores.
    """
    best: tuple[float, int] | None = None
    for i, (score, valid) in enumerate(zip(found.scores.tolist(), found.valid.tolist(), strict=True)):
        value = score if cut is None else math.floor(score * 10**cut)
        if valid and (best is None or value >= best[0]):
            best = (value, i)
    return None if best is None else best[1]


def cell(value: float, side: int, cells: Cells) -> int | None:
    """Third of an image side (0, 1, 2) in which a pixel coordinate lies.

    Args:
        value: The coordinate.
        side: Length S of the side in pixels.
        cells: `published`: the inclusive ranges [0, S // 3], [S // 3 + 1, 2S // 3 - 1] and [2S // 3, S - 1], with None for
            what lies between or outside of them. `thirds`: always one of the three.
    """
    if cells == "thirds":
        return min(max(math.floor(3 * value / side), 0), 2)
    first, last = side // 3, 2 * side // 3
    for number, (low, high) in enumerate(((0, first), (first + 1, last - 1), (last, side - 1))):
        if low <= value <= high:
            return number
    return None


def position_of(box: Tensor | None, size: tuple[int, int], cells: Cells) -> int | None:
    """Which of the nine positions, row by row from 0, a box's centre lies in.

    Args:
        box: Corners `[4]` in pixels; None for the centre of the image.
        size: Height and width of the image.
        cells: See `cell`.
    """
    height, width = size
    x, y = (width / 2, height / 2) if box is None else (float(box[0] + box[2]) / 2, float(box[1] + box[3]) / 2)
    row, column = cell(y, height, cells), cell(x, width, cells)
    return None if row is None or column is None else 3 * row + column


def damped(heat: Tensor, found: Detections, factor: float, *, clip_boxes: bool) -> Tensor:
    """Multiplies a map by a factor outside of all valid boxes.

    Args:
        heat: Map `[H, W]`.
        found: Detections of the image.
        factor: Factor outside.
        clip_boxes: Whether boxes are cut to the image first. Box edges are cut to whole numbers and used as slices; an edge
            of -1 or less that is not cut counts from the other side, which leaves such a box nearly always empty, as in the
            published code.
    """
    size = (heat.shape[0], heat.shape[1])
    boxes = found.boxes[found.valid]
    weight = torch.full_like(heat, factor)
    for box in clip(boxes, size) if clip_boxes else boxes:
        left, top, right, bottom = (int(edge) for edge in box.tolist())
        weight[top:bottom, left:right] = 1.0
    return heat * weight


class Located(NamedTuple):
    """Where the sentences and the map of an image look.

    Attributes:
        found: Its boxes.
        position: The position that the best box names; None for all nine.
    """

    found: Detections
    position: int | None


class Locator:
    """The rules of HQ-Loc with their options.

    Args:
        options: Thresholds and rules.
    """

    def __init__(self, options: BoxOptions) -> None:
        self.options = options

    def by_queries(self, queries: Queries, words: Sequence[str], size: tuple[int, int]) -> Located:
        """Locates by a detector's answer.

        Args:
            queries: The answer.
            words: Word groups of the caption.
            size: Height and width of the map.
        """
        options = self.options
        found = detections(
            queries,
            size,
            box_threshold=options.box_threshold,
            text_threshold=options.text_threshold,
            max_area=options.area_threshold,
            keep_best=True,
        )
        found = with_valid_phrases(found, words, options.phrase_match)
        best = best_box(found, options.score_cut)
        return Located(found, position_of(None if best is None else found.boxes[best], size, options.cells))

    def by_boxes(self, found: Detections, size: tuple[int, int]) -> Located:
        """Locates by ready boxes, the best one first, on a map of `size` (height, width)."""
        return Located(found, position_of(found.boxes[0] if len(found) else None, size, self.options.cells))

    def damped(self, heat: Tensor, found: Detections) -> Tensor:
        """The map `[H, W]`, weaker outside of all valid boxes."""
        return damped(heat, found, self.options.outside_factor, clip_boxes=self.options.clip)
