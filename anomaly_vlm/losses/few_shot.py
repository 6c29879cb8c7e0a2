"""Losses that learn prompts from normal images alone (PromptAD, FineGrainedAD)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def contrastive_loss(logits: Tensor) -> Tensor:
    r""":math:`-\log \mathrm{softmax}(l)_0`, mean over all rows: the normal prompt against every abnormal one.

    Args:
        logits: [..., 1 + R] similarities times the temperature's factor, the normal prompt first.

    Returns:
        Scalar >= 0.

    Reference: PromptAD (arXiv 2404.05231), equation of the contrastive term.
    """
    return -logits.log_softmax(dim=-1)[..., 0].mean()


def margin_loss(
    features: Tensor, normal: Tensor, abnormal: Tensor, *, margin: float = 0.0, dim: Literal["code", "channel"] = "code"
) -> Tensor:
    r"""Explicit anomaly margin: mean of :math:`\max(0, \|x - w_n\|^2 - \|x - w_a\|^2 + m)`.

    Args:
        features: [k, C] of images, or [k, N, C] of patches.
        normal: [C] normal prototype.
        abnormal: [C] abnormal prototype.
        margin: M (0 in PromptAD, 1 in FineGrainedAD).
        dim: What the squares are summed over. `code`: axis 1, as the published codes: that is the patches where there
            are any, and leaves [k, C] differences. `channel`: the channels always, the distance of each feature.

    Returns:
        Scalar >= 0.

    Reference: PromptAD (arXiv 2404.05231), explicit anomaly margin; FineGrainedAD (arXiv 2510.26464), triplet term.
    """
    axis = 1 if dim == "code" else -1
    difference = (features - normal).pow(2).sum(dim=axis) - (features - abnormal).pow(2).sum(dim=axis)
    return F.relu(difference + margin).mean()


def alignment_loss(manual: Tensor, learned: Tensor) -> Tensor:
    r"""Squared distance between the means of two sets of unit features.

    Args:
        manual: [R, C] features of any norm.
        learned: [S, C] features of any norm.

    Returns:
        Scalar in [0, 4].

    Reference: PromptAD (arXiv 2404.05231), alignment of manual and learned anomaly prompts.
    """
    return (F.normalize(manual, dim=-1).mean(dim=0) - F.normalize(learned, dim=-1).mean(dim=0)).pow(2).sum()


def level_loss(image: Tensor, entities: Tensor, background: Tensor) -> Tensor:
    r"""Distance of the learned image prompts from the entities' and the background's together, of mean unit features.

    The value is :math:`\|\bar a_{image} - \bar a_{entities} - \bar a_{background}\|`.

    Args:
        image: [R, C] learned image rows.
        entities: [E, R, C] learned rows of the entities, which are added up first.
        background: [S, C] normal rows of the background.

    Returns:
        Scalar >= 0.

    Reference: FineGrainedAD (arXiv 2510.26464), published code, regularisation.
    """
    means = [F.normalize(rows, dim=-1).mean(dim=0) for rows in (image, entities.sum(dim=0), background)]
    distance: Tensor = torch.linalg.vector_norm(means[0] - means[1] - means[2])
    return distance
