"""What keeps float32 in a run of mixed precision."""

from __future__ import annotations

import torch
from torch import Tensor


def in_float32(like: Tensor) -> torch.autocast:
    """A block in which autocast does not lower the precision.

    Similarities of unit vectors lie close together and are divided by a small temperature: in bfloat16, whose steps near 1
    are 1/128, they would become a handful of different logits.

    Args:
        like: A tensor on the device of the block.
    """
    return torch.autocast(like.device.type, enabled=False)


def product(left: Tensor, right: Tensor) -> Tensor:
    """`left @ right` in float32, also where autocast would lower it."""
    with in_float32(left):
        return left.float() @ right.float()


def summed_product(equation: str, left: Tensor, right: Tensor) -> Tensor:
    """`torch.einsum` of two tensors in float32, also where autocast would lower it."""
    with in_float32(left):
        summed: Tensor = torch.einsum(equation, left.float(), right.float())
    return summed
