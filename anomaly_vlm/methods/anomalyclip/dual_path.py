"""The frozen image tower with a V-V path and the sentences with learned tokens, on which AnomalyCLIP and FAPrompt stand.

AnomalyCLIP (arXiv 2310.18961), sections 3.2 and 3.3, and both published codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_vlm.backbone import ClipBackbone, Prompts
from anomaly_vlm.data.types import Batch
from anomaly_vlm.errors import UserError
from anomaly_vlm.methods.base.frozen_tokens import FrozenTokens
from anomaly_vlm.methods.shared.layers import Layers, tapped_layers
from anomaly_vlm.options import AtLeast, PositiveFloat, PositiveInt


@dataclass
class DualPathFeatures:
    """Features of a batch from the frozen image tower.

    Attributes:
        cls: Global feature `[B, C]` of the ordinary path, unit norm.
        patches: Patches `[layers, B, N, C]` of the V-V path, unit norm.
        grid: Rows and columns of patches.
    """

    cls: Tensor
    patches: Tensor
    grid: tuple[int, int]


class DualPathMethod(FrozenTokens):
    """A method whose image tower is frozen, and whose last blocks run a V-V path beside the ordinary one.

    On the V-V path, attention compares values with values (section 3.3, "DPAM"), which keeps patches local.

    Args:
        backbone: Frozen towers. The papers have OpenAI's ViT-L/14@336 at 518 px with a bilinear position grid.
        layers: 1-based vision blocks whose patches are compared with the texts, see `tapped_layers`.
        dual_blocks: Number of last blocks that run both paths. None: 19 of 24, in proportion to the depth.
        cls_ln_post: Whether the global feature passes `ln_post` before the projection. The published codes leave it out, and
            the released weights were trained without it.
        deep_depth: Deep tokens enter at the 1-based text blocks 2 to `deep_depth`, so that 1 means none. None: 9 of 12
            blocks, in proportion to the depth.
        deep_length: Number of deep tokens at a block; they overwrite the positions behind the start token.
        temperature: Divides the similarities. CLIP's own scale is not used.
        sigma: Standard deviation in pixels of the Gaussian that smooths the map; 0 for none.
        base: See `AnomalyMethod`.

    Raises:
        UserError: A tower has fewer blocks than an option asks for.
    """

    def __init__(
        self,
        backbone: ClipBackbone,
        *,
        layers: Layers = "last",
        dual_blocks: Annotated[int, AtLeast(0)] | None = None,
        cls_ln_post: bool = False,
        deep_depth: PositiveInt | None = None,
        deep_length: PositiveInt = 4,
        temperature: PositiveFloat = 0.07,
        sigma: Annotated[float, AtLeast(0)] = 4.0,
        **base: Any,
    ) -> None:
        super().__init__(backbone, **base)
        self.layers = tapped_layers(backbone, layers)
        dual = round(backbone.num_layers * 19 / 24) if dual_blocks is None else dual_blocks
        if dual > backbone.num_layers:
            raise UserError(
                f"method.dual_blocks is {dual}: give 0 to {backbone.num_layers}, the vision blocks of {backbone.name}"
            )
        depth = max(1, round(backbone.num_text_layers * 9 / 12)) if deep_depth is None else deep_depth
        if depth > backbone.num_text_layers:
            raise UserError(
                f"method.deep_depth is {depth}: give 1 to {backbone.num_text_layers}, the text blocks of {backbone.name}"
            )
        self.vv_from, self.cls_ln_post = backbone.num_layers - dual, cls_ln_post
        self.temperature, self.sigma = temperature, sigma
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.deep = nn.ParameterList([self.new_tokens(deep_length) for _ in range(depth - 1)])

    def new_tokens(self, *shape: int) -> Tensor:
        """Draws tokens `[*shape, Dt]` as the published codes start learned ones."""
        return torch.randn(*shape, self.backbone.text_width) * 0.02

    # ---- image tower: frozen -----------------------------------------------------------------------------------------

    def frozen_features(self, batch: Batch) -> DualPathFeatures:
        """The features of a batch, from the token cache where it has them."""
        tokens = self.frozen_tokens(batch)
        grid = self.backbone.grid_of(batch.size)
        return DualPathFeatures(tokens["cls"].float(), tokens["patches"].float().transpose(0, 1), grid)

    def cache_key(self) -> dict[str, Any]:
        return {"layers": list(self.layers), "vv_from": self.vv_from, "cls_ln_post": self.cls_ln_post}

    def encode_frozen(self, images: Tensor) -> dict[str, Tensor]:
        """Encodes images `[M, 3, H, W]`.

        Returns:
            `cls` `[M, C]` and `patches` `[M, layers, N, C]`, projected, unit norm, in the precision of the run.
        """
        tokens = self.backbone.encode_image(images, layers=self.layers, vv_from=self.vv_from)
        cls = self.backbone.project(tokens.cls_token, ln_post=self.cls_ln_post)
        patches = torch.stack([self.backbone.project(layer) for layer in tokens.patches], dim=1)
        unit = {"cls": F.normalize(cls.float(), dim=-1), "patches": F.normalize(patches.float(), dim=-1)}
        return {name: value.to(cls.dtype) for name, value in unit.items()}

    # ---- text tower: learned tokens ----------------------------------------------------------------------------------

    def sentence(self, tokens: int, words: str) -> tuple[Tensor, Tensor]:
        """Tokenizes a sentence that begins with placeholders for learned tokens.

        Args:
            tokens: Number of placeholders.
            words: What follows them; a full stop is added.

        Returns:
            Token ids `[T]` and embeddings `[T, Dt]`.
        """
        ids = self.backbone.tokenize([" ".join(["X"] * tokens + [f"{words}."])])[0]
        return ids, self.backbone.text.token_embedding(ids).detach()

    def encode_sentences(self, ids: Tensor, embedded: Tensor) -> Tensor:
        """Encodes sentences with the deep tokens, which overwrite the positions behind the start token.

        Args:
            ids: Token ids `[K, T]`.
            embedded: Embeddings `[K, T, Dt]`, learned tokens included.

        Returns:
            Text features `[K, C]`, not normalised.
        """
        states = embedded + self.backbone.text.positional_embedding[: ids.shape[1]]
        deep = Prompts(list(self.deep), first_block=1, place="start", insert=False) if len(self.deep) else None
        return self.backbone.encode_text(ids, states=states, prompts=deep).float()
