"""Adapted DINOv2 and SAM: one linear segmentation head a layer on a frozen vision tower, without any text.

Two baselines of the AdaCLIP paper (Cao et al., ECCV 2024, arXiv 2407.15795; `DINOv2` and `SAM` in its tables): does a strong
frozen vision tower with a little supervision do as well as a vision-language model? No code was released for them. The paper
fixes the towers, the layers, and one linear projection a layer trained on AdaCLIP's auxiliary data; everything else is this
project's (`experiments/linear_heads`). On a CLIP's image tower the same heads show what its texts add.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_vlm.backbone import ClipBackbone, ViTBackbone
from anomaly_vlm.data.types import Batch
from anomaly_vlm.errors import UserError, unknown_choice
from anomaly_vlm.losses import PROBABILITY
from anomaly_vlm.losses.maps import map_losses, training_mask
from anomaly_vlm.methods.base.frozen_tokens import FrozenTokens
from anomaly_vlm.methods.base.prediction import Prediction
from anomaly_vlm.methods.shared.maps import gaussian_smooth, to_grid, upsample


class LinearHeads(FrozenTokens):
    """Patches of each layer, normalised, through a linear layer to (normal, abnormal); the layers' maps averaged.

    Learned: the heads (3,080 numbers on DINOv2 ViT-S/14, 8,200 on SAM ViT-L). Frozen: the tower.

    Args:
        backbone: DINOv2 ViT-S/14 or SAM's ViT-L encoder (paper), or any other ViT, a CLIP's too.
        layers: 1-based blocks whose raw outputs are read; None: the backbone's (quarters of its depth, as in the paper).
        head: `linear2`: two logits a patch; `prototypes`: a projection to `embed_dim` channels, compared with two learned
            vectors by cosine / `temperature`, the text-free double of a vision-language head.
        embed_dim, temperature: of `prototypes` (768; 0.07).
        sigma: of the Gaussian on the map, in pixels (4); 0 for none.
        image_score: of the map: its maximum (`max`) or the mean of its largest hundredth (`mean_top1pct`).
        base: see `AnomalyMethod`.

    Raises:
        UserError: an option out of its range.
    """

    backbone_types = (ViTBackbone, ClipBackbone)
    loss_terms = {"focal": PROBABILITY, "dice": frozenset({"dice"})}  # noqa: RUF012 (read only)

    def __init__(
        self,
        backbone: Any,
        *,
        layers: Sequence[int] | None = None,
        head: Literal["linear2", "prototypes"] = "linear2",
        embed_dim: int = 768,
        temperature: float = 0.07,
        sigma: float = 4.0,
        image_score: Literal["max", "mean_top1pct"] = "max",
        **base: Any,
    ) -> None:
        super().__init__(backbone, **base)
        for name, value, allowed in (
            ("head", head, ("linear2", "prototypes")),
            ("image_score", image_score, ("max", "mean_top1pct")),
        ):
            if value not in allowed:
                raise unknown_choice(f"method.{name}", str(value), allowed)
        if embed_dim < 1 or temperature <= 0:
            raise UserError(f"method.embed_dim {embed_dim}, temperature {temperature}: give numbers above 0")
        self.layers = backbone.checked_layers(layers or backbone.layers)
        self.temperature, self.sigma, self.image_score = temperature, sigma, image_score
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            outputs = 2 if head == "linear2" else embed_dim
            self.heads = nn.ModuleList([nn.Linear(backbone.width, outputs) for _ in self.layers])
            self.prototypes = nn.Parameter(torch.randn(2, embed_dim)) if head == "prototypes" else None

    # ---- the tower: frozen -------------------------------------------------------------------------------------------

    def cache_key(self) -> dict[str, Any]:
        return {"layers": list(self.layers)}

    def encode_frozen(self, images: Tensor) -> dict[str, Tensor]:
        """`patches` [M, layers, N, Dv]: raw block outputs."""
        return {"patches": torch.stack(self.backbone.encode_image(images, layers=self.layers).patches, dim=1)}

    # ---- the heads ---------------------------------------------------------------------------------------------------

    def layer_maps(self, batch: Batch, size: tuple[int, int]) -> Tensor:
        """Abnormal probabilities [layers, B, H, W]: logits are upsampled, then compared."""
        patches = self.frozen_tokens(batch)["patches"].float().transpose(0, 1)  # [layers, B, N, Dv]
        rows, columns = (side // self.backbone.patch_size for side in batch.size)
        maps = []
        for head, layer in zip(self.heads, patches, strict=True):
            logits = head(F.layer_norm(layer, layer.shape[-1:]))  # DINOv2's norms have outliers: a head needs the norm
            if self.prototypes is not None:
                logits = F.normalize(logits, dim=-1) @ F.normalize(self.prototypes, dim=-1).T / self.temperature
            grids = to_grid(logits.transpose(1, 2), (rows, columns))  # [B, 2, rows, columns]
            maps.append(upsample(grids, size, align_corners=False).softmax(dim=1)[:, 1])
        return torch.stack(maps)

    @torch.no_grad()
    def predict(self, batch: Batch) -> Prediction:
        found = gaussian_smooth(self.layer_maps(batch, batch.size).mean(dim=0), self.sigma)
        pixels = found.flatten(1)
        count = 1 if self.image_score == "max" else max(1, pixels.shape[1] // 100)
        return Prediction(pixels.topk(count, dim=1).values.mean(dim=1), found)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        mask = training_mask(batch.mask, batch.path, self.terms)
        return map_losses(self.terms, self.layer_maps(batch, (mask.shape[-2], mask.shape[-1])), mask)
