"""Hybrid learnable prompts of AdaCLIP (section 3.3): learned tokens that enter both towers of the frozen CLIP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from anomaly_vlm.backbone import ClipBackbone
from anomaly_vlm.errors import UserError
from anomaly_vlm.options import PositiveInt

PAPER_DEPTH = 4


@dataclass(frozen=True)
class PromptOptions:
    """Which towers get prompt tokens, and which kind (table 3 and figure 5 of the paper).

    Attributes:
        branch: Towers with prompts: `VL` both, `V` the image tower, `L` the text tower, an empty text none.
        type: `S` static prompts, `D` dynamic prompts, `SD` their sum, an empty text none.
        depth: J, the number of blocks that get prompts, counted from the first one. None: 4 as in the paper, or the number
            of blocks of the shallower tower where that is smaller.
        length: n, the number of tokens of a prompt.
        text_mode: How prompts enter sentences. `published`: they overwrite the tokens behind the start token, from the
            second block on. `paper`: they are inserted behind the start token, from the first block on.
    """

    branch: Literal["VL", "V", "L", ""] = "VL"
    type: Literal["SD", "S", "D", ""] = "SD"
    depth: PositiveInt | None = None
    length: PositiveInt = 5
    text_mode: Literal["published", "paper"] = "published"

    @property
    def image(self) -> bool:
        """Whether the image tower has prompts."""
        return "V" in self.branch and self.type != ""

    @property
    def text(self) -> bool:
        """Whether the text tower has prompts."""
        return "L" in self.branch and self.type != ""

    @property
    def dynamic(self) -> bool:
        """Whether a tower has prompts that depend on the image."""
        return "D" in self.type and self.branch != ""

    def depth_on(self, backbone: ClipBackbone) -> int:
        """The depth J on a backbone.

        Raises:
            UserError: One of the towers has fewer blocks.
        """
        deepest = min(backbone.num_layers, backbone.num_text_layers)
        depth = min(PAPER_DEPTH, deepest) if self.depth is None else self.depth
        if depth > deepest:
            raise UserError(
                f"method.prompts.depth is {depth}: give 1 to {deepest}, the blocks of the shallower tower of {backbone.name}"
            )
        return depth


class HybridLearnablePrompts(nn.Module):
    """Prompt tokens of one tower: static ones plus dynamic ones.

    Static prompts are learned for each depth. Dynamic prompts are a linear map of the image's global feature for each token,
    and the same at every depth.

    Args:
        options: `type` and `length` of the prompts.
        feature_dim: C, width of the global feature.
        width: D, width of the tower.
        depth: J, number of blocks that get prompts.
    """

    def __init__(self, options: PromptOptions, *, feature_dim: int, width: int, depth: int) -> None:
        super().__init__()
        self.depth = depth
        self.static: nn.ParameterList | None = None
        self.dynamic: nn.ModuleList | None = None
        if "S" in options.type:
            self.static = nn.ParameterList([torch.randn(options.length, width) * 0.02 for _ in range(depth)])
        if "D" in options.type:
            self.dynamic = nn.ModuleList([nn.Linear(feature_dim, width) for _ in range(options.length)])

    def forward(self, pooled: Tensor | None) -> list[Tensor]:
        """Makes the prompts of a batch.

        Args:
            pooled: Global features `[B, C]` of the images; None where there are no dynamic prompts.

        Returns:
            A prompt for each depth: `[B, n, D]`, or `[n, D]` without dynamic prompts.
        """
        static = [] if self.static is None else list(self.static)
        if self.dynamic is None:
            return static
        dynamic = torch.stack([linear(pooled) for linear in self.dynamic], dim=1)  # [B, n, D]
        return [tokens + dynamic for tokens in static] or [dynamic] * self.depth
