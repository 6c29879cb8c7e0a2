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
    return _smoothed(maps, int(truncate * sigma + 0.5), sigma, edge_twice=True)  # as SciPy's border mode `reflect`


def gaussian_kernel_smooth(maps: Tensor, kernel: int, sigma: float) -> Tensor:
    """Smooths maps by a Gaussian of a given kernel; borders are reflected without repeating the edge pixel.

    Args:
        maps: `[B, H, W]`, sides above `kernel // 2`.
        kernel: Odd side in pixels; 1 leaves the maps as they are.
        sigma: Standard deviation in pixels.
    """
    return maps if kernel == 1 else _smoothed(maps, kernel // 2, sigma, edge_twice=False)


def _smoothed(maps: Tensor, radius: int, sigma: float, *, edge_twice: bool) -> Tensor:
    """Weighs the neighbours of each pixel by a Gaussian, along the columns and then along the rows.

    Args:
        maps: `[B, H, W]`.
        radius: Neighbours on each side.
        sigma: Standard deviation in pixels.
        edge_twice: Whether the edge pixel comes twice where maps are reflected at their borders.

    Returns:
        `[B, H, W]` float32.
    """
    maps = maps.float()
    distance = torch.arange(-radius, radius + 1, device=maps.device, dtype=maps.dtype)
    weights = torch.exp(-(distance**2) / (2 * sigma**2))
    weights = weights / weights.sum()
    with in_float32(maps):
        for _ in range(2):
            maps = _weighed(maps, weights, edge_twice=edge_twice).mT.contiguous()
    return maps


def _weighed(maps: Tensor, weights: Tensor, *, edge_twice: bool) -> Tensor:
    """Weighs the neighbours of each pixel of maps `[B, H, W]` in its column by `weights` `[2 r + 1]`; see `_smoothed`.

    A product of a banded matrix with stretches of rows: several times as fast as a convolution of one channel.
    """
    height, radius = maps.shape[-2], len(weights) // 2
    step = 2 * max(radius, 8)  # rows that a stretch gives; it begins `radius` rows before them and ends as many behind
    stretches = -(-height // step)
    period = 2 * height if edge_twice else max(1, 2 * height - 2)
    place = torch.arange(-radius, stretches * step + radius, device=maps.device) % period
    place = torch.where(place < height, place, (period - 1 if edge_twice else period) - place)
    band = weights.new_zeros(step, step + 2 * radius)
    for i in range(step):
        band[i, i : i + len(weights)] = weights
    rows = maps.index_select(-2, place).unfold(-2, step + 2 * radius, step).mT  # [B, stretches, rows, W]
    return (band @ rows).flatten(1, 2)[:, :height]


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
