"""Which blocks of the image tower a method reads: one meaning of `layers` for all methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from anomaly_vlm.backbone import ClipBackbone, ViTBackbone
from anomaly_vlm.errors import UserError

Layers = Sequence[int] | Literal["last"] | None


def tapped_layers(
    backbone: ClipBackbone | ViTBackbone, layers: Layers, *, option: str = "layers", embedding: bool = False
) -> tuple[int, ...]:
    """Resolves an option that names blocks of the image tower.

    Args:
        backbone: The tower that has the blocks.
        layers: 1-based numbers of blocks; `last` for the last block alone; None for `backbone.layers`, which are the
            quarters of the depth unless the backbone's configuration names others.
        option: Name of the option in messages.
        embedding: Whether 0, the patch embedding, may be named, too.

    Returns:
        The 1-based numbers, in the order given.

    Raises:
        UserError: The list is empty, names a block twice, or names one that the tower does not have.
    """
    if layers is None:
        return backbone.layers
    if isinstance(layers, str):
        return (backbone.num_layers,)
    if not layers or len(set(layers)) < len(layers):
        raise UserError(
            f"method.{option} is {list(layers)}: give different vision blocks of 1 to {backbone.num_layers}, or null for"
            f" {list(backbone.layers)}"
        )
    return backbone.checked_layers(layers, embedding=embedding)


def share_of_depth(backbone: ClipBackbone | ViTBackbone, blocks: Sequence[int], depth: int) -> tuple[int, ...]:
    """The blocks that stand where the 1-based `blocks` stand in a tower of `depth` blocks, rounded half up, none twice."""
    found = [int(backbone.num_layers * block / depth + 0.5) for block in blocks]
    return tuple(dict.fromkeys(max(1, layer) for layer in found))


def first_blocks(blocks: int | None, depth: int, *, option: str) -> int:
    """How many first blocks of a tower of `depth` blocks are meant; None for a quarter of them, at least one.

    Raises:
        UserError: More than there are.
    """
    if blocks is None:
        return max(1, depth // 4)
    if blocks > depth:
        raise UserError(f"method.{option} is {blocks}: the tower has {depth} blocks, give that or fewer")
    return blocks
