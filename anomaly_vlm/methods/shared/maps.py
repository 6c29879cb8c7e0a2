"""Maps that methods share: patches as a grid, upsampling, smoothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from kornia.filters import filter2d_separable, get_gaussian_kernel1d
from torch import Tensor


def to_grid(patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """[..., N] values of the patches -> [..., rows, columns]."""
    return patches.unflatten(-1, grid)


def upsample(maps: Tensor, size: tuple[int, int], *, align_corners: bool) -> Tensor:
    """Bilinear upsampling of single-channel maps [..., h, w] -> [..., H, W]."""
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    return F.interpolate(flat, size=size, mode="bilinear", align_corners=align_corners).view(*maps.shape[:-2], *size)


def gaussian_smooth(maps: Tensor, sigma: float, *, truncate: float = 4.0) -> Tensor:
    """Gaussian of maps [B, H, W] as `scipy.ndimage.gaussian_filter` computes it (border `reflect`, cut at `truncate` sigma).

    SciPy's `reflect` repeats the edge pixel; kornia's does not. So the border is laid on explicitly first.
    """
    if sigma <= 0:
        return maps
    radius = int(truncate * sigma + 0.5)
    maps = maps.float()
    for axis in (-2, -1):
        length = maps.shape[axis]
        index = torch.arange(-radius, length + radius, device=maps.device) % (2 * length)
        maps = maps.index_select(axis, torch.where(index < length, index, 2 * length - 1 - index))
    kernel = get_gaussian_kernel1d(2 * radius + 1, sigma, device=maps.device, dtype=maps.dtype)
    return filter2d_separable(maps[:, None], kernel, kernel, padding="valid")[:, 0]


def swap_red_blue(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalised RGB images [M, 3, H, W] as if their files had been read as BGR and normalised as RGB."""
    centre, spread = (torch.tensor(v, device=images.device, dtype=images.dtype).view(3, 1, 1) for v in (mean, std))
    return ((images * spread + centre).flip(1) - centre) / spread
