"""Losses of a set of masks, each matched with one target or with none."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def bce_of_logits(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross entropy of mask logits, mean over each mask's points.

    Args:
        logits: [M, P] any real numbers.
        target: [M, P] in [0, 1].

    Returns:
        [M]

    Reference: Mask2Former, section 3.3.
    """
    return F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction="none").mean(dim=-1)


def cross_entropy_with_void(logits: Tensor, target: Tensor, *, no_object: float = 0.1) -> Tensor:
    r"""Cross entropy of every mask's class, :math:`\sum_i w_i l_i / \sum_i w_i`.

    Args:
        logits: [B, N, K + 1], "no object" last.
        target: [B, N] int64 in 0 .. K.
        no_object: W of masks whose target is "no object"; 1 for all others.

    Returns:
        Scalar.

    Reference: Mask2Former's published code.
    """
    weight = logits.new_ones(logits.shape[-1])
    weight[-1] = no_object
    return F.cross_entropy(logits.flatten(0, 1), target.flatten(), weight=weight)
