"""A small adapter behind a frozen block: a linear map of the tokens, mixed into them at their own length."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_vlm.options import Fraction, PositiveInt


class MixedAdapter(nn.Module):
    """`x <- w a |x| / |a| + (1 - w) x` with `a = LeakyReLU(A x)`, on every token (AA-CLIP, arXiv 2503.06661, section 3.2).

    Args:
        width: D of the tokens.
        weight: w, the share of the adapter.
        rank: Rank of A, which is then a product of two thin matrices; None for a full matrix, as published.
        generator: Draws the start, Xavier uniform; a thin product starts at the same spread.
    """

    def __init__(
        self, width: int, *, weight: Fraction, rank: PositiveInt | None = None, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.mix = weight
        shapes = [(width, width)] if rank is None else [(rank, width), (width, rank)]
        # A is their product
        self.factors = nn.ParameterList([nn.Parameter(xavier(*shape, generator)) for shape in shapes])

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens `[..., D]` with the adapter mixed in."""
        adapted = tokens
        for factor in self.factors:
            adapted = adapted @ factor.T
        adapted = F.leaky_relu(adapted)
        length = adapted.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        mixed: Tensor = self.mix * adapted * tokens.norm(dim=-1, keepdim=True) / length + (1 - self.mix) * tokens
        return mixed


def xavier(rows: int, columns: int, generator: torch.Generator | None) -> Tensor:
    """A matrix `[rows, columns]` drawn uniformly between plus and minus sqrt(6 / (rows + columns))."""
    bound = math.sqrt(6 / (rows + columns))
    return bound * (2 * torch.rand(rows, columns, generator=generator) - 1)
