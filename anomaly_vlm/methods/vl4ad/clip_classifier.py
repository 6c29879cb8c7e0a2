"""CLIP's own classification of masks, which may join the trained classifier (FC-CLIP, Yu et al., NeurIPS 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_vlm.backbone import ConvNextBackbone
from anomaly_vlm.methods.shared.precision import product
from anomaly_vlm.methods.vl4ad.mask_decoder import pool
from anomaly_vlm.options import Fraction


@dataclass(frozen=True)
class ClipClassifierOptions:
    """Whether CLIP's own classification of masks joins that of the trained classifier (FC-CLIP).

    Args:
        ensemble: `none`, as in the paper's formula; `geometric`: the probabilities are multiplied with exponents.
        alpha: Exponent of CLIP's probabilities for known classes.
        beta: Exponent for further columns.
    """

    ensemble: Literal["none", "geometric"] = "none"
    alpha: Fraction = 0.4
    beta: Fraction = 0.8


def clip_logits(
    clip: ConvNextBackbone, masks: Tensor, dense: Tensor, vectors: Tensor, members: Sequence[Sequence[int]]
) -> Tensor:
    """Class logits of masks by CLIP's own head, of its dense feature pooled within each mask.

    Args:
        clip: Frozen towers.
        masks: Mask logits `[B, N, h, w]`.
        dense: Dense feature `[B, Cv, H, W]`.
        vectors: Of the M concepts `[M, C]`, unit norm.
        members: Of each column, its positions among the concepts.

    Returns:
        `[B, N, columns]`.
    """
    masks = F.interpolate(masks, size=dense.shape[-2:], mode="bilinear", align_corners=False)
    pooled = pool(masks, dense)  # [B, N, Cv]
    embedded = F.normalize(clip.project(pooled.flatten(0, 1)), dim=-1).view(*pooled.shape[:2], -1)
    scale = min(float(torch.tensor(clip.logit_scale).exp()), 100.0)
    logits = product(scale * embedded, vectors.T)
    return torch.stack([logits[..., list(concepts)].amax(dim=-1) for concepts in members], dim=-1)
