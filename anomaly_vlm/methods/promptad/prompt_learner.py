"""Sentences with learned contexts in them, and what is learned of one category: PromptAD's prompts, shared by FineGrainedAD.

A sentence is `[SOS] V text . [EOT]`, or `[SOS] V A text . [EOT]` with a learned abnormal context `A` behind the normal one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_vlm.backbone import ClipBackbone
from anomaly_vlm.errors import UserError
from anomaly_vlm.texts import table_key


@dataclass(frozen=True)
class ContextSizes:
    """`n_ctx` tokens of each of `n_pro` normal contexts, `n_ctx_abnormal` of each of `n_pro_abnormal` abnormal ones."""

    n_ctx: int
    n_ctx_abnormal: int
    n_pro: int
    n_pro_abnormal: int

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise UserError(f"method.{name} is {value}: give at least 1")


def class_phrases(table: Mapping[str, Any], category: str) -> tuple[str, list[str]]:
    """Word of a category in PromptAD's table, and its abnormal phrases: the generic ones, then its own. A category that the
    table lacks is its own word and has the generic ones."""
    key = table_key(category)
    word = table["class_names"].get(key, category)
    states = [*table["generic_states"], *table["class_states"].get(key, [])]
    return word, [state.format(word) for state in states]


class RawTexts(NamedTuple):
    """Raw text features of one text family: `normal` [P, C], `manual` [S P, C] (handcrafted), `learned` [M P, C]."""

    normal: Tensor
    manual: Tensor
    learned: Tensor

    @property
    def abnormal(self) -> Tensor:
        return torch.cat([self.manual, self.learned])

    def pair(self) -> Tensor:
        """Prototypes [2, C] of the normal and of all abnormal sentences, unit norm."""
        return F.normalize(torch.stack([self.normal.mean(dim=0), self.abnormal.mean(dim=0)]), dim=-1)

    def candidates(self) -> Tensor:
        """What a normal feature must be told from: [1 + R, C], the normal prototype, then every abnormal sentence."""
        return torch.cat([self.pair()[:1], F.normalize(self.abnormal, dim=-1)])


class TextFamily(nn.Module):
    """Token ids of what is said of one thing, with placeholders for the contexts.

    Args:
        backbone: its tokenizer cuts texts that are too long, end token last.
        normal: the normal text. abnormal: handcrafted abnormal texts.
        sizes: P normal and M abnormal contexts.

    Attributes:
        normal: [P, 77]. manual: [S P, 77], row = text * P + context. learned: [M P, 77], the normal text behind `V A`.
            Row i holds the contexts `V[i % P]` and `A[i % M]`.
    """

    normal: Tensor
    manual: Tensor
    learned: Tensor

    def __init__(self, backbone: ClipBackbone, normal: str, abnormal: Sequence[str], sizes: ContextSizes) -> None:
        super().__init__()
        plain = ["N"] * sizes.n_ctx

        def ids(context: list[str], texts: Sequence[str], rows: int) -> Tensor:
            sentences = [f"{' '.join(context)} {text}." for text in texts]
            return backbone.tokenize(sentences, trim=False).repeat_interleave(rows, dim=0)

        self.register_buffer("normal", ids(plain, [normal], sizes.n_pro), persistent=False)
        self.register_buffer("manual", ids(plain, abnormal, sizes.n_pro), persistent=False)
        rows = sizes.n_pro * sizes.n_pro_abnormal
        self.register_buffer("learned", ids([*plain, *["A"] * sizes.n_ctx_abnormal], [normal], rows), persistent=False)


class PromptLearner(nn.Module):
    """What is learned of one category for one task, and the text features that came of it.

    Args:
        families: its texts, by name.
        sizes: of the contexts, drawn from N(0, 0.02^2) by `generator`.
        width: of the text tower. features: how many pairs of text features there are. embed_dim: their width.

    Attributes:
        normal_ctx: V [P, n_ctx, Dt], abnormal_ctx: A [M, n_ctx_abnormal, Dt]; None where a published file brought text
            features alone.
        features: [U, 2, C] unit (normal, abnormal) text features, kept in checkpoints.
        stale: `features` is older than what is learned.
    """

    normal_ctx: nn.Parameter | None
    abnormal_ctx: nn.Parameter | None
    features: Tensor

    def __init__(
        self,
        families: dict[str, TextFamily],
        sizes: ContextSizes,
        generator: np.random.Generator,
        *,
        width: int,
        features: int,
        embed_dim: int,
    ) -> None:
        super().__init__()
        self.families = nn.ModuleDict(families)
        self.normal_ctx = nn.Parameter(_normal(generator, sizes.n_pro, sizes.n_ctx, width))
        self.abnormal_ctx = nn.Parameter(_normal(generator, sizes.n_pro_abnormal, sizes.n_ctx_abnormal, width))
        self.register_buffer("features", torch.zeros(features, 2, embed_dim))
        self.stale = True

    @property
    def learns(self) -> bool:
        return self.normal_ctx is not None

    def drop_learned(self) -> None:
        """Leaves the features as they are given, with nothing learned behind them."""
        for name in [name for name, _ in self.named_parameters(recurse=False)]:
            setattr(self, name, None)
        self.stale = False

    def fill(
        self, backbone: ClipBackbone, ids: Tensor, *, abnormal: bool = False, rows: Tensor | None = None
    ) -> Tensor:
        """Token embeddings [R, T, Dt] of sentences [R, T] with the contexts in their places.

        Args:
            ids: of a family. abnormal: V and A instead of V alone. rows: [R] the sentences' places in their family, which
                say which contexts they hold; None: in order.
        """
        assert self.normal_ctx is not None and self.abnormal_ctx is not None
        rows = torch.arange(len(ids), device=ids.device) if rows is None else rows
        context = self.normal_ctx[rows % len(self.normal_ctx)]
        if abnormal:
            context = torch.cat([context, self.abnormal_ctx[rows % len(self.abnormal_ctx)]], dim=1)
        embedded = backbone.text.token_embedding(ids)
        return torch.cat([embedded[:, :1], context, embedded[:, 1 + context.shape[1] :]], dim=1)


def _normal(generator: np.random.Generator, *shape: int, std: float = 0.02) -> Tensor:
    return torch.from_numpy(generator.standard_normal(shape, dtype=np.float32) * np.float32(std))


def sentence_length(ids: Tensor) -> int:
    """Up to where the longest of the sentences [R, T] is read: what stands behind its end token changes nothing."""
    return int(ids.argmax(dim=-1).max()) + 1


def encode_filled(backbone: ClipBackbone, ids: Sequence[Tensor], embedded: Sequence[Tensor]) -> list[Tensor]:
    """Text features [R, C], not normalised, of groups of sentences [R, T] with embeddings [R, T, Dt], in one call."""
    all_ids = torch.cat(list(ids))
    length = sentence_length(all_ids)
    states = torch.cat([group[:, :length] for group in embedded]) + backbone.text.positional_embedding[:length]
    encoded = backbone.encode_text(all_ids[:, :length], states=states).float()
    return list(encoded.split([len(group) for group in ids]))


def fill_family(backbone: ClipBackbone, learner: PromptLearner, name: str) -> tuple[list[Tensor], list[Tensor]]:
    """Ids and embeddings of a family's normal, handcrafted abnormal and learned abnormal sentences."""
    family: Any = learner.families[name]
    ids = [family.normal, family.manual, family.learned]
    return ids, [learner.fill(backbone, rows, abnormal=rows is family.learned) for rows in ids]
