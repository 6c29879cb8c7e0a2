"""AA-CLIP's text side: class words, sentences, and the adapted text tower."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_vlm.backbone import ClipBackbone
from anomaly_vlm.errors import UserError
from anomaly_vlm.methods.shared.adapters import MixedAdapter, xavier
from anomaly_vlm.methods.shared.sentences import fill_templates
from anomaly_vlm.texts import load_texts, table_key

ClassWords = Literal["described", "plain", "object"]


class Sentences:
    """The sentences about a category.

    Args:
        texts: Table of templates, states and described class words: its name, a JSON file, or the table itself.
        class_words: `described`: a phrase for each category of the papers' sets, test sets too, written by the authors.
            `plain`: the category's name, also where there is no phrase. `object`: the word "object".
    """

    def __init__(self, texts: str | Mapping[str, Any], class_words: ClassWords) -> None:
        self.texts, self.class_words = load_texts(texts), class_words
        described = self.texts.get("described", {})
        self.described = {table_key(key): word for words in described.values() for key, word in words.items()}

    def word(self, category: str) -> str:
        """The class word of a category.

        Raises:
            UserError: It is empty.
        """
        if self.class_words == "object":
            return "object"
        plain = category.replace("_", " ")
        word: str = self.described.get(table_key(category), plain) if self.class_words == "described" else plain
        if not word.strip():
            raise UserError(f"the class word of category '{category}' is empty: name the category")
        return word

    def sides(self, category: str) -> tuple[list[str], list[str]]:
        """The normal and the abnormal sentences about a category."""
        word, templates = self.word(category), self.texts["templates"]
        normal, abnormal = (
            fill_templates(templates, self.texts[f"{side}_states"], word) for side in ("normal", "anomalous")
        )
        return normal, abnormal


class AdaptedText(nn.Module):
    """The text tower with adapters behind its first blocks and a projection of its own.

    Args:
        backbone: Frozen towers.
        until: Blocks with an adapter behind them.
        weight: Share of the adapters.
        rank: See `MixedAdapter`.
        generator: Draws the start.
    """

    def __init__(
        self, backbone: ClipBackbone, *, until: int, weight: float, rank: int | None, generator: torch.Generator
    ) -> None:
        super().__init__()
        width = backbone.text_width
        self.adapters = nn.ModuleList(
            [MixedAdapter(width, weight=weight, rank=rank, generator=generator) for _ in range(until)]
        )
        self.projection = nn.Parameter(xavier(backbone.embed_dim, width, generator))

    def encode(self, backbone: ClipBackbone, sentences: Sequence[str]) -> Tensor:
        """Text features `[n, C]` of sentences, not normalised."""
        return backbone.encode_text(
            backbone.tokenize(sentences), adapters=list(self.adapters), projection=self.projected
        )

    def projected(self, states: Tensor) -> Tensor:
        """End-token states `[n, Dt]` after `ln_final` in the joint space `[n, C]`."""
        return F.leaky_relu(states @ self.projection.T)


def mean_direction(features: Tensor) -> Tensor:
    """The direction `[C]` of the mean of the directions of features `[n, C]`."""
    mean = F.normalize(features, dim=-1).mean(dim=0)
    return F.normalize(mean, dim=-1)
