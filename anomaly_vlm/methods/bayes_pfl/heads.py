"""What compares texts and images: a global feature of the patches, and texts that look at the patches first (RCA)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_vlm.texts import table_key

MOST, FEWER, SIDE = 2000, 20, 518  # published numbers of pixels in the score, at this side


def start_linear(*modules: nn.Module) -> None:
    """Draws the weights of all linear layers at deviation 0.02, and sets their biases to 0."""
    for module in modules:
        for layer in module.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)


def top_score(map: Tensor, category: str, few: Sequence[str] | None) -> Tensor:
    """Mean of the largest values of a map `[H, W]`.

    Args:
        map: Probabilities.
        category: What the image shows.
        few: Categories of which 20 values count, and 2,000 of all others; None for the share that 2,000 are of 518 x 518.
    """
    pixels = map.flatten()
    count = round(MOST * len(pixels) / SIDE**2)
    if few is not None:
        count = FEWER if table_key(category) in few else MOST
    return pixels.topk(min(len(pixels), max(1, count))).values.mean()


class PatchFeature(nn.Module):
    """One feature of an image from the patches of all levels, weighted by their own attention.

    Args:
        levels: Number of levels.
        width: Dv of the patches.
        outputs: C of the feature.
    """

    def __init__(self, levels: int, width: int, outputs: int) -> None:
        super().__init__()
        self.fuse_modules = nn.Linear(levels * width, width // 2)
        self.compress = nn.Linear(width // 2, 1)
        self.post_process = nn.Linear(width // 2, outputs)

    def forward(self, patches: Sequence[Tensor]) -> Tensor:
        """The feature `[B, C]` of the levels' patches, each `[B, N, Dv]`."""
        joined = self.fuse_modules(torch.cat(list(patches), dim=-1))
        weights = self.compress(joined).softmax(dim=1)
        feature: Tensor = self.post_process((weights * joined).sum(dim=1))
        return feature


class PatchAttention(nn.Module):
    """Residual cross attention: texts add what they attend to among an image's patches.

    Args:
        levels: Number of levels.
        width: Dv of the patches.
        joint: C of the texts; a multiple of `heads`.
        heads: Number of heads; the published scale is that of the whole width.
    """

    def __init__(self, levels: int, width: int, joint: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj_pre = nn.Conv1d(joint, joint, 1)
        self.linear_proj = nn.ModuleList([nn.Linear(width, joint, bias=False) for _ in range(levels)])

    def forward(self, level: int, patches: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        """Projects patches and refines texts.

        Args:
            level: Number of the level.
            patches: `[B, N, Dv]`.
            texts: `[B, T, C]`, unit norm.

        Returns:
            Patches `[B, N, C]` and texts `[B, T, C]`, unit norm.
        """
        features = F.normalize(self.linear_proj[level](patches), dim=-1)
        queries = self.q_proj_pre(texts.transpose(1, 2)).transpose(1, 2)
        q, k = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (queries, features))
        seen = F.scaled_dot_product_attention(q, k, k, scale=1 / math.sqrt(texts.shape[-1]))
        return features, F.normalize(seen.transpose(1, 2).flatten(2) + texts, dim=-1)
