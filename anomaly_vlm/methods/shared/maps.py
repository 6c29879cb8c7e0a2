"""Anomaly maps: patches as a grid, upsampling, smoothing; and the colour channels of images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_vlm.methods.shared.precision import in_float32


def to_grid(patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """Arranges values `[..., N]` of the patches as `[..., rows, columns]`."""
    return torch.unflatten(patches, -1, grid)


def upsample(maps: Tensor, size: tuple[int, int], *, align_corners: bool) -> Tensor:
    """Upsamples single-channel maps `[..., h, w]` to `[..., H, W]` by bilinear interpolation.

    Args:
        maps: Maps with any number of leading axes.
        size: H and W.
        align_corners: Whether the centres of the corner values fall on the centres of the corner pixels, as in PyTorch's
            `interpolate`; the published codes differ in it.
    """
    if maps.requires_grad and torch.is_grad_enabled() and maps.device.type == "cpu":
        rows, columns = (
            F.interpolate(
                torch.eye(length, device=maps.device)[None], size=sides, mode="linear", align_corners=align_corners
            )[0]
            for length, sides in zip(maps.shape[-2:], size, strict=True)
        )  # [h, H] and [w, W]: the same interpolation as products, whose gradient takes a tenth of the time on the CPU
        with in_float32(maps):
            return rows.mT @ maps.float() @ columns
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    return F.interpolate(flat, size=size, mode="bilinear", align_corners=align_corners).view(*maps.shape[:-2], *size)


def gaussian_smooth(maps: Tensor, sigma: float, *, truncate: float = 4.0) -> Tensor:
    """Smooths maps by a Gaussian, with the values of `scipy.ndimage.gaussian_filter`.

    Args:
        maps: `[B, H, W]`.
        sigma: Standard deviation in pixels; 0 leaves the maps as they are.
        truncate: The kernel is cut at this many standard deviations.

    Returns:
        `[B, H, W]` float32.
    """
    if sigma <= 0:
        return maps
    radius = int(truncate * sigma + 0.5)
    for axis in (-2, -1):  # SciPy's border mode `reflect` repeats the edge pixel, PyTorch's does not
        length = maps.shape[axis]
        index = torch.arange(-radius, length + radius, device=maps.device) % (2 * length)
        maps = maps.index_select(axis, torch.where(index < length, index, 2 * length - 1 - index))
    return _filtered(maps, 2 * radius + 1, sigma)


def gaussian_kernel_smooth(maps: Tensor, kernel: int, sigma: float) -> Tensor:
    """Smooths maps by a Gaussian of a given kernel; borders are reflected without repeating the edge pixel.

    Args:
        maps: `[B, H, W]`, sides above `kernel // 2`.
        kernel: Odd side in pixels; 1 leaves the maps as they are.
        sigma: Standard deviation in pixels.
    """
    if kernel == 1:
        return maps
    border = (kernel // 2,) * 4
    return _filtered(F.pad(maps[:, None], border, mode="reflect")[:, 0], kernel, sigma)


def _filtered(maps: Tensor, length: int, sigma: float) -> Tensor:
    """Weighs the neighbours of each pixel by a Gaussian, along the rows and then along the columns, without borders.

    Args:
        maps: `[B, H, W]`.
        length: Odd length of the kernel in pixels.
        sigma: Standard deviation in pixels.

    Returns:
        `[B, H - length + 1, W - length + 1]` float32.
    """
    maps = maps.float()
    distance = torch.arange(length, device=maps.device, dtype=maps.dtype) - length // 2
    weights = torch.exp(-(distance**2) / (2 * sigma**2))
    weights = weights / weights.sum()
    with in_float32(maps):
        along_rows = F.conv2d(maps[:, None], weights.view(1, 1, 1, -1))
        return F.conv2d(along_rows, weights.view(1, 1, -1, 1))[:, 0]


def top_share_mean(values: Tensor, share: float) -> Tensor:
    """Mean of the largest `share` of the values `[..., n]`, rounded down to whole values, at least the largest: `[...]`."""
    return values.topk(max(1, int(share * values.shape[-1])), dim=-1).values.mean(dim=-1)


def swap_red_blue(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Turns normalised images into what they would be had their files been read as BGR and normalised as RGB.

    Args:
        images: `[M, 3, H, W]`, normalised.
        mean: Mean of each RGB channel that they were normalised with.
        std: Standard deviation of each channel.
    """
    centre, spread = (torch.tensor(v, device=images.device, dtype=images.dtype).view(3, 1, 1) for v in (mean, std))
    return ((images * spread + centre).flip(1) - centre) / spread
