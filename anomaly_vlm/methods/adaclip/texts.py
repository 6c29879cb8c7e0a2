"""AdaCLIP's sentences about a category, and the text features that the prompted text tower makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_vlm.backbone import ClipBackbone, Prompts
from anomaly_vlm.methods.shared.sentences import fill_templates
from anomaly_vlm.texts.learned_context import pad_sentences

# The prompt ensemble of the published code, `{}` for the class word.
STATES_NORMAL = (
    "{}",
    "flawless {}",
    "perfect {}",
    "unblemished {}",
    "{} without flaw",
    "{} without defect",
    "{} without damage",
)
STATES_ABNORMAL = ("damaged {}", "broken {}", "{} with flaw", "{} with defect", "{} with damage")
TEMPLATES = (
    "a bad photo of a {}.",
    "a low resolution photo of the {}.",
    "a bad photo of the {}.",
    "a cropped photo of the {}.",
)


class PromptEnsemble:
    """Sentences of a normal and an abnormal side, encoded with learned prompts.

    Args:
        backbone: Frozen towers.
        states: Normal and abnormal phrases, each with `{}` for the class word.
        templates: Sentences with `{}` for the phrase.
        mode: How prompts enter the sentences, see `PromptOptions.text_mode`.
    """

    def __init__(
        self,
        backbone: ClipBackbone,
        states: tuple[Sequence[str], Sequence[str]],
        templates: Sequence[str],
        mode: Literal["published", "paper"],
    ) -> None:
        self.backbone, self.states, self.templates = backbone, states, templates
        self.overwrite = mode == "published"
        self.first_block = 1 if self.overwrite else 0  # 0-based block at whose input the first prompt enters
        self._tokens: dict[str, tuple[Tensor, Tensor]] = {}  # category -> `_sentence_states`

    def sentences(self, category: str) -> tuple[list[str], list[str]]:
        """The normal and the abnormal sentences about a category; a `-` in its name becomes a blank."""
        word = category.replace("-", " ")
        normal, abnormal = (fill_templates(self.templates, states, word) for states in self.states)
        return normal, abnormal

    def encode(self, categories: Sequence[str], prompts: list[Tensor] | None) -> Tensor:
        """Encodes the sentences of all categories in one batch.

        Args:
            categories: B names; one comes twice where two images of a category have prompts of their own.
            prompts: A prompt for each depth, `[B, n, Dt]` or `[n, Dt]`; None for the plain text tower.

        Returns:
            Normal and abnormal text feature `[B, 2, C]` of each category: means over the sentences, unit norm.
        """
        entries = [self._sentence_states(category) for category in categories]
        tokens, states = pad_sentences(entries)
        entering = None if prompts is None else self._entering(prompts, len(tokens) // len(entries))
        encoded = self.backbone.encode_text(tokens, states=states, first_block=self.first_block, prompts=entering)
        encoded = F.normalize(encoded.float(), dim=-1).reshape(len(entries), -1, encoded.shape[-1])  # [B, sentences, C]
        border = len(self.states[0]) * len(self.templates)
        sides = [encoded[:, :border].mean(dim=1), encoded[:, border:].mean(dim=1)]
        return F.normalize(torch.stack(sides, dim=1), dim=-1)

    def clear(self) -> None:
        """Drops the tokens and states that are kept for each category."""
        self._tokens.clear()

    def _entering(self, prompts: list[Tensor], sentences: int) -> Prompts | None:
        """The prompts as the text tower takes them, each repeated for the sentences of its category."""
        repeated = [p if p.ndim == 2 else p.repeat_interleave(sentences, dim=0) for p in prompts][self.first_block :]
        if not repeated:  # the published code never uses the first block's prompt, so that depth 1 leaves none
            return None
        return Prompts(repeated, first_block=self.first_block, place="start", insert=not self.overwrite)

    def _sentence_states(self, category: str) -> tuple[Tensor, Tensor]:
        """Token ids `[sentences, T]`, and the frozen states `[sentences, T, Dt]` where the first prompt enters."""
        if category not in self._tokens:
            normal, abnormal = self.sentences(category)
            tokens = self.backbone.tokenize(normal + abnormal)
            self._tokens[category] = (tokens, self.backbone.text_states(tokens, until=self.first_block))
        return self._tokens[category]
