"""What AnomalyCLIP and FAPrompt share: a frozen image tower with a V-V path, and learned sentences with deep tokens.

AnomalyCLIP (arXiv 2310.18961), sections 3.2 and 3.3; both published codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_vlm.backbone import ClipBackbone, Prompts
from anomaly_vlm.data.types import Batch
from anomaly_vlm.errors import UserError
from anomaly_vlm.methods.base.frozen_tokens import FrozenTokens


@dataclass
class FrozenFeatures:
    """What the frozen image tower makes of a batch: constant, whatever is learned.

    Attributes:
        cls: [B, C] global feature of the ordinary path, unit norm. patches: [layers, B, N, C] of the V-V path, unit norm.
        grid: rows and columns of patches.
    """

    cls: Tensor
    patches: Tensor
    grid: tuple[int, int]


class DualPathMethod(FrozenTokens):
    """A method whose image tower is frozen and whose last blocks run a V-V path beside the ordinary one.

    Args:
        backbone: frozen towers (papers: OpenAI ViT-L/14@336 at 518 px, bilinear position grid).
        layers: 1-based vision blocks whose patches are compared with the texts; None: the last one (24 in the papers).
        dual_blocks: last blocks that run both paths; None: 19 of 24, in proportion.
        cls_ln_post: the global feature passes `ln_post` before the projection. The published codes leave it out, and the
            released weights were trained so.
        deep_depth, deep_length: deep text tokens enter at text blocks 1 .. depth - 1 (papers: 9 of 12; None: in proportion)
            and overwrite that many positions behind the start token (4).
        temperature: of the similarities (0.07; CLIP's own scale is not read).
        sigma: of the Gaussian on the map, in pixels.
        base: see `AnomalyMethod`.
    """

    def __init__(
        self,
        backbone: ClipBackbone,
        *,
        layers: Sequence[int] | None = None,
        dual_blocks: int | None = None,
        cls_ln_post: bool = False,
        deep_depth: int | None = None,
        deep_length: int = 4,
        temperature: float = 0.07,
        sigma: float = 4.0,
        **base: Any,
    ) -> None:
        super().__init__(backbone, **base)
        self.layers = backbone.checked_layers(layers or [backbone.num_layers])
        dual = round(backbone.num_layers * 19 / 24) if dual_blocks is None else dual_blocks
        if not 0 <= dual <= backbone.num_layers:
            raise UserError(f"method.dual_blocks is {dual}: {backbone.name} has {backbone.num_layers} vision blocks")
        depth = max(1, round(backbone.num_text_layers * 9 / 12)) if deep_depth is None else deep_depth
        if not 1 <= depth <= backbone.num_text_layers or deep_length < 1:
            raise UserError(
                f"method.deep_depth {depth}, deep_length {deep_length}: give a depth of 1 to {backbone.num_text_layers}"
                f" (the text blocks of {backbone.name}) and a length of at least 1"
            )
        self.vv_from, self.cls_ln_post = backbone.num_layers - dual, cls_ln_post
        self.temperature, self.sigma = temperature, sigma
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.deep = nn.ParameterList([self.new_tokens(deep_length) for _ in range(depth - 1)])

    def new_tokens(self, *shape: int) -> Tensor:
        """Learned tokens [*shape, Dt] as the published codes start them."""
        return torch.randn(*shape, self.backbone.text_width) * 0.02

    # ---- image tower: frozen -----------------------------------------------------------------------------------------

    def frozen_features(self, batch: Batch) -> FrozenFeatures:
        """Global feature of the ordinary path, patches of the V-V path: from the cache, or computed."""
        tokens = self.frozen_tokens(batch)
        rows, columns = (side // self.backbone.patch_size for side in batch.size)
        return FrozenFeatures(tokens["cls"].float(), tokens["patches"].float().transpose(0, 1), (rows, columns))

    def cache_key(self) -> dict[str, Any]:
        return {"layers": list(self.layers), "vv_from": self.vv_from, "cls_ln_post": self.cls_ln_post}

    def encode_frozen(self, images: Tensor) -> dict[str, Tensor]:
        """`cls` [M, C] and `patches` [M, layers, N, C], projected, unit norm, in the run's precision."""
        tokens = self.backbone.encode_image(images, layers=self.layers, vv_from=self.vv_from)
        cls = self.backbone.project(tokens.cls_token, ln_post=self.cls_ln_post)
        patches = torch.stack([self.backbone.project(layer) for layer in tokens.patches], dim=1)
        unit = {"cls": F.normalize(cls.float(), dim=-1), "patches": F.normalize(patches.float(), dim=-1)}
        return {name: value.to(cls.dtype) for name, value in unit.items()}

    # ---- text tower: learned tokens ----------------------------------------------------------------------------------

    def sentence(self, tokens: int, words: str) -> tuple[Tensor, Tensor]:
        """Ids [T] and embeddings [T, Dt] of a sentence whose first `tokens` words are placeholders for learned tokens."""
        ids = self.backbone.tokenize([" ".join(["X"] * tokens + [f"{words}."])])[0]
        return ids, self.backbone.text.token_embedding(ids).detach()

    def fill(self, embedded: Tensor, learned: Tensor) -> Tensor:
        """Sentences [K, T, Dt] from one sentence's embeddings [T, Dt] with learned tokens [K, n, Dt] behind its start."""
        count, length = learned.shape[:2]
        rows = embedded.expand(count, -1, -1)
        return torch.cat([rows[:, :1], learned, rows[:, 1 + length :]], dim=1)

    def encode_sentences(self, ids: Tensor, embedded: Tensor) -> Tensor:
        """Text features [K, C], not normalised, of sentences [K, T] whose embeddings [K, T, Dt] hold learned tokens; the
        deep tokens overwrite the positions behind the start token from block 1 on."""
        states = embedded + self.backbone.text.positional_embedding[: ids.shape[1]]
        deep = Prompts(list(self.deep), first_block=1, place="start", insert=False) if len(self.deep) else None
        return self.backbone.encode_text(ids, states=states, prompts=deep).float()


def pad_sentences(sentences: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Ids [k, T] and embeddings [k, T, Dt] of groups of sentences of different length -> one batch, padded at the end.

    Exact under the causal mask: nothing behind the end token is read.
    """
    longest = max(ids.shape[1] for ids, _ in sentences)
    ids = torch.cat([F.pad(i, (0, longest - i.shape[1])) for i, _ in sentences])
    embedded = torch.cat([F.pad(e, (0, 0, 0, longest - e.shape[1])) for _, e in sentences])
    return ids, embedded
