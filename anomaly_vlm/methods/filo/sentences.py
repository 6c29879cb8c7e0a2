"""FiLo's sentences: learned contexts that follow the image, in front of states, descriptions and positions (FG-Des)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_vlm.backbone import ClipBackbone
from anomaly_vlm.backbone.sentence_tree import SentenceTree
from anomaly_vlm.methods.filo.texts import DefectTexts
from anomaly_vlm.texts.learned_context import insert_context


class MetaNet(nn.Module):
    """Maps an image's global feature to a shift of its context tokens (CoCoOp, Zhou et al., CVPR 2022).

    Args:
        dim: Width C of the global feature.
        width: Width Dt of the text tower.
        reduction: The hidden layer has `dim / reduction` units.
    """

    def __init__(self, dim: int, width: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(1, dim // reduction)
        self.linear1, self.linear2 = nn.Linear(dim, hidden), nn.Linear(hidden, width)

    def forward(self, feature: Tensor) -> Tensor:
        """Maps features `[B, C]` to shifts `[B, Dt]`."""
        shift: Tensor = self.linear2(F.relu(self.linear1(feature)))
        return shift


class FiloPromptLearner(nn.Module):
    """Learned context shared by all categories and shifted by the image.

    Args:
        length: Number n of context tokens.
        dim: Width C of the global feature.
        width: Width Dt of the text tower.

    Attributes:
        ctx: The context `[n, Dt]`.
        meta_net: Its shift by the image.
    """

    def __init__(self, length: int, dim: int, width: int) -> None:
        super().__init__()
        self.ctx = nn.Parameter(torch.randn(length, width) * 0.02)
        self.meta_net = MetaNet(dim, width)

    def forward(self, feature: Tensor) -> Tensor:
        """Maps global features `[B, C]` to the contexts `[B, n, Dt]` of the images."""
        shift: Tensor = self.meta_net(feature)
        return self.ctx + shift[:, None]


class SentenceFeatures(NamedTuple):
    """Features of one image's sentences, not normalised.

    Attributes:
        normal: `[states, C]`.
        abnormal: `[states, positions, C]`.
    """

    normal: Tensor
    abnormal: Tensor


class Sentences:
    """The sentences of each category as trees of shared beginnings, built once.

    Args:
        texts: States and positions.
        length: Number of context tokens in front.
        positioned: Whether abnormal sentences end with a position.
    """

    def __init__(self, texts: DefectTexts, length: int, *, positioned: bool = True) -> None:
        self.texts, self.length, self.positioned = texts, length, positioned
        self._trees: dict[tuple[object, ...], SentenceTree] = {}

    def lines(self, category: str, position: int | None = None) -> tuple[list[str], list[str]]:
        """Normal and abnormal sentences of a category without their context.

        Args:
            category: Name of the category.
            position: One of the nine positions, row by row from 0; None for all nine, which are the inner loop.
        """
        normal, abnormal = self.texts.states(category)
        phrases: Sequence[str | None] = [None]
        if self.positioned:
            phrases = self.texts.words["positions"] if position is None else [self.texts.words["positions"][position]]
        sentence = self.texts.sentence
        return (
            [sentence(state, None) for state in normal],
            [sentence(state, phrase) for state in abnormal for phrase in phrases],
        )

    def tree(self, backbone: ClipBackbone, category: str, kind: str, position: int | None = None) -> SentenceTree:
        """The tree of a category's `normal` or `abnormal` sentences, context placeholders included."""
        key = (category, kind, position if kind == "abnormal" else None, backbone.text.token_embedding.weight.device)
        if key not in self._trees:
            placeholders = " ".join(["X"] * self.length)
            lines = self.lines(category, position)[kind == "abnormal"]
            ids = backbone.tokenize([f"{placeholders} {line}" for line in lines])
            nine = kind == "abnormal" and self.positioned and position is None
            self._trees[key] = SentenceTree(ids, together=len(self.texts.words["positions"]) if nine else None)
        return self._trees[key]

    def encode(
        self,
        backbone: ClipBackbone,
        categories: Sequence[str],
        positions: Sequence[int | None],
        normal: Tensor,
        abnormal: Tensor,
    ) -> list[SentenceFeatures]:
        """Encodes the sentences of each image. Images with the same sentences go through the tower together.

        Args:
            backbone: Frozen towers.
            categories: B names.
            positions: For each image the position that its abnormal sentences name; None for all nine.
            normal: Contexts `[B, n, Dt]` of the normal sentences.
            abnormal: Contexts `[B, n, Dt]` of the abnormal ones.
        """
        rows: dict[tuple[str, int | None], list[int]] = {}
        for i, key in enumerate(zip(categories, positions, strict=True)):
            rows.setdefault(key, []).append(i)
        features: dict[int, SentenceFeatures] = {}
        for (category, position), members in rows.items():
            encoded = []
            for kind, context in (("normal", normal), ("abnormal", abnormal)):
                tree = self.tree(backbone, category, kind, position)
                states = embed(backbone, tree, context[members]) + backbone.text.positional_embedding[tree.depth]
                encoded.append(backbone.encode_tree(tree, states).float())
            count = len(self.texts.states(category)[1])
            for row, i in enumerate(members):
                features[i] = SentenceFeatures(encoded[0][row], torch.unflatten(encoded[1][row], 0, (count, -1)))
        return [features[i] for i in range(len(categories))]


def embed(backbone: ClipBackbone, tree: SentenceTree, context: Tensor) -> Tensor:
    """Embeddings of a tree's nodes with the images' contexts in place of the placeholders.

    Args:
        backbone: Frozen towers.
        tree: S sequences of N nodes.
        context: `[B, n, Dt]`.

    Returns:
        `[B, S, N, Dt]`, without positions.
    """
    nodes = backbone.text.token_embedding(tree.ids).detach().expand(len(context), -1, -1, -1)
    return insert_context(nodes, context[:, None].expand(-1, nodes.shape[1], -1, -1))


def mean_pairs(features: Sequence[SentenceFeatures], positions: Sequence[int | None], *, divided_twice: bool) -> Tensor:
    """Normal and abnormal text feature of each image: means of unit features over states and positions.

    Args:
        features: Of the B images.
        positions: For each image the position whose sentences count; None for all that there are.
        divided_twice: Whether the pair is also divided by its common norm, sqrt(2), as the published code does.

    Returns:
        `[B, 2, C]`, unit norm unless `divided_twice`.
    """
    pairs = []
    for one, position in zip(features, positions, strict=True):
        abnormal = one.abnormal if position is None else one.abnormal[:, position : position + 1]
        means = [F.normalize(part, dim=-1).mean(dim=0) for part in (one.normal, abnormal.flatten(0, 1))]
        pairs.append(F.normalize(torch.stack(means), dim=-1))
    stacked = torch.stack(pairs)
    return stacked / 2**0.5 if divided_twice else stacked
