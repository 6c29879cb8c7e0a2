"""APRIL-GAN: one linear layer a tapped block moves patch tokens to the texts; few-shot adds a memory of normal patches.

Chen, Han, Zhang, "APRIL-GAN: A Zero-/Few-Shot Anomaly Classification and Segmentation Method for CVPR 2023 VAND Workshop
Challenge Tracks 1&2", arXiv 2305.17382; other papers' tables call it VAND. The defaults are the published code's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_vlm.backbone import ClipBackbone
from anomaly_vlm.data.types import Batch
from anomaly_vlm.errors import UserError
from anomaly_vlm.losses import PROBABILITY
from anomaly_vlm.losses.maps import map_losses, training_mask
from anomaly_vlm.methods.base.category_scores import CategoryScores
from anomaly_vlm.methods.base.prediction import Prediction
from anomaly_vlm.methods.shared.category_memory import MemoryMethod
from anomaly_vlm.methods.shared.maps import fill_templates, to_grid, upsample


class AprilGAN(CategoryScores, MemoryMethod):
    """Linear layers on the patches of several blocks, trained on an auxiliary set; with references also a patch memory.

    Learned: the linear layers (3,148,800 numbers on ViT-L/14), which start from `seed`. Frozen: both towers. References are
    compared with and never learned from: a few-shot run has the layers of the zero-shot one.

    Args:
        backbone: frozen towers (paper: OpenAI ViT-L/14@336 at 518 px; published code: run with exact GELU, position grid
            bicubic with antialias).
        texts: table of states and templates (`april_gan_prompts`).
        layers: 1-based vision blocks whose patches are compared with the texts; None: the quarters of the depth (6, 12, 18,
            24 of 24).
        few_shot_layers: those whose patches are compared with the references; None: as `layers`.
        scale: factor on cosine similarities (100, whatever the weights say).
        base: see `MemoryMethod`.

    Reference: the report; published code, state of 2025-08.
    """

    loss_terms: ClassVar[dict[str, frozenset[str]]] = {"focal": PROBABILITY, "dice": frozenset({"dice"})}

    def __init__(
        self,
        backbone: ClipBackbone,
        *,
        texts: Mapping[str, Any],
        layers: Sequence[int] | None = None,
        few_shot_layers: Sequence[int] | None = None,
        scale: float = 100.0,
        **base: Any,
    ) -> None:
        super().__init__(backbone, **base)
        if not scale > 0:
            raise UserError(f"method.scale is {scale}: give a factor on similarities above 0 (100)")
        self.layers = _layers(backbone, "layers", backbone.quarters if layers is None else layers)
        self.few_shot_layers = _layers(
            backbone, "few_shot_layers", self.layers if few_shot_layers is None else few_shot_layers
        )
        self.texts, self.scale = texts, float(scale)
        self.color_range = (0.0, float(len(self.layers)))  # few-shot maps may exceed it a little
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.projection = nn.ModuleList([nn.Linear(backbone.width, backbone.embed_dim) for _ in self.layers])
        self._texts: dict[str, Tensor] = {}  # category -> [C, 2]

    # ---- towers: frozen ----------------------------------------------------------------------------------------------

    def cache_key(self) -> dict[str, Any]:
        return {"april_gan": list(self._taps)}

    @property
    def _taps(self) -> list[int]:
        return sorted({*self.layers, *self.few_shot_layers})

    def encode_frozen(self, images: Tensor) -> dict[str, Tensor]:
        """`cls` [M, C], and `block_L` [M, N, Dv] of each tapped block as it comes out: no `ln_post`, not projected."""
        tokens = self.backbone.encode_image(images, layers=self._taps)
        blocks = {f"block_{layer}": patches for layer, patches in zip(self._taps, tokens.patches, strict=True)}
        return {"cls": tokens.cls, **blocks}

    def sentences(self, category: str) -> tuple[list[str], list[str]]:
        """The normal (245) and the abnormal (175) sentences on a category, whose name stays as it is (`metal_nut`)."""
        templates = self.texts["templates"]
        normal, abnormal = (
            fill_templates(templates, self.texts[f"{side}_states"], category) for side in ("normal", "anomalous")
        )
        return normal, abnormal

    @torch.no_grad()
    def text_features(self, category: str) -> Tensor:
        """Normal and abnormal text feature of a category [C, 2], unit norm: the mean of unit features of its sentences."""
        if category not in self._texts:
            sides = self.sentences(category)
            self._texts[category] = self.cached_text_features(sides, lambda: self._encode(sides))
        return self._texts[category].to(self.device)

    def _encode(self, sides: tuple[list[str], list[str]]) -> Tensor:
        unit = F.normalize(self.backbone.encode_sentences([*sides[0], *sides[1]]), dim=-1)
        means = [part.mean(dim=0) for part in unit.split([len(side) for side in sides])]
        return F.normalize(torch.stack(means, dim=-1), dim=0)

    # ---- zero-shot -----------------------------------------------------------------------------------------------------

    def patch_features(self, tokens: Mapping[str, Tensor]) -> Tensor:
        """Projected patches [layers, B, N, C], unit norm."""
        projected = [linear(tokens[f"block_{i}"]) for i, linear in zip(self.layers, self.projection, strict=True)]
        return F.normalize(torch.stack(projected).float(), dim=-1)

    def abnormal_logit(self, features: Tensor, categories: Sequence[str]) -> Tensor:
        """How far abnormal lies above normal [..., B, N] for unit features [..., B, N, C]: the difference of the two logits,
        whose sigmoid is the softmax of the two."""
        towards = torch.stack([text[:, 1] - text[:, 0] for text in map(self.text_features, categories)])  # [B, C]
        with torch.autocast(features.device.type, enabled=False):  # times 100, half precision would show
            return self.scale * torch.einsum("...bnc,bc->...bn", features, towards)

    def layer_maps(self, tokens: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Abnormal probabilities [layers, B, H, W]. Logits are upsampled, *then* turned into probabilities; upsampling is
        linear, so that their difference is enough."""
        logits = self.abnormal_logit(self.patch_features(tokens), batch.category)
        return self._upsampled(logits, batch).sigmoid()

    def image_score(self, tokens: Mapping[str, Tensor], categories: Sequence[str]) -> Tensor:
        """Abnormal probability [B] of the global feature; nothing learned enters."""
        cls = F.normalize(tokens["cls"].float(), dim=-1)
        return self.abnormal_logit(cls[:, None], categories)[:, 0].sigmoid()

    def _upsampled(self, values: Tensor, batch: Batch) -> Tensor:
        """[..., N] values of the patches -> [..., H, W]."""
        grid = (batch.size[0] // self.backbone.patch_size, batch.size[1] // self.backbone.patch_size)
        return upsample(to_grid(values, grid), batch.size, align_corners=True)

    # ---- few-shot ------------------------------------------------------------------------------------------------------

    def memory_token_names(self) -> list[str]:
        return [f"block_{layer}" for layer in self.few_shot_layers]

    def distances(self, tokens: Mapping[str, Tensor], categories: Sequence[str]) -> Tensor | None:
        """`1 - cos` to the nearest patch of a category's references [few-shot layers, B, N], in [0, 2]; None: zero-shot."""
        far = []
        for row, category in enumerate(categories):
            if (memory := self.memory(category)) is None:
                return None
            far.append(torch.stack([2 * memory[name](tokens[name][row]) for name in self.memory_token_names()]))
        return torch.stack(far, dim=1)

    @property
    def bound(self) -> int:
        """What no few-shot map exceeds: a probability of 1 a layer, and a distance of 2 a few-shot layer."""
        return len(self.layers) + 2 * len(self.few_shot_layers)

    @torch.no_grad()
    def predict(self, batch: Batch) -> Prediction:
        """Maps are sums over layers, in [0, layers], few-shot in [0, `bound`].

        A few-shot score is the mean of the zero-shot one and the map's maximum m. The published code stretches m to [0, 1]
        over all test images of the category, which `category_scores` does at the end of an evaluation; an image alone gets
        m / `bound`.
        """
        tokens = self.frozen_tokens(batch)
        maps, score = self.layer_maps(tokens, batch).sum(dim=0), self.image_score(tokens, batch.category)
        if (far := self.distances(tokens, batch.category)) is None:
            return Prediction(score, maps)
        maps = maps + self._upsampled(far, batch).sum(dim=0)
        peak = maps.flatten(1).amax(dim=1)
        return Prediction((score + peak / self.bound) / 2, maps, score_components=torch.stack([score, peak], dim=1))

    def category_scores(self, components: Tensor) -> Tensor:
        """Few-shot scores [n] of a category from zero-shot scores and maxima [n, 2]: the maxima stretched to [0, 1], or 0
        where all are the same."""
        score, peak = components.unbind(dim=1)
        spread = peak.max() - peak.min()
        stretched = (peak - peak.min()) / spread if spread > 0 else torch.zeros_like(peak)
        return (score + stretched) / 2

    # ---- learning ------------------------------------------------------------------------------------------------------

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """`focal` and `dice`, the dice of the abnormal map alone; sums over the layers."""
        mask = training_mask(batch.mask, batch.path, self.terms)
        return map_losses(self.terms, self.layer_maps(self.frozen_tokens(batch), batch), mask, dice_of_normal=False)


def _layers(backbone: ClipBackbone, name: str, layers: Sequence[int]) -> tuple[int, ...]:
    """1-based blocks, at least one and none twice, or a `UserError`."""
    if isinstance(layers, int) or not layers or len(set(layers)) < len(layers):
        raise UserError(
            f"method.{name} is {layers}: give different vision blocks of 1 to {backbone.num_layers}, or null for"
            f" {list(backbone.quarters)}"
        )
    return backbone.checked_layers(layers)
