"""APRIL-GAN: a linear layer for each tapped block moves patches to the texts; few-shot adds a memory of normal patches.

Chen, Han, Zhang, "APRIL-GAN: A Zero-/Few-Shot Anomaly Classification and Segmentation Method for CVPR 2023 VAND Workshop
Challenge Tracks 1&2", arXiv 2305.17382; tables of other papers call it VAND. The defaults are those of the published code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_vlm.backbone import ClipBackbone
from anomaly_vlm.data.types import Batch
from anomaly_vlm.losses import PROBABILITY
from anomaly_vlm.losses.maps import map_losses, training_mask
from anomaly_vlm.methods.base.category_scores import CategoryScores
from anomaly_vlm.methods.base.prediction import Prediction
from anomaly_vlm.methods.shared.category_memory import MemoryMethod
from anomaly_vlm.methods.shared.layers import Layers, tapped_layers
from anomaly_vlm.methods.shared.maps import to_grid, upsample
from anomaly_vlm.methods.shared.precision import summed_product
from anomaly_vlm.methods.shared.sentences import fill_templates
from anomaly_vlm.options import PositiveFloat
from anomaly_vlm.texts import load_texts


class AprilGAN(CategoryScores, MemoryMethod):
    """Linear layers on the patches of several blocks, trained on an auxiliary set; with references also a patch memory.

    The linear layers are learned (3,148,800 numbers on ViT-L/14), and start from `seed`. Both towers are frozen. References
    are compared with and never learned from: a few-shot run has the layers of the zero-shot one. The sources are the report
    and the published code of August 2025.

    Args:
        backbone: Frozen towers. The report has OpenAI's ViT-L/14@336 at 518 px; the published code runs it with exact GELU
            and resizes the position grid by bicubic interpolation with antialias.
        texts: Table of states and templates: its name, a JSON file, or the table itself.
        layers: 1-based vision blocks whose patches are compared with the texts, see `tapped_layers`; the report has 6, 12,
            18, 24 of 24.
        few_shot_layers: Blocks whose patches are compared with the references. None: those of `layers`.
        scale: Factor on the cosine similarities, whatever CLIP's own is.
        base: See `MemoryMethod`.

    Raises:
        UserError: The tower does not have the blocks of `layers` or `few_shot_layers`.
    """

    loss_terms: ClassVar[dict[str, frozenset[str]]] = {"focal": PROBABILITY, "dice": frozenset({"dice"})}

    def __init__(
        self,
        backbone: ClipBackbone,
        *,
        texts: str | Mapping[str, Any] = "april_gan_prompts",
        layers: Layers = None,
        few_shot_layers: Layers = None,
        scale: PositiveFloat = 100.0,
        **base: Any,
    ) -> None:
        super().__init__(backbone, **base)
        self.layers = self.few_shot_layers = tapped_layers(backbone, layers)
        if few_shot_layers is not None:
            self.few_shot_layers = tapped_layers(backbone, few_shot_layers, option="few_shot_layers")
        self.texts, self.scale = load_texts(texts), float(scale)
        self.color_range = (0.0, float(len(self.layers)))  # few-shot maps may exceed it a little
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.projection = nn.ModuleList([nn.Linear(backbone.width, backbone.embed_dim) for _ in self.layers])
        self._text_features: dict[str, Tensor] = {}  # category -> [2, C]

    # ---- towers: frozen ----------------------------------------------------------------------------------------------

    def cache_key(self) -> dict[str, Any]:
        return {"april_gan": list(self._taps)}

    @property
    def _taps(self) -> list[int]:
        return sorted({*self.layers, *self.few_shot_layers})

    def encode_frozen(self, images: Tensor) -> dict[str, Tensor]:
        """Encodes images `[M, 3, H, W]`.

        Returns:
            `cls` `[M, C]`, and for each tapped block L `block_L` `[M, N, Dv]` as it comes out, without `ln_post` and not
            projected.
        """
        tokens = self.backbone.encode_image(images, layers=self._taps)
        blocks = {f"block_{layer}": patches for layer, patches in zip(self._taps, tokens.patches, strict=True)}
        return {"cls": tokens.cls, **blocks}

    def sentences(self, category: str) -> tuple[list[str], list[str]]:
        """The 245 normal and the 175 abnormal sentences about a category, whose name stays as it is (`metal_nut`)."""
        normal, abnormal = (
            fill_templates(self.texts["templates"], self.texts[f"{side}_states"], category)
            for side in ("normal", "anomalous")
        )
        return normal, abnormal

    @torch.no_grad()
    def text_features(self, category: str) -> Tensor:
        """Normal and abnormal text feature `[2, C]` of a category, unit norm: means over the unit features of its sentences.

        They are encoded once.
        """
        if category not in self._text_features:
            sides = self.sentences(category)
            self._text_features[category] = self.cached_text_features(sides, lambda: self._encode(sides))
        return self._text_features[category].to(self.device)

    def _encode(self, sides: tuple[list[str], list[str]]) -> Tensor:
        unit = F.normalize(self.backbone.encode_sentences([*sides[0], *sides[1]]), dim=-1)
        means = [rows.mean(dim=0) for rows in torch.split(unit, [len(side) for side in sides])]
        return F.normalize(torch.stack(means), dim=-1)

    # ---- zero-shot -----------------------------------------------------------------------------------------------------

    def patch_features(self, tokens: Mapping[str, Tensor]) -> Tensor:
        """Projects the patches of the tapped blocks to `[layers, B, N, C]`, unit norm."""
        projected = [linear(tokens[f"block_{i}"]) for i, linear in zip(self.layers, self.projection, strict=True)]
        return F.normalize(torch.stack(projected).float(), dim=-1)

    def abnormal_logit(self, features: Tensor, categories: Sequence[str]) -> Tensor:
        """The difference of the abnormal and the normal logit, whose sigmoid is the softmax of the two.

        Args:
            features: Unit features `[..., B, N, C]`.
            categories: B names.

        Returns:
            `[..., B, N]`.
        """
        direction = torch.stack([text[1] - text[0] for text in map(self.text_features, categories)])  # [B, C]
        return self.scale * summed_product("...bnc,bc->...bn", features, direction)

    def layer_maps(self, tokens: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Abnormal probabilities `[layers, B, H, W]`.

        Logits are upsampled before they become probabilities. Upsampling is linear, so that their difference is enough.
        """
        logits = self.abnormal_logit(self.patch_features(tokens), batch.category)
        return self._upsampled(logits, batch).sigmoid()

    def image_score(self, tokens: Mapping[str, Tensor], categories: Sequence[str]) -> Tensor:
        """Abnormal probability `[B]` of the global feature. Nothing learned enters it."""
        cls = F.normalize(tokens["cls"].float(), dim=-1)
        return self.abnormal_logit(cls[:, None], categories)[:, 0].sigmoid()

    def _upsampled(self, values: Tensor, batch: Batch) -> Tensor:
        """Upsamples values `[..., N]` of the patches to `[..., H, W]`."""
        grid = self.backbone.grid_of(batch.size)
        return upsample(to_grid(values, grid), batch.size, align_corners=True)

    # ---- few-shot ------------------------------------------------------------------------------------------------------

    def memory_token_names(self) -> list[str]:
        return [f"block_{layer}" for layer in self.few_shot_layers]

    def distances(self, tokens: Mapping[str, Tensor], categories: Sequence[str]) -> Tensor | None:
        """Distances `1 - cos` of the patches to the nearest patch of their category's references.

        Args:
            tokens: As `encode_frozen` returns them.
            categories: B names.

        Returns:
            `[few-shot layers, B, N]`, in [0, 2]; None without references.
        """
        rows = []
        for row, category in enumerate(categories):
            if (memory := self.memory(category)) is None:
                return None
            rows.append(torch.stack([2 * memory[name](tokens[name][row]) for name in self.memory_token_names()]))
        return torch.stack(rows, dim=1)

    @property
    def bound(self) -> int:
        """What no few-shot map exceeds: a probability of 1 for each layer, a distance of 2 for each few-shot layer."""
        return len(self.layers) + 2 * len(self.few_shot_layers)

    @torch.no_grad()
    def predict(self, batch: Batch) -> Prediction:
        """Maps are sums over the layers, in [0, layers], with references in [0, `bound`].

        A few-shot score is the mean of the zero-shot score and the map's maximum m. The published code stretches m to [0, 1]
        over all test images of the category, which `category_scores` does at the end of an evaluation. An image alone gets
        m / `bound`.
        """
        tokens = self.frozen_tokens(batch)
        maps, score = self.layer_maps(tokens, batch).sum(dim=0), self.image_score(tokens, batch.category)
        if (distances := self.distances(tokens, batch.category)) is None:
            return Prediction(score, maps)
        maps = maps + self._upsampled(distances, batch).sum(dim=0)
        peak = maps.flatten(1).amax(dim=1)
        return Prediction((score + peak / self.bound) / 2, maps, score_components=torch.stack([score, peak], dim=1))

    def category_scores(self, components: Tensor) -> Tensor:
        """Few-shot scores of all evaluated images of a category.

        Args:
            components: Zero-shot scores and maxima of the maps `[n, 2]`. The maxima are stretched to [0, 1]; they count as 0
                where all are the same.

        Returns:
            `[n]`.
        """
        score, peak = components.unbind(dim=1)
        spread = peak.max() - peak.min()
        stretched = (peak - peak.min()) / spread if spread > 0 else torch.zeros_like(peak)
        return (score + stretched) / 2

    # ---- learning ------------------------------------------------------------------------------------------------------

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """`focal`, and `dice` of the abnormal map alone, summed over the layers."""
        mask = training_mask(batch.mask, batch.path, self.terms)
        return map_losses(self.terms, self.layer_maps(self.frozen_tokens(batch), batch), mask, dice_of_normal=False)
