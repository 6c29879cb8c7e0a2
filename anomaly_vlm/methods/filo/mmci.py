"""MMCI: convolutions of several shapes side by side on the patch tokens of a tower (FiLo, section 3.3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_vlm.errors import UserError

KERNELS = ((1, 1), (3, 3), (5, 5), (7, 7), (1, 5), (5, 1))  # height, width


@dataclass(frozen=True)
class MMCIOptions:
    """Options of the MMCI heads.

    Args:
        kernels: Height and width of each branch's convolution, odd, in patches.
        fuse: `published`: the branches' features are summed. `paper`: their probabilities are averaged.
    """

    kernels: Sequence[Sequence[int]] = KERNELS
    fuse: Literal["published", "paper"] = "published"


class MMCI(nn.Module):
    """One head: the sum of parallel convolutions, each with bias, stride 1 and zero padding that keeps the size.

    The sum of convolutions is computed as one convolution with the sum of their kernels, padded with zeros to the largest.
    This is exact for values and gradients, and half the work.

    Args:
        width: Width Dv of the tokens.
        dim: Width C of the output.
        kernels: Height and width of each branch, odd.

    Raises:
        UserError: There is no kernel, an even one, or the same one twice.
    """

    def __init__(self, width: int, dim: int, kernels: Sequence[Sequence[int]] = KERNELS) -> None:
        super().__init__()
        sizes = [(int(height), int(across)) for height, across in kernels]
        if (
            not sizes
            or any(side < 1 or side % 2 == 0 for size in sizes for side in size)
            or len(set(sizes)) < len(sizes)
        ):
            raise UserError(
                f"method.mmci.kernels is {sizes}: give pairs (height, width) of odd numbers, each pair once"
            )
        self.convs = nn.ModuleDict(
            {f"{size[0]}{size[1]}": nn.Conv2d(width, dim, size, padding=(size[0] // 2, size[1] // 2)) for size in sizes}
        )
        self.kernel = (max(height for height, _ in sizes), max(across for _, across in sizes))

    def branches(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Applies each branch to tokens `[B, N, Dv]`; returns `[branches, B, N, C]`."""
        images = to_image(tokens, grid)
        return torch.stack([to_tokens(conv(images)) for conv in self.convs.values()])

    def merged(self) -> tuple[Tensor, Tensor]:
        """Weight `[C, Dv, height, width]` and bias `[C]` of the one convolution that the sum of all branches is."""
        convs = [conv for conv in self.convs.values() if isinstance(conv, nn.Conv2d) and conv.bias is not None]
        weight = _CentredSum.apply(self.kernel, *(conv.weight for conv in convs))
        return weight, torch.stack([conv.bias for conv in convs if conv.bias is not None]).sum(dim=0)


class _CentredSum(torch.autograd.Function):
    """Sum of kernels `[C, Dv, h, w]` of several sizes, each in the middle of the largest, without padded copies."""

    @staticmethod
    def forward(ctx: Any, size: tuple[int, int], *kernels: Tensor) -> Tensor:
        ctx.slices = [middle(size, (kernel.shape[2], kernel.shape[3])) for kernel in kernels]
        total = kernels[0].new_zeros(*kernels[0].shape[:2], *size)
        for kernel, inner in zip(kernels, ctx.slices, strict=True):
            total[inner] += kernel
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return None, *(gradient[inner].contiguous() for inner in ctx.slices)


def middle(size: tuple[int, int], inner: tuple[int, int]) -> tuple[Any, ...]:
    """Index of the middle `inner` rows and columns of kernels `[..., *size]`; both sizes are odd."""
    starts = [(full - side) // 2 for full, side in zip(size, inner, strict=True)]
    return (..., *(slice(start, start + side) for start, side in zip(starts, inner, strict=True)))


def convolve(tokens: Tensor, grid: tuple[int, int], weight: Tensor, bias: Tensor) -> Tensor:
    """Convolves tokens on their grid.

    Args:
        tokens: `[B, N, Dv]`, row by row.
        grid: Rows and columns.
        weight: `[C, Dv, height, width]`, odd sides.
        bias: `[C]`.

    Returns:
        `[B, N, C]`.
    """
    padding = (weight.shape[2] // 2, weight.shape[3] // 2)
    return to_tokens(F.conv2d(to_image(tokens, grid), weight, bias, padding=padding))


def to_image(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Lays tokens `[B, N, D]` out as `[B, D, rows, columns]`."""
    return torch.unflatten(tokens.transpose(1, 2), 2, grid)


def to_tokens(images: Tensor) -> Tensor:
    """Lists `[B, D, rows, columns]` as tokens `[B, N, D]`, row by row."""
    return images.flatten(2).transpose(1, 2)
