"""AA-CLIP's maps and image scores after the towers: the Gaussian on the grid, and scores stretched by a known range."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from anomaly_vlm.errors import UserError
from anomaly_vlm.methods.shared.maps import gaussian_kernel_smooth

Domain = Literal["industrial", "medical"]
GAUSSIANS: dict[str, tuple[int, float]] = {"industrial": (7, 1.0), "medical": (9, 1.5)}  # kernel and sigma in patches


def checked_grid(size: tuple[int, int], patch: int, domain: Domain) -> tuple[int, int]:
    """Rows and columns of patches of an image of this height and width.

    Raises:
        UserError: There are too few for the domain's Gaussian.
    """
    kernel, _ = GAUSSIANS[domain]
    grid = (size[0] // patch, size[1] // patch)
    if min(grid) <= kernel // 2:
        raise UserError(
            f"an image of {grid[0]} x {grid[1]} patches is too small for the Gaussian of {kernel}: set image_size to"
            f" {(kernel // 2 + 1) * patch} or more"
        )
    return grid


def smoothed(grids: Tensor, domain: Domain) -> Tensor:
    """Grids `[levels, B, rows, columns]` after the domain's Gaussian."""
    return gaussian_kernel_smooth(grids.flatten(0, 1), *GAUSSIANS[domain]).view_as(grids)


def stretched(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Values on the scale where `low` is 0 and `high` is 1; all 0 where these are no range."""
    return (values - low) / (high - low) if high > low else torch.zeros_like(values)


def category_minmax(components: Tensor, domain: Domain) -> Tensor:
    """Published image scores of all test images of a category.

    Args:
        components: Largest and smallest value of the map, and image value, `[n, 3]`. A range of 0 makes its term 0; one that
            ends at exactly 1 is not stretched.
        domain: `medical` scores are the map's part alone.
    """
    peaks, lowest, values = components.unbind(dim=1)
    maps = peaks if peaks.max() == 1 else stretched(peaks, lowest.min(), peaks.max())
    if domain == "medical":
        return maps
    images = values if values.max() == 1 else stretched(values, values.min(), values.max())
    return (maps + images) / 2


class CategoryRanges:
    """Ranges of maps and image values, category by category."""

    def __init__(self) -> None:
        self._ranges: dict[str, Tensor] = {}

    def add(self, maps: Tensor, values: Tensor, categories: Sequence[str]) -> None:
        """Adds maps `[B, H, W]` and image values `[B]` of images of these categories."""
        for row, category in enumerate(categories):
            seen = torch.stack([maps[row].amin(), maps[row].amax(), values[row], values[row]])
            known = self._ranges.get(category, seen)
            low, high = torch.minimum(known, seen), torch.maximum(known, seen)
            self._ranges[category] = torch.stack([low[0], high[1], low[2], high[3]])

    def mean(self) -> Tensor:
        """Lowest and highest value of the maps and of the image values, `[4]`, means over the categories."""
        return torch.stack(list(self._ranges.values())).mean(dim=0)
