"""Cross entropy of a probability, and the published image-level focal loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(prob: Tensor, target: Tensor, *, tiny: float = 1e-12) -> Tensor:
    r"""Two-class cross entropy :math:`-\log p_y`, mean over each sample.

    Args:
        prob: [B, ...] probability of the anomalous class, in [0, 1].
        target: [B, ...] 0 or 1.
        tiny: Floor under the logarithm.

    Returns:
        [B]
    """
    target = target.to(prob.dtype)
    loss = -(target * prob.clamp_min(tiny).log() + (1 - target) * (1 - prob).clamp_min(tiny).log())
    return loss.flatten(1).mean(dim=1) if loss.ndim > 1 else loss


def focal_of_logits(score: Tensor, target: Tensor, *, gamma: float = 2.0) -> Tensor:
    r""":math:`(1 - e^{-l})^\gamma l` with `l` the binary cross entropy of `score` **as a logit**.

    FAPrompt's published code feeds a score in (0, 1) to it, so the loss never vanishes and weighs normal images more than
    anomalous ones; `kind: focal, smooth: 0` is the sound form on the same score.

    Args:
        score: [B] any real number.
        target: [B] 0 or 1.
        gamma: Focusing exponent, >= 0.

    Returns:
        [B]

    Reference: FAPrompt's published code, image focal loss.
    """
    entropy = F.binary_cross_entropy_with_logits(score, target.to(score.dtype), reduction="none")
    return (1 - torch.exp(-entropy)) ** gamma * entropy
