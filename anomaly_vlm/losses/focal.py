"""Focal loss of probabilities."""

from __future__ import annotations

import torch
from torch import Tensor


def balanced_focal_loss(prob: Tensor, target: Tensor, *, gamma: float = 2.0, tiny: float = 1e-8) -> Tensor:
    r"""Focal loss in which anomalous and normal pixels of a batch weigh the same, whatever their numbers (Bayes-PFL).

    Args:
        prob: [B, ...] probability of the anomalous class, in [0, 1].
        target: [B, ...] 0 or 1.
        gamma: Focusing exponent, >= 0.
        tiny: Added to the logarithm's argument and to the numbers of pixels.

    Returns:
        Scalar: mean of :math:`-(1 - p_y)^\gamma \log p_y` over the anomalous pixels plus that over the normal ones.
    """
    target = target.to(prob.dtype)
    true = prob * target + (1 - prob) * (1 - target)
    loss = -((1 - true) ** gamma) * (true + tiny).log()
    return sum((loss * part).sum() / (part.sum() + tiny) for part in (target, 1 - target))  # type: ignore[return-value]


def focal_loss(prob: Tensor, target: Tensor, *, gamma: float = 2.0, smooth: float = 1e-5) -> Tensor:
    r"""Two-class focal loss of a probability, mean over each sample.

    With :math:`p_y` the probability of the true class, :math:`q = (1 - e) p_y + e (1 - p_y) + e`, the loss is
    :math:`-(1 - q)^\gamma \log q`. The published zero-shot codes share this smoothing; `gamma` 0 and `smooth` 0 give the
    binary cross entropy.

    Args:
        prob: [B, ...] probability of the anomalous class, in [0, 1].
        target: [B, ...] 0 or 1.
        gamma: Focusing exponent, >= 0.
        smooth: E above.

    Returns:
        [B] mean over the other axes.

    Reference: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017; smoothing as in AnomalyCLIP and AdaCLIP.
    """
    true = torch.where(target > 0, prob, 1 - prob)
    q = (1 - smooth) * true + smooth * (1 - true) + smooth
    away = 1 - q
    factor = away.square() if gamma == 2 else away.abs() ** gamma  # q can exceed 1 by `smooth`
    loss = factor * q.log()
    return -(loss.flatten(1).mean(dim=1) if loss.ndim > 1 else loss)
