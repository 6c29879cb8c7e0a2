"""Adapted DINOv2 and SAM: a linear segmentation head for each layer of a frozen vision tower, without any text.

Two baselines of the AdaCLIP paper (Cao et al., ECCV 2024, arXiv 2407.15795; `DINOv2` and `SAM` in its tables): does a strong
frozen vision tower with a little supervision do as well as a vision-language model? No code was released for them. The paper
says which towers and layers, and that a linear projection for each layer is trained on AdaCLIP's auxiliary data. Everything
else was decided here (`experiments/linear_heads/README.md`). On a CLIP's image tower the same heads show what its texts add.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_vlm.backbone import ClipBackbone, ViTBackbone
from anomaly_vlm.data.types import Batch
from anomaly_vlm.losses import PROBABILITY
from anomaly_vlm.losses.maps import map_losses, training_mask
from anomaly_vlm.methods.base.frozen_tokens import FrozenTokens
from anomaly_vlm.methods.base.prediction import Prediction
from anomaly_vlm.methods.shared.layers import Layers, tapped_layers
from anomaly_vlm.methods.shared.maps import gaussian_smooth, to_grid, top_share_mean, upsample
from anomaly_vlm.methods.shared.precision import in_float32, product
from anomaly_vlm.options import AtLeast, PositiveFloat, PositiveInt


class LinearHeads(FrozenTokens):
    """A linear layer maps the patches of each layer to the logits of normal and abnormal; the layers' maps are averaged.

    The heads are learned (3,080 numbers on DINOv2 ViT-S/14, 8,200 on SAM ViT-L), and start from `seed`. The tower is frozen.

    Args:
        backbone: DINOv2 ViT-S/14 or SAM's ViT-L encoder as in the paper, or any other ViT, also the image tower of a CLIP.
        layers: 1-based blocks whose raw outputs are read, see `tapped_layers`; the paper has the quarters of the depth.
        head: What a head is. `linear2`: a linear layer to two logits. `prototypes`: a linear layer to `embed_dim` channels,
            which are compared with two learned vectors as a vision-language model compares patches with texts.
        embed_dim: Channels of the head `prototypes`.
        temperature: Divides the cosines of the head `prototypes`.
        sigma: Standard deviation in pixels of the Gaussian that smooths the map; 0 for none.
        image_score: How the image score follows from the map. `max`: its maximum. `mean_top1pct`: the mean of its largest
            hundredth.
        base: See `AnomalyMethod`.

    Raises:
        UserError: The tower does not have the blocks of `layers`.
    """

    backbone_types = (ViTBackbone, ClipBackbone)
    loss_terms: ClassVar[dict[str, frozenset[str]]] = {"focal": PROBABILITY, "dice": frozenset({"dice"})}

    def __init__(
        self,
        backbone: Any,
        *,
        layers: Layers = None,
        head: Literal["linear2", "prototypes"] = "linear2",
        embed_dim: PositiveInt = 768,
        temperature: PositiveFloat = 0.07,
        sigma: Annotated[float, AtLeast(0)] = 4.0,
        image_score: Literal["max", "mean_top1pct"] = "max",
        **base: Any,
    ) -> None:
        super().__init__(backbone, **base)
        self.layers = tapped_layers(backbone, layers)
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
        """Encodes images `[M, 3, H, W]` to `patches` `[M, layers, N, Dv]`, the raw outputs of the blocks."""
        return {"patches": torch.stack(self.backbone.encode_image(images, layers=self.layers).patches, dim=1)}

    # ---- the heads ---------------------------------------------------------------------------------------------------

    def layer_maps(self, batch: Batch, size: tuple[int, int]) -> Tensor:
        """Abnormal probabilities `[layers, B, H, W]`; logits are upsampled before they become probabilities."""
        patches = self.frozen_tokens(batch)["patches"].float().transpose(0, 1)  # [layers, B, N, Dv]
        grid = self.backbone.grid_of(batch.size)
        maps = []
        for head, layer in zip(self.heads, patches, strict=True):
            with in_float32(layer):
                logits = head(F.layer_norm(layer, layer.shape[-1:]))  # some of DINOv2's patches have outlying norms
            if self.prototypes is not None:
                logits = product(F.normalize(logits, dim=-1), F.normalize(self.prototypes, dim=-1).T) / self.temperature
            grids = to_grid(logits.transpose(1, 2), grid)  # [B, 2, rows, columns]
            maps.append(upsample(grids, size, align_corners=False).softmax(dim=1)[:, 1])
        return torch.stack(maps)

    @torch.no_grad()
    def predict(self, batch: Batch) -> Prediction:
        maps = gaussian_smooth(self.layer_maps(batch, batch.size).mean(dim=0), self.sigma)
        pixels = maps.flatten(1)
        score = pixels.amax(dim=1) if self.image_score == "max" else top_share_mean(pixels, 0.01)
        return Prediction(score, maps)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """`focal` and `dice` of the layers' maps."""
        mask = training_mask(batch.mask, batch.path, self.terms)
        return map_losses(self.terms, self.layer_maps(batch, (mask.shape[-2], mask.shape[-1])), mask)
