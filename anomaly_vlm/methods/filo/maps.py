"""FiLo's anomaly maps: similarities of the heads' outputs to the two texts, upsampled, blurred and averaged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from anomaly_vlm.errors import UserError
from anomaly_vlm.methods.shared.maps import to_grid, upsample
from anomaly_vlm.methods.shared.precision import in_float32, summed_product
from anomaly_vlm.options import PositiveFloat, PositiveInt


@dataclass(frozen=True)
class MapOptions:
    """How maps are made of similarities.

    Args:
        logit_scale: Factor of the similarities.
        kernel: Side of the Gaussian blur in pixels, odd.
        sigma: Standard deviation of the blur in pixels.
        scaling: `published`: the heads' maps are averaged as they are. `paper`: each is scaled to [0, 1] first.

    Raises:
        UserError: `kernel` is even.
    """

    logit_scale: PositiveFloat = 100.0
    kernel: PositiveInt = 3
    sigma: PositiveFloat = 4.0
    scaling: Literal["published", "paper"] = "published"

    def __post_init__(self) -> None:
        if self.kernel % 2 == 0:
            raise UserError(f"method.maps.kernel is {self.kernel}: give an odd number of pixels")


def map_logits(
    outputs: Sequence[Tensor], pairs: Tensor, grid: tuple[int, int], size: tuple[int, int], scale: float
) -> list[Tensor]:
    """Abnormal minus normal logit of each head at every pixel.

    The softmax of two classes needs their difference alone. Logits are upsampled, not probabilities.

    Args:
        outputs: For each head `[branches, B, N, C]`, unit norm.
        pairs: Text features `[B, 2, C]`.
        grid: Rows and columns of patches.
        size: Height and width of the maps.
        scale: Factor of the similarities.

    Returns:
        For each head `[branches, B, H, W]`.
    """
    toward = scale * (pairs[:, 1] - pairs[:, 0])  # [B, C]
    logits = [to_grid(summed_product("kbnc,bc->kbn", output, toward), grid) for output in outputs]
    return [upsample(one, size, align_corners=True) for one in logits]


def probabilities(logits: Sequence[Tensor]) -> Tensor:
    """Probabilities `[heads, B, H, W]` of each head's logits `[branches, B, H, W]`, the mean over its branches."""
    return torch.stack([one.sigmoid().mean(dim=0) for one in logits])


def blurred(maps: Tensor, options: MapOptions) -> Tensor:
    """Gaussian blur of maps `[..., H, W]`."""
    with in_float32(maps):
        blur: Tensor = gaussian_blur(maps, [options.kernel, options.kernel], [options.sigma, options.sigma])
    return blur


def joined(maps: Tensor, options: MapOptions) -> Tensor:
    """One map `[B, H, W]` of the heads' maps `[heads, B, H, W]`: each is blurred, then their mean is taken."""
    if options.scaling == "published":
        return blurred(maps.mean(dim=0), options)  # the mean of blurred maps is the blurred mean
    smooth = blurred(maps, options)
    low, high = smooth.amin(dim=(-2, -1), keepdim=True), smooth.amax(dim=(-2, -1), keepdim=True)
    return ((smooth - low) / (high - low).clamp_min(1e-12)).mean(dim=0)
