"""AnoVL's views of an image, for the image score, and the squares that an image is cut into."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_vlm.methods.shared.sliding_window import starts

SHIFTS = (0.2, 0.1)  # of the translated views, as fractions of half the image
GREY = (0.299, 0.587, 0.114)


def augmented_views(images: Tensor) -> Tensor:
    """The 22 views of square images, whose mean is the image score.

    They are, in this order: the image; rotations by -45 to 45 degrees in steps of 11.25; translations by 0.2 and 0.1 of half
    a side towards the four corners (both reflected at the border); mirrored; grey; rotations by 90, 180 and 270 degrees,
    counter-clockwise.

    Args:
        images: `[M, 3, S, S]`, normalised.

    Returns:
        `[M, 22, 3, S, S]`.
    """
    angles = [k * math.pi / 16 for k in (-4, -3, -2, -1, 1, 2, 3, 4)]
    moves = [[[math.cos(a), -math.sin(a), 0.0], [math.sin(a), math.cos(a), 0.0]] for a in angles]
    for shift in SHIFTS:
        for across, down in ((shift, shift), (-shift, shift), (-shift, -shift), (shift, -shift)):
            moves.append([[1.0, 0.0, across], [0.0, 1.0, down]])
    grid = F.affine_grid(
        torch.tensor(moves, device=images.device), [len(moves), *images.shape[1:]], align_corners=True
    )  # [16, S, S, 2]
    count, plain = len(images), images.float()
    moved = F.grid_sample(
        plain.repeat_interleave(len(moves), dim=0),
        grid.repeat(count, 1, 1, 1),
        mode="bilinear",
        padding_mode="reflection",
        align_corners=True,
    )
    moved = torch.unflatten(moved, 0, (count, -1))
    grey = torch.einsum("mchw,c->mhw", plain, plain.new_tensor(GREY))[:, None].expand_as(plain)
    others = [plain.flip(-1), grey, *(plain.rot90(k, (-2, -1)) for k in (1, 2, 3))]
    return torch.cat([plain[:, None], moved, torch.stack(others, dim=1)], dim=1).to(images.dtype)


def squares_of(size: tuple[int, int]) -> list[tuple[slice, slice]]:
    """Squares of the shorter side that cover an image of (height, width).

    There is one for a square image, two at both ends of the longer side up to a ratio of 1 to 2, and more at equal steps
    beyond it.
    """
    side = min(size)
    corners = [(top, left) for top in starts(size[0], side, 0.0) for left in starts(size[1], side, 0.0)]
    return [(slice(top, top + side), slice(left, left + side)) for top, left in corners]


def joined(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Joins maps `[B, T, S, S]` of the squares of images of (height, width) to `[B, H, W]`; the mean where they overlap."""
    total, count = maps.new_zeros(len(maps), *size), maps.new_zeros(size)
    for square, index in zip(maps.unbind(dim=1), squares_of(size), strict=True):
        total[(..., *index)] += square
        count[index] += 1
    return total / count
