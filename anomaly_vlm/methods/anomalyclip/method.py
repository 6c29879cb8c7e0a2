"""AnomalyCLIP: two learned sentences on a frozen CLIP that name no category, "object" and "damaged object".

Zhou, Pang, Tian, He, Chen, "AnomalyCLIP: Object-agnostic Prompt Learning for Zero-shot Anomaly Detection", ICLR 2024,
arXiv 2310.18961. The defaults are those of the published code. Early versions of the paper describe four layers; the authors
confirm that all reported numbers come from the last layer alone with its local losses times 4, which is the default. With
several layers (`layers=[6, 12, 18, 24]`) give the local terms weight 1.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_vlm.backbone import ClipBackbone
from anomaly_vlm.data.types import Batch
from anomaly_vlm.losses import PROBABILITY
from anomaly_vlm.losses.maps import map_losses, training_mask, wants_masks
from anomaly_vlm.methods.anomalyclip.dual_path import DualPathFeatures, DualPathMethod
from anomaly_vlm.methods.base.prediction import Prediction
from anomaly_vlm.methods.shared.maps import gaussian_smooth, to_grid, upsample
from anomaly_vlm.methods.shared.precision import product
from anomaly_vlm.options import PositiveInt
from anomaly_vlm.texts.learned_context import insert_context, pad_sentences


class AnomalyCLIP(DualPathMethod):
    """Learned contexts of a normal and an abnormal sentence, deep text tokens, patches of the V-V path.

    The contexts and the deep tokens are learned (43,008 numbers on ViT-L/14), and start from `seed`. Both towers are frozen.
    The sources are sections 3.2 to 3.4 and the published code of May 2025.

    Args:
        backbone: Frozen towers.
        class_word: What the sentences are about; underscores become blanks.
        state_word: Stands in front of the class word in the abnormal sentence.
        context_length: Number of learned tokens of each sentence.
        options: See `DualPathMethod`.
    """

    loss_terms: ClassVar[dict[str, frozenset[str]]] = {
        "image": PROBABILITY,
        "focal": PROBABILITY,
        "dice": frozenset({"dice"}),
    }

    def __init__(
        self,
        backbone: ClipBackbone,
        *,
        class_word: str = "object",
        state_word: str = "damaged",
        context_length: PositiveInt = 12,
        **options: Any,
    ) -> None:
        super().__init__(backbone, **options)
        self.words = (class_word.replace("_", " "), f"{state_word} {class_word.replace('_', ' ')}")
        self.context_length = context_length
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed + 1)  # the deep tokens drew from `seed`
            self.normal = nn.Parameter(self.new_tokens(1, context_length))
            self.abnormal = nn.Parameter(self.new_tokens(1, context_length))
        self._text: Tensor | None = None  # text features, dropped when learned values change

    def prompts(self) -> tuple[Tensor, Tensor]:
        """Token ids `[2, T]` and embeddings `[2, T, Dt]` of the normal and the abnormal sentence."""
        sentences = []
        for words, learned in zip(self.words, (self.normal, self.abnormal), strict=True):
            ids, embedded = self.sentence(self.context_length, words)
            sentences.append((ids[None], insert_context(embedded, learned)))
        return pad_sentences(sentences)

    def text_features(self) -> Tensor:
        """Normal and abnormal text feature `[2, C]`, unit norm; outside of training they are encoded once."""
        if torch.is_grad_enabled():
            return F.normalize(self.encode_sentences(*self.prompts()), dim=-1)
        if self._text is None:
            self._text = F.normalize(self.encode_sentences(*self.prompts()), dim=-1)
        return self._text

    def patch_prob(self, features: DualPathFeatures, text: Tensor) -> Tensor:
        """Probabilities `[layers, B, N, 2]` that each patch is normal and that it is abnormal."""
        return (product(features.patches, text.T) / self.temperature).softmax(dim=-1)

    def image_prob(self, features: DualPathFeatures, text: Tensor) -> Tensor:
        """Probability `[B]` that an image is abnormal, from its global feature alone."""
        return (product(features.cls, text.T) / self.temperature).softmax(dim=-1)[:, 1]

    def layer_maps(self, prob: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """Upsamples the abnormal probabilities to `[layers, B, H, W]`; the normal ones are 1 minus these."""
        return upsample(to_grid(prob[..., 1], grid), size, align_corners=False)

    @torch.no_grad()
    def predict(self, batch: Batch) -> Prediction:
        features, text = self.frozen_features(batch), self.text_features()
        maps = self.layer_maps(self.patch_prob(features, text), features.grid, batch.size)
        return Prediction(self.image_prob(features, text), gaussian_smooth(maps.sum(dim=0), self.sigma))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """`image` of the global feature, `focal` and `dice` of the layers' maps (section 3.4)."""
        features, text = self.frozen_features(batch), self.text_features()
        values = {}
        if "image" in self.terms:
            values["image"] = self.terms["image"](self.image_prob(features, text), batch.label).mean()
        if wants_masks(self.terms):
            mask = training_mask(batch.mask, batch.path, self.terms)
            maps = self.layer_maps(self.patch_prob(features, text), features.grid, (mask.shape[-2], mask.shape[-1]))
            values.update(map_losses(self.terms, maps, mask))
        return values

    def invalidate_caches(self) -> None:
        self._text = None
