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
