"""Windows of WinCLIP: overlapping squares of patches that are encoded one by one, and means over them."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Windows(NamedTuple):
    """All windows of one size on a grid of patches.

    Attributes:
        tokens: Indices `[W, 1 + size^2]` of each window's tokens, windows row by row; 0 is the class token.
        cover: `[N, W]`, 1.0 where a window contains a patch.
    """

    tokens: Tensor
    cover: Tensor


def windows_of(size: int, grid: tuple[int, int]) -> Windows:
    """Lists the windows of `size` x `size` patches on a grid of rows and columns, with stride 1."""
    rows, columns = grid
    numbers = torch.arange(rows * columns).view(grid)
    inside = numbers.unfold(0, size, 1).unfold(1, size, 1).flatten(2).flatten(0, 1)  # [W, size^2]
    cover = torch.zeros(rows * columns, len(inside))
    cover[inside.T, torch.arange(len(inside))] = 1.0
    return Windows(F.pad(inside + 1, (1, 0)), cover)


def harmonic_mean(values: Tensor, cover: Tensor) -> Tensor:
    """Averages, for each patch, the values of the windows that contain it by the harmonic mean.

    Args:
        values: `[B, W]`, at least 0. Where one is 0, the mean is next to 0.
        cover: `Windows.cover` `[N, W]`.

    Returns:
        `[B, N]`.
    """
    inverse = torch.einsum("nw,bw->bn", cover, (1 / values).clamp_max(torch.finfo(values.dtype).max / 1e6))
    return cover.sum(dim=1) / inverse


def arithmetic_mean(values: Tensor, cover: Tensor) -> Tensor:
    """Averages, for each patch, the values `[B, W]` of the windows that contain it to `[B, N]`."""
    return torch.einsum("nw,bw->bn", cover, values) / cover.sum(dim=1)
