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


def square_orthogonality_loss(features: Tensor) -> Tensor:
    r"""Sum of :math:`\cos^2(a_j, a_k)` over all ordered pairs of different prompts, divided by the square of their number.

    Args:
        features: [B, K, C] text features, any norm.

    Returns:
        Scalar, mean over B (Bayes-PFL).
    """
    unit = F.normalize(features, dim=-1)
    cosines = unit @ unit.transpose(-1, -2)
    count = features.shape[-2]
    others = 1 - torch.eye(count, device=features.device, dtype=features.dtype)
    return ((cosines * others).square().sum(dim=(-2, -1)) / count**2).mean()


def flow_divergence(mean: Tensor, variance: Tensor, start: Tensor, end: Tensor, log_det: Tensor) -> Tensor:
    r"""Divergence of a Gaussian pushed through a flow from the standard normal, of one draw, without constants.

    Args:
        mean: [n, D] of the Gaussian.
        variance: [n, D] of the Gaussian.
        start: [n, D] the draw.
        end: [n, D] what the flow makes of it.
        log_det: [n] logarithm of the flow's Jacobian determinant.

    Returns:
        Scalar: mean over n of :math:`\log q(z_0) - \log p(z_K) - \log|\det|` (Rezende and Mohamed, ICML 2015, eq. 15).
    """
    log_q = -0.5 * (variance.log() + (start - mean).square() / variance).sum(dim=-1)
    log_p = -0.5 * end.square().sum(dim=-1)
    return (log_q - log_p - log_det).mean()


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
