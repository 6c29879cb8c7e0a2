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

Void = Literal["drop", "ignore"]
VOID: tuple[Void, ...] = ("drop", "ignore")


def largest_of(logits: Tensor, members: Sequence[Sequence[int]]) -> Tensor:
    """Max-logit ensemble: [..., M + 1] logits of concepts, void last -> [..., columns + 1], void last.

    A column's logit is the largest of its members'; members are positions among the M concepts.
    """
    columns = [logits[..., list(part)].amax(dim=-1) for part in members]
    return torch.stack([*columns, logits[..., -1]], dim=-1)


def class_probabilities(logits: Tensor, *, void: Void = "drop") -> Tensor:
    """[..., K + Q + 1] logits, void last -> c [..., K + Q].

    `drop`: softmax with void, whose column is then left out, so that idle masks say little (FC-CLIP). `ignore`: softmax
    without void (the paper's formula).
    """
    return logits.softmax(dim=-1)[..., :-1] if void == "drop" else logits[..., :-1].softmax(dim=-1)


def geometric_ensemble(
    logits: Tensor, other: Tensor, *, known: int, alpha: float, beta: float, void: Void = "drop"
) -> Tensor:
    """The trained classifier and CLIP's own, multiplied with exponents (FC-CLIP).

    Args:
        logits: [..., K + Q + 1] of the trained classifier, void last. other: [..., K + Q] of CLIP's own.
        known: K. alpha, beta: weight of `other` for known and for further columns, in [0, 1].

    Returns:
        c [..., K + Q]; with `drop` times the probability of not being void. At alpha = beta = 0 it is `class_probabilities`.
    """
    weight = logits.new_full((other.shape[-1],), beta)
    weight[:known] = alpha
    mixed = (1 - weight) * logits[..., :-1].log_softmax(dim=-1) + weight * other.log_softmax(dim=-1)
    probability = mixed.softmax(dim=-1)
    return probability * (1 - logits.softmax(dim=-1)[..., -1:]) if void == "drop" else probability


# ---- pixels ----------------------------------------------------------------------------------------------------------


@dataclass
class PixelClasses:
    """What the masks say of every pixel.

    Attributes:
        by_class: y [B, K + Q, H, W]. inside: sum_i s_i max_(k known) c_ik [B, H, W].
        owner: [B, H, W] max_(k known) c_ik of the mask that owns the pixel, the largest of s_i max_k c_ik.
        known: K.
    """

    by_class: Tensor
    inside: Tensor
    owner: Tensor
    known: int

    def map(self, function: Callable[[Tensor], Tensor]) -> PixelClasses:
        """`function` of every [B, C, H, W]; single maps come and go with C = 1."""
        inside, owner = (function(part[:, None])[:, 0] for part in (self.inside, self.owner))
        return PixelClasses(function(self.by_class), inside, owner, self.known)

    def add(self, other: PixelClasses, at: Any = ...) -> None:
        """Adds another's values to the pixels `at`, in place."""
        self.by_class[at] += other.by_class
        self.inside[at] += other.inside
        self.owner[at] += other.owner


def mask_probabilities(masks: Tensor, padded: tuple[int, int], inner: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """[B, N, h, w] logits -> probabilities [B, N, *size].

    Bilinear to the padded input, padding cut off, bilinear to `size`, then the sigmoid.
    """
    masks = F.interpolate(masks, size=padded, mode="bilinear", align_corners=False)[..., : inner[0], : inner[1]]
    if inner != size:
        masks = F.interpolate(masks, size=size, mode="bilinear", align_corners=False)
    return masks.sigmoid()


def pixel_classes(
    masks: Tensor,
    classes: Tensor,
    *,
    known: int,
    padded: tuple[int, int],
    inner: tuple[int, int],
    size: tuple[int, int],
    chunk: int = 16,
) -> PixelClasses:
    """Streams over the masks: at most `chunk` of them exist at full size at a time.

    Args:
        masks: [B, N, h, w] logits. classes: c [B, N, K + Q]. known: K.
        padded, inner: height and width of the network's input with and without padding. size: of the result.
        chunk: masks at a time, a matter of memory alone.
    """
    best = classes[..., :known].amax(dim=-1)  # [B, N]
    y: PixelClasses | None = None
    claim: Tensor | None = None  # [B, H, W] of the owner so far
    for part, c, top in zip(
        masks.split(chunk, dim=1), classes.split(chunk, dim=1), best.split(chunk, dim=1), strict=True
    ):
        s = mask_probabilities(part, padded, inner, size)
        c, top = c.to(s.dtype), top.to(s.dtype)
        by_class, inside = torch.einsum("bnhw,bnk->bkhw", s, c), torch.einsum("bnhw,bn->bhw", s, top)
        strongest, who = (s * top[..., None, None]).max(dim=1)
        owner = top.gather(1, who.flatten(1)).view_as(strongest)
        if y is None or claim is None:
            y, claim = PixelClasses(by_class, inside, owner, known), strongest
        else:
            y.by_class += by_class
            y.inside += inside
            y.owner = torch.where(strongest > claim, owner, y.owner)
            claim = torch.maximum(claim, strongest)
    assert y is not None
    return y


def _largest(y: PixelClasses) -> Tensor:
    return -y.by_class[:, : y.known].amax(dim=1)


def _rba(y: PixelClasses) -> Tensor:
    return -y.by_class[:, : y.known].tanh().sum(dim=1)


def _inside(y: PixelClasses) -> Tensor:
    return -y.inside


def _margin(y: PixelClasses) -> Tensor:
    if y.known < 2:
        return _largest(y)
    first, second = y.by_class[:, : y.known].topk(2, dim=1).values.unbind(dim=1)
    return second - first


def _max_softmax(y: PixelClasses) -> Tensor:
    return -y.owner


def _max_softmax_pixel(y: PixelClasses) -> Tensor:
    known = y.by_class[:, : y.known]
    return -known.amax(dim=1) / known.sum(dim=1).clamp_min(1e-12)


def _max_softmax_logits(y: PixelClasses) -> Tensor:
    return -y.by_class[:, : y.known].softmax(dim=1).amax(dim=1)


SCORES = {
    "max": _largest,  # VL4AD: no known class claims the pixel
    "rba": _rba,  # rejected by all: - sum_k tanh y_k (Nayal et al., ICCV 2023)
    "max_inside": _inside,  # the maximum inside the sum: - sum_i s_i max_k c_ik (EAM's way)
    "margin": _margin,  # this project's: minus (largest y_k - second largest)
    # maximum softmax (Hendrycks and Gimpel, ICLR 2017), in the three ways in which masks give pixels one:
    "max_softmax": _max_softmax,  # of the classifier's softmax, for the mask that owns the pixel
    "max_softmax_pixel": _max_softmax_pixel,  # of y_k / sum_j y_j, the distribution over known classes that the y are
    "max_softmax_logits": _max_softmax_logits,  # of softmax(y), as if the y were logits
}


def anomaly_score(y: PixelClasses, score: str = "max") -> Tensor:
    """[B, H, W], higher = more anomalous. Known classes alone enter; further columns only take mass away from them."""
    return SCORES[score](y)
