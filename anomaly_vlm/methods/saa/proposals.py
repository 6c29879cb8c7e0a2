"""SAA's proposals: which of a detector's boxes stay, how saliency changes their scores, how their masks become a map."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from anomaly_vlm.detectors import Queries, check_floor, phrases_of
from anomaly_vlm.options import Range

Threshold = Annotated[float, Range(low=0, high=1, open_high=True)]
Fusion = Literal["published", "mean"]


@dataclass(frozen=True)
class BoxThresholds:
    """Thresholds of a detector's scores.

    Args:
        box_threshold: A box counts if its score is higher.
        text_threshold: A word of the caption belongs to a box's phrase if its probability is higher.
    """

    box_threshold: Threshold = 0.1
    text_threshold: Threshold = 0.1


def areas(boxes: Tensor) -> Tensor:
    """Shares `[k]` of the image that boxes `[k, 4]` in relative centre form cover."""
    return boxes[:, 2] * boxes[:, 3]


def selected(
    queries: Queries,
    thresholds: BoxThresholds,
    excluded_word: str = "",
    *,
    max_area: float = math.inf,
    min_area: float = 0.0,
) -> Queries:
    """The queries whose score, area and phrase are within the limits, in query order.

    Args:
        queries: Answer of a detector.
        thresholds: Of scores.
        excluded_word: Boxes whose phrase contains it are dropped, be it within another word (`nut` in `peanut`); '' drops
            none.
        max_area: Limit of the share of the image; a box must be smaller.
        min_area: Limit of the share of the image; a box must be larger.

    Raises:
        UserError: The queries were stored above a score that is higher than the box threshold.
    """
    check_floor(queries, thresholds.box_threshold)
    area = areas(queries.boxes)
    within = (queries.scores > thresholds.box_threshold) & (area < max_area) & (area > min_area)
    remaining = queries.select(within.nonzero().flatten())
    if not excluded_word or not len(remaining):
        return remaining
    allowed = [excluded_word not in phrase.lower() for phrase in phrases_of(remaining, thresholds.text_threshold)]
    return remaining.select(torch.tensor(allowed).nonzero().flatten())


def rescored(scores: Tensor, masks: Tensor, saliency: Tensor, *, weight: float = 3.0) -> Tensor:
    """Multiplies scores by exp(weight x mean saliency in the mask); an empty mask leaves its score.

    Args:
        scores: `[n]`.
        masks: Bool `[n, H, W]`.
        saliency: `[H, W]`.
        weight: Weight of saliency.
    """
    means = [saliency[mask].mean() if mask.any() else saliency.new_zeros(()) for mask in masks]
    return scores * (weight * torch.stack(means)).exp() if means else scores


def fused(masks: Tensor, scores: Tensor, fusion: Fusion = "published") -> Tensor:
    """One map `[H, W]` of masks and their scores; 0 under no mask.

    Args:
        masks: Bool `[n, H, W]`.
        scores: `[n]`.
        fusion: By what the sum of the scores at a pixel is divided. `published`: one more than the number of its masks, so
            that a single mask counts half. `mean`: their number.
    """
    total, count = scores.new_zeros(masks.shape[1:]), scores.new_zeros(masks.shape[1:])
    for mask, score in zip(masks, scores, strict=True):
        total[mask] += score
        count[mask] += 1
    return total / (1 + count if fusion == "published" else count.clamp_min(1))
