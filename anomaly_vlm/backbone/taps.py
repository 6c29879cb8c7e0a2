"""Blocks and input sizes that a tower has, checked for users: `BlockTaps` of a ViT, `Strided` of a convolutional tower."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from anomaly_vlm.errors import UserError

Tap = Literal["raw", "norm", "projected"]


@dataclass
class ImagePatches:
    """What an image tower without its text half makes of a batch; N = rows x columns of `grid`.

    Attributes:
        patches: Per requested layer, in the order asked, [B, N, D]; class and register tokens dropped.
        cls: Per requested layer the class token [B, D]. Where none has seen the image (layer 0, and towers without a class
            token such as SAM and SigLIP) the mean of the patches takes its place.
        grid: Rows and columns of patches.
    """

    patches: list[Tensor]
    cls: list[Tensor]
    grid: tuple[int, int]


class BlockTaps:
    """What a ViT says of its blocks and its patches. The class that mixes it in sets the facts.

    Attributes:
        name: For error messages.
        num_layers: Vision blocks.
        patch_size: Side in pixels.
    """

    name: str
    num_layers: int
    patch_size: int

    @property
    def quarters(self) -> tuple[int, ...]:
        """1-based vision blocks at the quarters of the depth (6, 12, 18, 24 of 24)."""
        quarter = max(1, self.num_layers // 4)
        return tuple(range(quarter, self.num_layers + 1, quarter))

    def checked_layers(self, layers: Sequence[int], *, embedding: bool = False) -> tuple[int, ...]:
        """The 1-based layers as a tuple, or a `UserError` where the image tower has no such block.

        Args:
            layers: 1-based numbers of blocks.
            embedding: Whether 0 is allowed, too: the patch embedding.
        """
        wrong = [layer for layer in layers if not (0 if embedding else 1) <= layer <= self.num_layers]
        if wrong:
            first = " (0: the patch embedding)" if embedding else ""
            raise UserError(
                f"layers {list(layers)}: {self.name} has vision blocks 1 to {self.num_layers}{first}, not {wrong[0]}: give"
                " others"
            )
        return tuple(layers)

    def checked_size(self, size: int) -> int:
        """`size`, or a `UserError` where it is no positive multiple of the patch size."""
        return _multiple(size, self.patch_size, f"{self.name} needs a positive multiple of its patch size")

    def grid_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of patches of an image of this height and width."""
        return size[0] // self.patch_size, size[1] // self.patch_size


class Strided:
    """Input sizes of a convolutional tower. The class that mixes it in sets the facts.

    Attributes:
        name: For error messages.
        stride: Stride of the last stage, in pixels.
    """

    name: str
    stride: int

    def checked_size(self, size: int) -> int:
        """`size`, or a `UserError` where it is no positive multiple of the stride."""
        return _multiple(size, self.stride, f"{self.name} needs a positive multiple of its stride")


def _multiple(size: int, unit: int, wanted: str) -> int:
    if size <= 0 or size % unit:
        raise UserError(f"image_size {size}: {wanted} {unit}, such as {max(1, round(size / unit)) * unit}")
    return size
