"""`torch.compile` of a tower's blocks, in place: weights, checkpoints and caches are as before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import nn

from anomaly_vlm.backbone.blocks import plain_block
from anomaly_vlm.errors import UserError, unknown_choice

TIMM_BLOCKS = ("Block", "EvaBlock", "ConvNeXtBlock", "ResPostBlock", "ParallelScalingBlock")


def compile_blocks(tower: nn.Module, backend: str | Callable[..., Any]) -> int:
    """Lets the blocks of a frozen tower run compiled; those whose path a method bends (V-V attention) run as they are.

    Args:
        tower: Of which the blocks are compiled, when they are first called.
        backend: A name that `torch.compile` knows, or a backend itself.

    Returns:
        The number of blocks.

    Raises:
        UserError: There is no such backend, or the tower has no blocks of a known kind.
    """
    known = torch.compiler.list_backends(exclude_tags=())
    if isinstance(backend, str) and backend not in known:
        raise unknown_choice("compile", backend, known)
    step = torch.compile(plain_block, backend=backend)
    count = 0
    for module in tower.modules():
        if isinstance(module, ResidualAttentionBlock):
            module.compiled = step
        elif type(module).__name__ in TIMM_BLOCKS:
            module.compile(backend=backend)
        else:
            continue
        count += 1
    if not count:
        raise UserError(f"compile={backend}: this backbone has no transformer blocks that are known: set compile=null")
    return count
