"""FineGrainedAD's learned parts: prompts on several levels that share their contexts (MLLP), and the query former."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from anomaly_vlm.backbone import ClipBackbone
from anomaly_vlm.methods.finegrainedad.captions import ATTRIBUTES
from anomaly_vlm.methods.promptad.prompt_learner import (
    ContextSizes,
    PromptLearner,
    RawTexts,
    TextFamily,
    encode_filled,
    fill_family,
    sentence_length,
)

GROUPS = ("relation", *ATTRIBUTES)


class LevelLearner(PromptLearner):
    """Prompts of the image, of groups that are added to it, and of its parts.

    Args:
        families: `image`, any of the groups `relation`, `color`, `texture`, `shape`, and the `parts` by name.
        parts: names of the families with prompts of their own: entities in order, the background last.
        options: see `PromptLearner`.

    Attributes:
        weights: [2, 4] how much of each group is added, through a sigmoid: for the normal and for the abnormal sentences;
            drawn from N(0, 1). None as `normal_ctx`.
        rescale: [J, k, N] weights of the references' patches for the parts, once known.
    """

    weights: nn.Parameter | None
    rescale: Tensor | None

    def __init__(
        self,
        families: dict[str, TextFamily],
        parts: Sequence[str],
        sizes: ContextSizes,
        generator: np.random.Generator,
        *,
        width: int,
        embed_dim: int,
    ) -> None:
        super().__init__(families, sizes, generator, width=width, features=len(parts) + 1, embed_dim=embed_dim)
        self.parts = list(parts)
        self.groups = [name for name in GROUPS if name in families]
        draws = generator.standard_normal((2, len(GROUPS)), dtype=np.float32)
        self.weights = nn.Parameter(torch.from_numpy(draws)) if self.groups else None
        self.register_buffer("rescale", None, persistent=False)
        self._sums: dict[str, Tensor] = {}

    # ---- the weighted sum of whole sentences -------------------------------------------------------------------------

    def image_sentences(self, backbone: ClipBackbone) -> tuple[list[Tensor], list[Tensor]]:
        """Ids and input embeddings of the image's normal, handcrafted and learned sentences, the groups added to them.

        Position by position, start, end and padding as well, up to the captions' end token, which is where they are read.
        """
        ids, embedded = fill_family(backbone, self, "image")
        if self.weights is None:
            return ids, embedded
        length = max(map(sentence_length, ids))
        normal, manual, learned = (rows[:, :length] for rows in embedded)
        share = self.weights.sigmoid()
        for i, name in [(GROUPS.index(name), name) for name in self.groups]:
            family: Any = self.families[name]
            normal = normal + share[0, i] * self.fill(backbone, family.normal[:, :length])
            best = self.ranked(backbone, name, len(manual))
            added = self.fill(backbone, family.manual[best, :length], rows=best)
            manual = manual + share[1, i] * added
            learned = learned + share[1, i] * self.fill(backbone, family.learned[:, :length], abnormal=True)
        return [rows[:, :length] for rows in ids], [normal, manual, learned]

    @torch.no_grad()
    def ranked(self, backbone: ClipBackbone, group: str, count: int) -> Tensor:
        """Rows [count] of a group's handcrafted sentences by descending mean of their embeddings over all 77 tokens and all
        channels, which pairs them with the image's sentences; from the start again where the group has fewer."""
        assert self.normal_ctx is not None
        family: Any = self.families[group]
        if group not in self._sums:  # of everything but the contexts, which alone change
            fixed = backbone.text.token_embedding(family.manual)
            fixed[:, 1 : 1 + self.normal_ctx.shape[1]] = 0
            self._sums[group] = fixed.double().sum(dim=(1, 2))
        sums = self._sums[group].to(family.manual.device)
        contexts = self.normal_ctx.double().sum(dim=(1, 2))
        total = sums + contexts[torch.arange(len(sums), device=sums.device) % len(contexts)]
        order = total.argsort(descending=True, stable=True)
        return order[torch.arange(count, device=order.device) % len(order)]

    # ---- features ----------------------------------------------------------------------------------------------------

    def raw_image(self, backbone: ClipBackbone) -> RawTexts:
        """Features of the image's sentences."""
        return RawTexts(*encode_filled(backbone, *self.image_sentences(backbone)))

    def raw_parts(self, backbone: ClipBackbone) -> list[RawTexts]:
        """Features of each part's sentences, all encoded in one call."""
        filled = [fill_family(backbone, self, name) for name in self.parts]
        if not filled:
            return []
        features = encode_filled(
            backbone, [i for ids, _ in filled for i in ids], [e for _, rows in filled for e in rows]
        )
        return [RawTexts(*features[i : i + 3]) for i in range(0, len(features), 3)]


class QueryFormer(nn.Module):
    """`h = Wf [P1 V1 p ; P2 V2 q] + bf` of a normal and an abnormal text feature.

    The published module is two cross-attentions of learned queries to one key each. Attention to a single key is 1 whatever
    the query, so that queries, key and query weights have no effect and this linear map is left. No loss reaches it and the
    published files do not store it: it stays as it is drawn.

    Args:
        dim: C. seed: of its weights.
    """

    def __init__(self, dim: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.value1, self.out1, self.value2, self.out2 = (nn.Linear(dim, dim) for _ in range(4))
            self.fuse = nn.Linear(2 * dim, dim)
        self.requires_grad_(False)

    def forward(self, normal: Tensor, abnormal: Tensor) -> Tensor:
        """[..., C] twice -> [..., C]."""
        both = [self.out1(self.value1(normal)), self.out2(self.value2(abnormal))]
        return self.fuse(torch.cat(both, dim=-1))
