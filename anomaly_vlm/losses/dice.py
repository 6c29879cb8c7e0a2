"""Dice loss of probability maps."""

from __future__ import annotations

from typing import Literal

from torch import Tensor


def dice_loss(
    prob: Tensor, target: Tensor, *, over: Literal["row", "image", "batch"] = "image", smooth: float = 1.0
) -> Tensor:
    r""":math:`1 - (2 \sum p t + s) / (\sum p + \sum t + s)`.

    Args:
        prob: [B, H, W] in [0, 1].
        target: [B, H, W] 0 or 1.
        over: What the sums run over. `image` is the textbook form. `row` is each row of pixels for itself, then the
            mean over rows: what AdaCLIP's code computes at batch size 1, and what its released weights were trained
            with. `batch`: all images together, one value for all (Bayes-PFL).
        smooth: S above.

    Returns:
        [B]; [1] for `batch`.

    Reference: Milletari et al., "V-Net", 3DV 2016; row form: AdaCLIP's published code.
    """
    target = target.to(prob.dtype)
    if over == "image":
        prob, target = prob.flatten(1), target.flatten(1)
    if over == "batch":
        prob, target = prob.flatten()[None], target.flatten()[None]
    overlap = (prob * target).sum(dim=-1)
    loss = 1 - (2 * overlap + smooth) / (prob.sum(dim=-1) + target.sum(dim=-1) + smooth)
    return loss.flatten(1).mean(dim=1) if loss.ndim > 1 else loss
