"""FiLo's use of boxes (HQ-Loc): which are valid, which position they name, and how they damp the map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from anomaly_vlm.detectors import Detections, clip


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
