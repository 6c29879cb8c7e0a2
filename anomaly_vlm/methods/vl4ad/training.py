"""VL4AD's training: the loss terms of one decoder stage, and Mask2Former's optimiser recipe."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from anomaly_vlm.losses.terms import LossTerm
from anomaly_vlm.methods.vl4ad.mask_matching import MaskMatching, Segments, count_segments


def stage_losses(
    terms: Mapping[str, LossTerm], matching: MaskMatching, masks: Tensor, logits: Tensor, targets: Sequence[Segments]
) -> dict[str, Tensor]:
    """The terms of one decoder stage, unweighted. Its random points come from the global generator.

    Args:
        terms: Configured terms by name.
        matching: Assigns masks to segments.
        masks: Mask logits `[B, N, h, w]`.
        logits: Class logits `[B, N, K + 1]`, void last.
        targets: Segments of each image.

    Returns:
        Scalars by term.
    """
    matched = matching(masks, logits, targets)
    count = count_segments(targets)
    values = {}
    if "class" in terms:
        values["class"] = terms["class"](logits, matched.classes)
    if "mask" in terms:
        values["mask"] = terms["mask"](matched.logits, matched.labels).sum() / count
    if "dice" in terms:
        values["dice"] = terms["dice"](matched.logits.sigmoid(), matched.labels).sum() / count
    return values


def parameter_groups(learnable: Mapping[str, nn.Parameter]) -> list[dict[str, Any]]:
    """Groups for the optimiser: embeddings (queries, levels, void) have no weight decay, as in Mask2Former's recipe."""
    embeddings = [name for name in learnable if re.search(r"queries_|level_embed|\.void$", name)]
    return [
        {"params": [p for name, p in learnable.items() if name not in embeddings]},
        {"params": [learnable[name] for name in embeddings], "weight_decay": 0.0},
    ]


def with_poly_decay(optimizer: torch.optim.Optimizer, steps: int, power: float) -> dict[str, Any]:
    """An optimiser whose learning rate falls at every step as (1 - step / steps) ** power, for Lightning."""
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=steps, power=power)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
