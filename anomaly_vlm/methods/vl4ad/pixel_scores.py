"""From masks and class probabilities to pixels: the anomaly scores of mask transformers, streamed over the masks.

Notation: N masks, K known classes, Q further columns (texts of unknown objects), s_i(x) the probability that mask i covers
pixel x, c_ik that mask i shows class k, y_k(x) = sum_i s_i(x) c_ik.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_vlm.methods.shared.precision import summed_product

Void = Literal["drop", "ignore"]


def largest_of(logits: Tensor, members: Sequence[Sequence[int]]) -> Tensor:
    """Max-logit ensemble: the logit of a column is the largest of its concepts'.

    Args:
        logits: `[..., M + 1]` of M concepts, void last.
        members: Of each column, its positions among the concepts.

    Returns:
        `[..., columns + 1]`, void last.
    """
    columns = [logits[..., list(concepts)].amax(dim=-1) for concepts in members]
    return torch.stack([*columns, logits[..., -1]], dim=-1)


def class_probabilities(logits: Tensor, *, void: Void = "drop") -> Tensor:
    """Class probabilities of masks.

    Args:
        logits: `[..., K + Q + 1]`, void last.
        void: `drop`: softmax with void, whose column is then left out, so that masks of nothing count little (FC-CLIP).
            `ignore`: softmax without void, which is the paper's formula as it stands.

    Returns:
        c `[..., K + Q]`.
    """
    return logits.softmax(dim=-1)[..., :-1] if void == "drop" else logits[..., :-1].softmax(dim=-1)


def geometric_ensemble(
    logits: Tensor, other: Tensor, *, num_known: int, alpha: float, beta: float, void: Void = "drop"
) -> Tensor:
    """Multiplies the probabilities of the trained classifier and of CLIP's own with exponents (FC-CLIP).

    Args:
        logits: `[..., K + Q + 1]` of the trained classifier, void last.
        other: `[..., K + Q]` of CLIP's own.
        num_known: Number K of known columns.
        alpha: Exponent of `other` for known columns, in [0, 1].
        beta: Exponent of `other` for further columns, in [0, 1].
        void: See `class_probabilities`.

    Returns:
        c `[..., K + Q]`; with `drop` times the probability of not being void. At alpha = beta = 0 it is
        `class_probabilities`.
    """
    weight = logits.new_full((other.shape[-1],), beta)
    weight[:num_known] = alpha
    mixed = (1 - weight) * logits[..., :-1].log_softmax(dim=-1) + weight * other.log_softmax(dim=-1)
    probability = mixed.softmax(dim=-1)
    return probability * (1 - logits.softmax(dim=-1)[..., -1:]) if void == "drop" else probability


# ---- pixels ----------------------------------------------------------------------------------------------------------


@dataclass
class PixelClasses:
    """Sums over the masks at every pixel, from which all scores are computed.

    Attributes:
        by_class: y `[B, K + Q, H, W]`.
        inside: sum_i s_i max_(k known) c_ik `[B, H, W]`.
        owner: max_(k known) c_ik `[B, H, W]` of the mask that owns the pixel, which has the largest s_i max_k c_ik.
        num_known: Number K of known columns.
    """

    by_class: Tensor
    inside: Tensor
    owner: Tensor
    num_known: int

    def map(self, function: Callable[[Tensor], Tensor]) -> PixelClasses:
        """Applies a function of `[B, C, H, W]` to all sums; single maps are given to it with C = 1."""
        inside, owner = (function(values[:, None])[:, 0] for values in (self.inside, self.owner))
        return PixelClasses(function(self.by_class), inside, owner, self.num_known)

    def add(self, other: PixelClasses, at: Any = ...) -> None:
        """Adds another's values to the pixels `at`, in place."""
        self.by_class[at] += other.by_class
        self.inside[at] += other.inside
        self.owner[at] += other.owner


def mask_probabilities(masks: Tensor, padded: tuple[int, int], inner: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Probabilities of masks at full size.

    Logits are enlarged to the padded input, the padding is cut off, they are resized to `size` (bilinear both times), and
    then comes the sigmoid.

    Args:
        masks: Mask logits `[B, N, h, w]`.
        padded: Height and width of the network's input with padding.
        inner: Height and width of the input without padding.
        size: Height and width of the result.

    Returns:
        `[B, N, *size]`.
    """
    masks = F.interpolate(masks, size=padded, mode="bilinear", align_corners=False)[..., : inner[0], : inner[1]]
    if inner != size:
        masks = F.interpolate(masks, size=size, mode="bilinear", align_corners=False)
    return masks.sigmoid()


def pixel_classes(
    masks: Tensor,
    classes: Tensor,
    *,
    num_known: int,
    padded: tuple[int, int],
    inner: tuple[int, int],
    size: tuple[int, int],
    chunk: int = 16,
) -> PixelClasses:
    """Sums over the masks at every pixel, a few masks at a time.

    Args:
        masks: Mask logits `[B, N, h, w]`.
        classes: c `[B, N, K + Q]`.
        num_known: Number K of known columns.
        padded: See `mask_probabilities`.
        inner: See `mask_probabilities`.
        size: Height and width of the result.
        chunk: Masks that exist at full size at a time. It changes the memory needed and nothing else.
    """
    best = classes[..., :num_known].amax(dim=-1)  # [B, N]
    y: PixelClasses | None = None
    claim: Tensor | None = None  # [B, H, W] of the owner so far
    for logits, c, top in zip(*(torch.split(values, chunk, dim=1) for values in (masks, classes, best)), strict=True):
        s = mask_probabilities(logits, padded, inner, size)
        c, top = c.to(s.dtype), top.to(s.dtype)
        by_class, inside = summed_product("bnhw,bnk->bkhw", s, c), summed_product("bnhw,bn->bhw", s, top)
        strongest, who = (s * top[..., None, None]).max(dim=1)
        owner = top.gather(1, who.flatten(1)).view_as(strongest)
        if y is None or claim is None:
            y, claim = PixelClasses(by_class, inside, owner, num_known), strongest
        else:
            y.by_class += by_class
            y.inside += inside
            y.owner = torch.where(strongest > claim, owner, y.owner)
            claim = torch.maximum(claim, strongest)
    assert y is not None
    return y


def _largest(y: PixelClasses) -> Tensor:
    return -y.by_class[:, : y.num_known].amax(dim=1)


def _rba(y: PixelClasses) -> Tensor:
    return -y.by_class[:, : y.num_known].tanh().sum(dim=1)


def _inside(y: PixelClasses) -> Tensor:
    return -y.inside


def _margin(y: PixelClasses) -> Tensor:
    if y.num_known < 2:
        return _largest(y)
    first, second = y.by_class[:, : y.num_known].topk(2, dim=1).values.unbind(dim=1)
    return second - first


def _max_softmax(y: PixelClasses) -> Tensor:
    return -y.owner


def _max_softmax_pixel(y: PixelClasses) -> Tensor:
    claimed = y.by_class[:, : y.num_known]
    return -claimed.amax(dim=1) / claimed.sum(dim=1).clamp_min(1e-12)


def _max_softmax_logits(y: PixelClasses) -> Tensor:
    return -y.by_class[:, : y.num_known].softmax(dim=1).amax(dim=1)


Score = Literal["max", "rba", "max_inside", "margin", "max_softmax", "max_softmax_pixel", "max_softmax_logits"]
SCORES: dict[Score, Callable[[PixelClasses], Tensor]] = {
    "max": _largest,  # VL4AD: no known class claims the pixel
    "rba": _rba,  # rejected by all: - sum_k tanh y_k (Nayal et al., ICCV 2023)
    "max_inside": _inside,  # the maximum inside the sum: - sum_i s_i max_k c_ik (EAM's way)
    "margin": _margin,  # this project's: minus (largest y_k - second largest)
    # maximum softmax (Hendrycks and Gimpel, ICLR 2017), in the three ways in which masks give pixels one:
    "max_softmax": _max_softmax,  # of the classifier's softmax, for the mask that owns the pixel
    "max_softmax_pixel": _max_softmax_pixel,  # of y_k / sum_j y_j, the distribution over known classes that the y are
    "max_softmax_logits": _max_softmax_logits,  # of softmax(y), as if the y were logits
}


def anomaly_score(y: PixelClasses, score: Score = "max") -> Tensor:
    """Anomaly maps `[B, H, W]`, higher where more anomalous.

    Known classes alone enter a score. Further columns take probability away from them, and so raise it.
    """
    return SCORES[score](y)
