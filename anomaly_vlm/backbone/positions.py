"""Position embeddings for input sizes other than the one that the weights were trained at."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

PosResize = Literal["bicubic", "bilinear", "bicubic_antialias", "dinov2"]
POS_RESIZE: tuple[str, ...] = get_args(PosResize)


def resize_positions(positions: Tensor, grid: tuple[int, int], mode: PosResize = "bicubic") -> Tensor:
    """Interpolates the patch positions to another grid; the class position is kept.

    Always from the trained grid, never from an interpolated one.

    Args:
        positions: [1 + G * G, D], class position first.
        grid: Rows and columns of patches wanted.
        mode: `bicubic` and `bilinear` without antialias (AdaCLIP; AnomalyCLIP), `bicubic_antialias` (open_clip's own
            loader); `dinov2`: bicubic without antialias, where the sampling positions follow the scale factors
            (rows + 0.1) / G and (columns + 0.1) / G, as DINOv2's code computes them. All with `align_corners=False`.

    Returns:
        [1 + rows * columns, D]
    """
    side = round((positions.shape[0] - 1) ** 0.5)
    if grid == (side, side):
        return positions
    patches = positions[1:].T.reshape(1, -1, side, side).float()
    if mode == "dinov2":
        factors = ((grid[0] + 0.1) / side, (grid[1] + 0.1) / side)
        patches = F.interpolate(patches, scale_factor=factors, mode="bicubic", align_corners=False)
    else:
        interpolation, _, antialias = mode.partition("_")
        patches = F.interpolate(patches, size=grid, mode=interpolation, align_corners=False, antialias=bool(antialias))
    return torch.cat([positions[:1], patches[0].flatten(1).T.to(positions.dtype)])
