"""A linear probe: patches of the frozen tower through one learned layer, compared with a normal and an abnormal sentence."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_vlm.backbone import ClipBackbone
from anomaly_vlm.data import Batch
from anomaly_vlm.losses import PROBABILITY, map_losses, training_mask
from anomaly_vlm.methods.base.frozen_tokens import FrozenTokens
from anomaly_vlm.methods.base.prediction import Prediction
from anomaly_vlm.methods.shared.maps import to_grid, upsample
from anomaly_vlm.methods.shared.precision import product
from anomaly_vlm.options import PositiveFloat


class TextProbe(FrozenTokens):
    """Learns a linear layer from patches to texts; the towers are frozen, so that their tokens are kept after one epoch.

    Args:
        backbone: Frozen towers.
        normal: Sentence on a flawless thing.
        abnormal: Sentence on a damaged one.
        temperature: Divides the similarities.
        base: See `AnomalyMethod`.
    """

    loss_terms: ClassVar[dict[str, frozenset[str]]] = {"focal": PROBABILITY, "dice": frozenset({"dice"})}

    def __init__(
        self,
        backbone: ClipBackbone,
        *,
        normal: str = "a photo of a flawless object",
        abnormal: str = "a photo of a damaged object",
        temperature: PositiveFloat = 0.07,
        **base: Any,
    ) -> None:
        super().__init__(backbone, **base)
        self.temperature = temperature
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.probe = nn.Linear(backbone.width, backbone.embed_dim)
        self.register_buffer("texts", F.normalize(backbone.encode_sentences([normal, abnormal]), dim=-1))  # [2, C]

    def cache_key(self) -> dict[str, Any]:
        """The tokens are those of the last block."""
        return {"text_probe": "last"}

    def encode_frozen(self, images: Tensor) -> dict[str, Tensor]:
        """`patches` `[M, N, Dv]` of the last block."""
        return {"patches": self.backbone.encode_image(images, layers=[self.backbone.num_layers]).patches[0]}

    def maps(self, batch: Batch, size: tuple[int, int]) -> Tensor:
        """Abnormal probabilities `[B, H, W]` at a size."""
        patches = F.normalize(self.probe(self.frozen_tokens(batch)["patches"].float()), dim=-1)  # [B, N, C]
        logits = product(patches, self.texts.T) / self.temperature  # [B, N, 2], float32 in any precision
        rows, columns = (side // self.backbone.patch_size for side in batch.size)
        return upsample(to_grid(logits[..., 1] - logits[..., 0], (rows, columns)), size, align_corners=False).sigmoid()

    @torch.no_grad()
    def predict(self, batch: Batch) -> Prediction:
        maps = self.maps(batch, batch.size)
        return Prediction(maps.flatten(1).amax(dim=1), maps)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """`focal` and `dice` of the map."""
        mask = training_mask(batch.mask, batch.path, self.terms)
        return map_losses(self.terms, self.maps(batch, (mask.shape[-2], mask.shape[-1]))[None], mask)
