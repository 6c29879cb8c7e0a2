"""A loss of one's own: a pure function of a map and a mask; its keyword arguments are options of the configuration."""

from torch import Tensor


def tversky(prob: Tensor, mask: Tensor, *, miss: float = 0.7) -> Tensor:
    """Tversky loss `[B]` of probabilities and masks `[B, H, W]`; `miss` weighs missed pixels, 1 - `miss` false ones."""
    hit = (prob * mask).flatten(1).sum(1)
    missed, false = ((1 - prob) * mask).flatten(1).sum(1), (prob * (1 - mask)).flatten(1).sum(1)
    return 1 - (hit + 1) / (hit + miss * missed + (1 - miss) * false + 1)
