"""Fusion of the maps by texts and by memory, as PromptAD and FineGrainedAD do it."""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

from anomaly_vlm.backbone import ClipBackbone
from anomaly_vlm.methods.shared.maps import to_grid, upsample


class Comparison(NamedTuple):
    """A batch compared with texts and memory.

    Attributes:
        textual: Abnormality `[B, N]` of the patches by the texts.
        visual: Abnormality `[B, N]` of the patches by the memory.
        score: Abnormality `[B]` of the class feature by the texts.
        grid: Rows and columns of patches.
    """

    textual: Tensor
    visual: Tensor
    score: Tensor
    grid: tuple[int, int]

    def fused(self) -> Tensor:
        """Harmonic fusion `[B, rows, columns]` of both maps, without the factor 2, as published."""
        return to_grid(harmonic(self.textual, self.visual), self.grid)

    def visual_map(self, size: tuple[int, int]) -> Tensor:
        """The memory's map upsampled to `[B, H, W]`."""
        return upsample(to_grid(self.visual, self.grid), size, align_corners=False)


def similarity_factor(temperature: float | Literal["published"], backbone: ClipBackbone) -> float:
    """Factor of similarities.

    Args:
        temperature: `published`: the factor is the backbone's stored logit scale, which is the logarithm of CLIP's factor
            (4.6 in place of 100). A number: it divides the similarities.
        backbone: Frozen towers.
    """
    return backbone.logit_scale if isinstance(temperature, str) else 1 / temperature


def harmonic(a: Tensor, b: Tensor) -> Tensor:
    """`1 / (1/a + 1/b)` of numbers of at least 0; 0 where one of them is 0."""
    return 1 / (1 / a + 1 / b)
