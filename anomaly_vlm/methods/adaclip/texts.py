"""AdaCLIP's sentences about a category, and the text features that the prompted text tower makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_vlm.backbone import ClipBackbone
from anomaly_vlm.backbone.sentence_tree import SentenceTree
from anomaly_vlm.methods.shared.sentences import fill_templates

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
        self._trees: dict[tuple[str, int], tuple[SentenceTree, Tensor]] = {}  # see `_tree`

    def sentences(self, category: str) -> tuple[list[str], list[str]]:
        """The normal and the abnormal sentences about a category; a `-` in its name becomes a blank."""
        word = category.replace("-", " ")
        normal, abnormal = (fill_templates(self.templates, states, word) for states in self.states)
        return normal, abnormal

    def encode(self, categories: Sequence[str], prompts: list[Tensor] | None) -> Tensor:
        """Encodes the sentences of all categories, those of one category together.

        Args:
            categories: B names; one comes twice where two images of a category have prompts of their own.
            prompts: A prompt for each depth, `[B, n, Dt]` or `[n, Dt]`; None for the plain text tower.

        Returns:
            Normal and abnormal text feature `[B, 2, C]` of each category: means over the sentences, unit norm.
        """
        # the published code never uses the first block's prompt, so that depth 1 leaves none
        entering = [] if prompts is None else prompts[self.first_block :]
        members: dict[str, list[int]] = {}
        for i, category in enumerate(categories):
            members.setdefault(category, []).append(i)
        features: dict[int, Tensor] = {}
        for category, rows in members.items():
            tree, states = self._tree(category, entering[0].shape[-2] if entering else 0)
            own = [prompt if prompt.ndim == 2 else prompt[rows] for prompt in entering]
            states = states.expand(len(rows), *states.shape)
            encoded = self.backbone.encode_tree(tree, states, first_block=self.first_block, prompts=own)
            unit = F.normalize(encoded.float(), dim=-1).unflatten(1, (len(self.templates), -1))
            border = len(self.states[0])
            sides = torch.stack([unit[:, :, :border].mean(dim=(1, 2)), unit[:, :, border:].mean(dim=(1, 2))], dim=1)
            features.update(zip(rows, F.normalize(sides, dim=-1), strict=True))
        return torch.stack([features[i] for i in range(len(categories))])

    def clear(self) -> None:
        """Drops the trees and states that are kept for each category."""
        self._trees.clear()

    def _tree(self, category: str, prompts: int) -> tuple[SentenceTree, Tensor]:
        """A category's sentences, those of a template in one group, and the frozen states `[S, N, Dt]` of the tree's nodes.

        Args:
            category: Its name.
            prompts: n, the number of tokens of a prompt that enters; 0 for none.
        """
        if (category, prompts) not in self._trees:
            normal, abnormal = self.sentences(category)
            count = len(self.templates)
            tokens = self.backbone.tokenize(
                [
                    sentence
                    for template in range(count)
                    for side in (normal, abnormal)
                    for sentence in side[template::count]
                ]
            )
            states = self.backbone.text_states(tokens, until=self.first_block).flatten(0, 1)
            together = len(tokens) // count
            tree = SentenceTree(tokens, together=together, prompts=prompts, inserted=not self.overwrite)
            self._trees[category, prompts] = (tree, states[tree.source])
        return self._trees[category, prompts]
