"""Random crops of training images at random scales, labels along with them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_vlm.errors import UserError

VOID = 255


class RandomCrop:
    """Resizes an image to a random short side and cuts a random rectangle (Mask2Former's recipe for Cityscapes).

    Args:
        size: Height and width of the crop in pixels. A smaller image is padded, labels with 255.
        short_sides: To choose from; None: the image's own.

    Raises:
        UserError: A size that is no pair of whole numbers above 0, or no short side.
    """

    def __init__(self, size: Sequence[int], short_sides: Sequence[int] | None = None) -> None:
        if len(size) != 2 or min(size) < 1:
            raise UserError(f"augment.crop.size is {list(size)}: give [height, width] in pixels")
        if short_sides is not None and (not short_sides or min(short_sides) < 1):
            raise UserError(f"augment.crop.short_sides is {list(short_sides)}: give pixels, such as [512, 1024]")
        self.size = (int(size[0]), int(size[1]))
        self.short_sides = None if short_sides is None else tuple(short_sides)

    def __call__(
        self, image: Tensor, labels: Tensor | None, random: np.random.Generator, fill: Sequence[float]
    ) -> tuple[Tensor, Tensor | None]:
        """Crops an image and its labels at the same place.

        Args:
            image: float32 [3, H, W] in [0, 1].
            labels: uint8 [H, W], or None.
            random: Generator that the scale and the place are drawn from.
            fill: Colour around an image that is smaller than the crop.
        """
        if self.short_sides is not None:
            image, labels = self._resized(image, labels, int(random.choice(self.short_sides)))
        height, width = image.shape[-2:]
        top, left = (
            int(random.integers(max(0, full - side) + 1)) for full, side in zip((height, width), self.size, strict=True)
        )
        window = (..., slice(top, top + self.size[0]), slice(left, left + self.size[1]))
        out = torch.tensor(fill).view(3, 1, 1).expand(3, *self.size).clone()
        part = image[window]
        out[:, : part.shape[-2], : part.shape[-1]] = part
        if labels is None:
            return out, None
        padded = torch.full(self.size, VOID, dtype=labels.dtype)
        padded[: part.shape[-2], : part.shape[-1]] = labels[window]
        return out, padded

    @staticmethod
    def _resized(image: Tensor, labels: Tensor | None, short: int) -> tuple[Tensor, Tensor | None]:
        factor = short / min(image.shape[-2:])
        size = [max(1, round(side * factor)) for side in image.shape[-2:]]
        image = F.interpolate(image[None], size=size, mode="bilinear", align_corners=False, antialias=True)[0]
        if labels is not None:
            labels = F.interpolate(labels[None, None].float(), size=size, mode="nearest-exact")[0, 0].to(labels.dtype)
        return image.clamp(0, 1), labels
