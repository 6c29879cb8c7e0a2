"""Sentences with learned contexts in them, and what is learned of one category: PromptAD's prompts, shared by FineGrainedAD.

A sentence is `[SOS] V text . [EOT]` with a learned normal context V; or `[SOS] V A text . [EOT]` with a learned abnormal
context A behind it, which turns a normal text into an abnormal sentence (PromptAD, section 3.2).
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
from anomaly_vlm.options import PositiveInt
from anomaly_vlm.texts import table_key
from anomaly_vlm.texts.learned_context import insert_context


@dataclass(frozen=True)
class TaskCounts:
    """A number for each task.

    Args:
        seg: For the prompts of the pixel map.
        cls: For those of the image score.
    """

    seg: PositiveInt = 1
    cls: PositiveInt = 3


@dataclass(frozen=True)
class ContextOptions:
    """Sizes of the learned contexts.

    Args:
        length: Tokens of a normal context V.
        abnormal_length: Tokens of an abnormal context A.
        count: Number of normal contexts: one number for both tasks, or one each.
        abnormal_count: Number of abnormal contexts.
    """

    length: PositiveInt = 4
    abnormal_length: PositiveInt = 1
    count: PositiveInt | TaskCounts = TaskCounts()
    abnormal_count: PositiveInt = 4

    def of_task(self, task: str) -> ContextSizes:
        """The sizes of `seg` or `cls`."""
        count = self.count if isinstance(self.count, int) else int(getattr(self.count, task))
        return ContextSizes(self.length, self.abnormal_length, count, self.abnormal_count)


@dataclass(frozen=True)
class ContextSizes:
    """Sizes of one task's contexts, see `ContextOptions`."""

    length: int
    abnormal_length: int
    count: int
    abnormal_count: int


def class_phrases(table: Mapping[str, Any], category: str) -> tuple[str, list[str]]:
    """Class word of a category, and its abnormal phrases: the generic ones, then those of the category.

    Args:
        table: PromptAD's table. A category that it lacks is its own word, and has the generic phrases.
        category: Name of the category.
    """
    key = table_key(category)
    word = table["class_names"].get(key, category)
    states = [*table["generic_states"], *table["class_states"].get(key, [])]
    return word, [state.format(word) for state in states]


class FamilyFeatures(NamedTuple):
    """Features of one family's sentences, not normalised; P normal and M abnormal contexts, S handcrafted texts.

    Attributes:
        normal: `[P, C]`.
        manual: `[S P, C]` of the handcrafted abnormal sentences.
        learned: `[M P, C]` of the learned abnormal ones.
    """

    normal: Tensor
    manual: Tensor
    learned: Tensor

    @property
    def abnormal(self) -> Tensor:
        """Features `[(S + M) P, C]` of all abnormal sentences."""
        return torch.cat([self.manual, self.learned])

    def pair(self) -> Tensor:
        """Prototypes `[2, C]` of the normal and of all abnormal sentences, unit norm."""
        return F.normalize(torch.stack([self.normal.mean(dim=0), self.abnormal.mean(dim=0)]), dim=-1)

    def candidates(self) -> Tensor:
        """Classes of the contrastive loss `[1 + R, C]`: the normal prototype, then every abnormal sentence, unit norm."""
        return torch.cat([self.pair()[:1], F.normalize(self.abnormal, dim=-1)])


class TextFamily(nn.Module):
    """Token ids of the normal and abnormal sentences of one thing, with placeholders for the contexts.

    Args:
        backbone: Its tokenizer cuts texts that are too long, and keeps the end token.
        normal: The normal text.
        abnormal: Handcrafted abnormal texts.
        sizes: P normal and M abnormal contexts.

    Attributes:
        normal: `[P, 77]`.
        manual: `[S P, 77]`; row = text * P + context.
        learned: `[M P, 77]`, the normal text behind `V A`. Row i holds the contexts `V[i % P]` and `A[i % M]`.
    """

    normal: Tensor
    manual: Tensor
    learned: Tensor

    def __init__(self, backbone: ClipBackbone, normal: str, abnormal: Sequence[str], sizes: ContextSizes) -> None:
        super().__init__()
        plain = ["N"] * sizes.length

        def ids(context: list[str], texts: Sequence[str], rows: int) -> Tensor:
            sentences = [f"{' '.join(context)} {text}." for text in texts]
            return backbone.tokenize(sentences, trim=False).repeat_interleave(rows, dim=0)

        self.register_buffer("normal", ids(plain, [normal], sizes.count), persistent=False)
        self.register_buffer("manual", ids(plain, abnormal, sizes.count), persistent=False)
        rows = sizes.count * sizes.abnormal_count
        learned = ids([*plain, *["A"] * sizes.abnormal_length], [normal], rows)
        self.register_buffer("learned", learned, persistent=False)


class CategoryPrompts(nn.Module):
    """What is learned of one category for one task, and the text features computed from it.

    Args:
        families: Its texts by name.
        sizes: Of the contexts.
        generator: Draws them from N(0, 0.02^2).
        width: Width Dt of the text tower.
        features: Number U of pairs of text features.
        embed_dim: Their width C.

    Attributes:
        normal_ctx: V `[P, length, Dt]`; None where a published file brought text features alone.
        abnormal_ctx: A `[M, abnormal_length, Dt]`, or None likewise.
        features: Unit text features (normal, abnormal) `[U, 2, C]`, which checkpoints hold.
        stale: Whether `features` is older than what is learned.
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
        self.normal_ctx = nn.Parameter(_normal(generator, sizes.count, sizes.length, width))
        self.abnormal_ctx = nn.Parameter(_normal(generator, sizes.abnormal_count, sizes.abnormal_length, width))
        self.register_buffer("features", torch.zeros(features, 2, embed_dim))
        self.stale = True

    @property
    def learns(self) -> bool:
        """Whether there are prompts behind the text features."""
        return self.normal_ctx is not None

    def drop_learned(self) -> None:
        """Removes the learned parameters: the features stay as they are given."""
        for name in [name for name, _ in self.named_parameters(recurse=False)]:
            setattr(self, name, None)
        self.stale = False

    def fill(
        self, backbone: ClipBackbone, ids: Tensor, *, abnormal: bool = False, rows: Tensor | None = None
    ) -> Tensor:
        """Token embeddings of sentences with the contexts in place of the placeholders.

        Args:
            backbone: Frozen towers.
            ids: Token ids `[R, T]` of a family's sentences.
            abnormal: Whether the sentences hold V and A, or V alone.
            rows: Numbers `[R]` of the sentences in their family, which say which contexts they hold; None: in order.

        Returns:
            `[R, T, Dt]`.
        """
        assert self.normal_ctx is not None and self.abnormal_ctx is not None
        rows = torch.arange(len(ids), device=ids.device) if rows is None else rows
        context = self.normal_ctx[rows % len(self.normal_ctx)]
        if abnormal:
            context = torch.cat([context, self.abnormal_ctx[rows % len(self.abnormal_ctx)]], dim=1)
        return insert_context(backbone.text.token_embedding(ids), context)


def _normal(generator: np.random.Generator, *shape: int, std: float = 0.02) -> Tensor:
    return torch.from_numpy(generator.standard_normal(shape, dtype=np.float32) * np.float32(std))


def fill_family(backbone: ClipBackbone, prompts: CategoryPrompts, name: str) -> tuple[list[Tensor], list[Tensor]]:
    """Ids `[R, T]` and embeddings `[R, T, Dt]` of a family's normal, handcrafted and learned abnormal sentences."""
    family: Any = prompts.families[name]
    ids = [family.normal, family.manual, family.learned]
    return ids, [prompts.fill(backbone, rows, abnormal=rows is family.learned) for rows in ids]
