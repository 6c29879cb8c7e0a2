"""Passes of a dense method over an image: whole, in overlapping windows, at several scales."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_vlm.errors import UserError


class PixelValues(Protocol):
    """The values that a pass computes for every pixel, in a form that can be summed over passes."""

    def map(self, function: Callable[[Tensor], Tensor], /) -> Self:
        """Applies a function to every tensor `[B, C, H, W]`."""
        ...

    def add(self, other: Any, region: Any = ..., /) -> None:
        """Adds another's values to the pixels that `region` indexes, in place."""
        ...


Values = TypeVar("Values", bound=PixelValues)
Pass = Callable[[Tensor, tuple[int, int]], Values]  # images [B, 3, H, W], size of the result


class SlidingWindow:
    """Averages the values of all passes at every pixel.

    Args:
        scales: Factors on the image, one pass each.
        window: Height and width of the windows in pixels of the scaled image; None for the whole image at once.
        overlap: Overlap of neighbouring windows as a fraction of their sides, in [0, 1).
        multiple: The sides of images that are scaled by another factor than 1 are rounded to multiples of it.

    Raises:
        UserError: An option is out of its range.
    """

    def __init__(
        self,
        *,
        scales: Sequence[float] = (1.0,),
        window: Sequence[int] | None = None,
        overlap: float = 0.25,
        multiple: int = 32,
    ) -> None:
        if not scales or not all(0 < scale <= 8 for scale in scales):
            raise UserError(f"scales is {list(scales)}: give factors above 0, such as [0.75, 1.0, 1.25]")
        if window is not None and (len(window) != 2 or min(window) < multiple):
            raise UserError(f"window is {list(window)}: give [height, width] of at least {multiple} pixels")
        if not 0 <= overlap < 1:
            raise UserError(f"overlap is {overlap}: give a fraction from 0 to below 1")
        self.scales, self.overlap, self.multiple = tuple(scales), overlap, multiple
        self.window = None if window is None else (int(window[0]), int(window[1]))

    def __call__(self, one_pass: Pass[Values], images: Tensor, size: tuple[int, int]) -> Values:
        """Averages the values of all passes over images.

        Args:
            one_pass: Computes the values of images `[B, 3, h, w]` at a height and width.
            images: `[B, 3, H, W]`.
            size: Height and width of the result.
        """
        passes = (self._windows(one_pass, self._scaled(images, scale), size) for scale in self.scales)
        total = next(passes)
        for values in passes:
            total.add(values)
        return total if len(self.scales) == 1 else total.map(lambda tensor: tensor / len(self.scales))

    def _scaled(self, images: Tensor, scale: float) -> Tensor:
        if scale == 1:
            return images
        size = [max(1, round(side * scale / self.multiple)) * self.multiple for side in images.shape[-2:]]
        return F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)

    def _windows(self, one_pass: Pass[Values], images: Tensor, size: tuple[int, int]) -> Values:
        whole = (images.shape[-2], images.shape[-1])
        if self.window is None or (self.window[0] >= whole[0] and self.window[1] >= whole[1]):
            return one_pass(images, size)
        height, width = (min(side, full) for side, full in zip(self.window, whole, strict=True))
        total: Values | None = None
        count = images.new_zeros(whole)
        for top in starts(whole[0], height, self.overlap):
            for left in starts(whole[1], width, self.overlap):
                region = (..., slice(top, top + height), slice(left, left + width))
                values = one_pass(images[region], (height, width))
                if total is None:
                    total = values.map(lambda tensor: tensor.new_zeros(*tensor.shape[:2], *whole))
                total.add(values, region)
                count[top : top + height, left : left + width] += 1
        assert total is not None
        mean = total.map(lambda tensor: tensor / count)
        return mean if whole == size else mean.map(lambda tensor: _resized(tensor, size))


def starts(length: int, window: int, overlap: float) -> list[int]:
    """First pixels of windows that cover a side, at steps that are equal as far as whole numbers allow.

    Args:
        length: The side in pixels.
        window: Side of the windows in pixels.
        overlap: Least overlap of neighbours as a fraction of the window, in [0, 1).
    """
    if window >= length:
        return [0]
    step = max(1, int(window * (1 - overlap)))
    count = -(-(length - window) // step) + 1
    return torch.linspace(0, length - window, count).round().int().tolist()


def _resized(values: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(values, size=size, mode="bilinear", align_corners=False)
