"""Losses on learned prompts: orthogonality of their features, and a prior that vanishes on normal images."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def orthogonality_loss(features: Tensor, *, pairs: Literal["unordered", "ordered"] = "unordered") -> Tensor:
    r"""Sum of :math:`|\cos(a_i, a_j)|` over pairs of prompts.

    Args:
        features: [K, C] text features, any norm.
        pairs: Each pair once (FAPrompt's code, with weight 0.1), or in both orders (its paper, with weight 1).

    Returns:
        Scalar in [0, K (K - 1) / 2], twice that for `ordered`.

    Reference: FAPrompt (arXiv 2410.10289), orthogonal constraint loss.
    """
    unit = F.normalize(features, dim=-1)
    cosines = (unit @ unit.T).abs()
    total = torch.triu(cosines, diagonal=1).sum()
    return 2 * total if pairs == "ordered" else total


def mean_cosine_square(normal: Tensor, abnormal: Tensor) -> Tensor:
    r"""Square of the mean cosine of normal and abnormal text features (AA-CLIP, stage 1).

    Args:
        normal: [B, C] unit rows, one of each image's category.
        abnormal: [B, C] unit rows.

    Returns:
        Scalar.
    """
    return (normal * abnormal).sum(dim=-1).mean().square()


def prior_loss(offset: Tensor, label: Tensor, *, over: Literal["mean", "sum"] = "mean") -> Tensor:
    r"""Squared norm of the prompt offsets of normal images, summed over them; 0 where the batch has none.

    Args:
        offset: [B, D] one an image.
        label: [B] 0 normal / 1 anomalous.
        over: `mean` over the D components (FAPrompt's code) or their `sum` (its paper).

    Returns:
        Scalar.

    Reference: FAPrompt (arXiv 2410.10289), prior loss.
    """
    squares = offset.pow(2)
    each = squares.mean(dim=-1) if over == "mean" else squares.sum(dim=-1)
    return (each * (label == 0)).sum()
