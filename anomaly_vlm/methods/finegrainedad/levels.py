"""What FineGrainedAD learns: prompts on several levels that share their contexts (MLLP), and the query former."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from anomaly_vlm.backbone import ClipBackbone
from anomaly_vlm.backbone.frozen import sentence_end
from anomaly_vlm.methods.finegrainedad.captions import ATTRIBUTES
from anomaly_vlm.methods.promptad.prompt_learner import (
    CategoryPrompts,
    ContextSizes,
    FamilyFeatures,
    TextFamily,
    fill_family,
)
from anomaly_vlm.texts.learned_context import encode_sentences

GROUPS = ("relation", *ATTRIBUTES)


class LevelPrompts(CategoryPrompts):
    """Prompts of the image, of groups that are added to it, and of its components.

    Args:
        families: `image`, any of the groups `relation`, `color`, `texture`, `shape`, and the components by name.
        components: Names of the families of components: entities in order, the background last.
        sizes: See `CategoryPrompts`.
        generator: See `CategoryPrompts`.
        width: See `CategoryPrompts`.
        embed_dim: See `CategoryPrompts`.

    Attributes:
        weights: Shares `[2, 4]` of the groups, through a sigmoid, in the normal and in the abnormal sentences; drawn from
            N(0, 1). None where there are no groups, and as `normal_ctx`.
        rescale: Weights `[J, k, N]` of the references' patches for the components; None before the references are given.
    """

    weights: nn.Parameter | None
    rescale: Tensor | None

    def __init__(
        self,
        families: dict[str, TextFamily],
        components: Sequence[str],
        sizes: ContextSizes,
        generator: np.random.Generator,
        *,
        width: int,
        embed_dim: int,
    ) -> None:
        super().__init__(families, sizes, generator, width=width, features=len(components) + 1, embed_dim=embed_dim)
        self.components = list(components)
        self.groups = [name for name in GROUPS if name in families]
        draws = generator.standard_normal((2, len(GROUPS)), dtype=np.float32)
        self.weights = nn.Parameter(torch.from_numpy(draws)) if self.groups else None
        self.register_buffer("rescale", None, persistent=False)
        self._sums: dict[str, Tensor] = {}

    # ---- the weighted sum of whole sentences -------------------------------------------------------------------------

    def image_sentences(self, backbone: ClipBackbone) -> tuple[list[Tensor], list[Tensor]]:
        """Token ids and embeddings of the image's normal, handcrafted and learned sentences, the groups added to them.

        The embeddings are added position by position, those of start, end and padding as well, up to the end token of the
        captions, where the features are read.

        Returns:
            Ids `[R, T]` and embeddings `[R, T, Dt]` of each kind of sentences.
        """
        ids, embedded = fill_family(backbone, self, "image")
        if self.weights is None:
            return ids, embedded
        length = max(map(sentence_end, ids))
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
        """Ranks a group's handcrafted sentences, which pairs them with those of the image.

        Args:
            backbone: Frozen towers.
            group: Name of the group.
            count: Number of sentences of the image.

        Returns:
            Rows `[count]` by descending mean of their embeddings over all 77 tokens and all channels; they start again
            where the group has fewer.
        """
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

    def image_features(self, backbone: ClipBackbone) -> FamilyFeatures:
        """Features of the image's sentences."""
        return FamilyFeatures(*encode_sentences(backbone, *self.image_sentences(backbone)))

    def component_features(self, backbone: ClipBackbone) -> list[FamilyFeatures]:
        """Features of each component's sentences, all encoded in one call."""
        filled = [fill_family(backbone, self, name) for name in self.components]
        if not filled:
            return []
        features = encode_sentences(
            backbone, [i for ids, _ in filled for i in ids], [e for _, rows in filled for e in rows]
        )
        return [FamilyFeatures(*features[i : i + 3]) for i in range(0, len(features), 3)]


class QueryFormer(nn.Module):
    """Linear map `h = Wf [P1 V1 p ; P2 V2 q] + bf` of a normal text feature p and an abnormal one q.

    The published module is two cross-attentions of learned queries to one key each. Attention to a single key is 1 whatever
    the query, so that the queries and the weights of key and query have no effect, and this linear map is left. No loss
    reaches it, and the published files do not store it: it stays as it is drawn.

    Args:
        dim: Width C of the features.
        seed: Of its weights.
    """

    def __init__(self, dim: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.value1, self.out1, self.value2, self.out2 = (nn.Linear(dim, dim) for _ in range(4))
            self.fuse = nn.Linear(2 * dim, dim)
        self.requires_grad_(False)

    def forward(self, normal: Tensor, abnormal: Tensor) -> Tensor:
        """Maps features `[..., C]` of both kinds to `[..., C]`."""
        both = [self.out1(self.value1(normal)), self.out2(self.value2(abnormal))]
        joint: Tensor = self.fuse(torch.cat(both, dim=-1))
        return joint
