"""How PromptAD and FineGrainedAD join what texts and memory say of a batch."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from anomaly_vlm.backbone import ClipBackbone
from anomaly_vlm.errors import UserError
from anomaly_vlm.methods.shared.maps import to_grid, upsample


class Comparison(NamedTuple):
    """A batch against memory and texts: `textual` [B, N] and `visual` [B, N] abnormality of the patches, `score` [B] of the
    class feature, `grid`: rows and columns of patches."""

    textual: Tensor
    visual: Tensor
    score: Tensor
    grid: tuple[int, int]

    def fused(self) -> Tensor:
        """Harmonic fusion [B, rows, columns] of both maps, without the factor 2, as published."""
        return to_grid(harmonic(self.textual, self.visual), self.grid)

    def visual_map(self, size: tuple[int, int]) -> Tensor:
        """The memory's map upsampled to [B, H, W]."""
        return upsample(to_grid(self.visual, self.grid), size, align_corners=False)


def similarity_factor(temperature: float | str, backbone: ClipBackbone) -> float:
    """What similarities are multiplied by: the backbone's stored (logarithmic) logit scale, or 1 / temperature."""
    if temperature == "raw_logit_scale":
        return backbone.logit_scale
    if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not temperature > 0:
        raise UserError(
            f"method.temperature is {temperature!r}: give raw_logit_scale, or a number above 0 such as 0.01"
        )
    return 1 / temperature


def harmonic(a: Tensor, b: Tensor) -> Tensor:
    """`1 / (1/a + 1/b)` of numbers >= 0; 0 where one of them is."""
    return 1 / (1 / a + 1 / b)
