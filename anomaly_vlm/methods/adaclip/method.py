"""AdaCLIP: a frozen CLIP adapted to anomalies by static and dynamic prompt tokens in both towers.

Cao, Zhang, Frittoli, Cheng, Shen, Boracchi, "Adapting CLIP with Hybrid Learnable Prompts for Zero-Shot Anomaly Detection",
ECCV 2024, arXiv 2407.15795. The defaults are those of the published code, which made the released weights. It differs from
the paper's text in how prompts enter sentences (`prompts.text_mode`), in the fusion (`hsf.mode`), in the image score without
fusion (`score_without_hsf`) and in the dice loss (`loss.dice.over`: `row` is the code's).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_vlm.backbone import ClipBackbone, ImageTokens, Prompts
from anomaly_vlm.data.types import Batch
from anomaly_vlm.losses import PROBABILITY
from anomaly_vlm.losses.maps import map_losses, training_mask, wants_masks
from anomaly_vlm.methods.adaclip.hsf import HsfOptions, HybridSemanticFusion
from anomaly_vlm.methods.adaclip.prompts import HybridLearnablePrompts, PromptOptions
from anomaly_vlm.methods.adaclip.texts import STATES_ABNORMAL, STATES_NORMAL, TEMPLATES, PromptEnsemble
from anomaly_vlm.methods.base.frozen_tokens import FrozenTokens
from anomaly_vlm.methods.base.prediction import Prediction
from anomaly_vlm.methods.shared.layers import Layers, tapped_layers
from anomaly_vlm.methods.shared.maps import gaussian_smooth, to_grid, upsample
from anomaly_vlm.methods.shared.precision import in_float32
from anomaly_vlm.methods.shared.seeding import derived_generator
from anomaly_vlm.options import AtLeast, PositiveFloat, Range


@dataclass
class AdaptedFeatures:
    """Features of a batch from the adapted towers.

    Attributes:
        patches: Projected patches `[layers, B, N, C]`, unit norm.
        cls: Projected class token `[B, C]`, unit norm.
        text: Normal and abnormal text feature `[B, 2, C]`, unit norm.
        grid: Rows and columns of patches.
    """

    patches: Tensor
    cls: Tensor
    text: Tensor
    grid: tuple[int, int]


class AdaCLIP(FrozenTokens):
    """Hybrid prompts in both towers, linear projections of patches and class token, semantic fusion.

    The prompts and the projections are learned, and start from `seed`. CLIP is frozen.

    Args:
        backbone: Frozen towers. The paper has OpenAI's ViT-L/14@336 at 518 px; the published code runs it with exact GELU.
        states_normal: Phrases of the normal side, each with `{}` for the class word.
        states_abnormal: Phrases of the abnormal side.
        templates: Sentences with `{}` for the phrase.
        layers: 1-based vision blocks whose patches are compared with the texts, see `tapped_layers`; the paper has 6, 12,
            18, 24 of 24.
        prompts: Which towers get prompts, and which kind.
        projection: How patches and class token reach the texts. `linear`: through learned linear layers. `clip`: through
            CLIP's own frozen projection (appendix 5 of the paper).
        temperature: Divides the similarities.
        hsf: Options of the hybrid semantic fusion.
        score_without_hsf: The image score where `hsf.enabled` is false. `published`: that of the class token. `paper`: the
            maximum of the anomaly map. `map_top`: the probability of the mean logit over the `top_share` of patches with the
            largest ones. In training the class token is compared in each case.
        top_share: Share of the patches for `map_top`; at least one patch counts.
        sigma: Standard deviation in pixels of the Gaussian that smooths the map; 0 for none.
        base: See `AnomalyMethod`.

    Raises:
        UserError: A tower has fewer blocks than `prompts.depth`, or not those of `layers`.
    """

    loss_terms: ClassVar[dict[str, frozenset[str]]] = {
        "focal_image": PROBABILITY,
        "focal": PROBABILITY,
        "dice": frozenset({"dice"}),
    }

    def __init__(
        self,
        backbone: ClipBackbone,
        *,
        states_normal: Sequence[str] = STATES_NORMAL,
        states_abnormal: Sequence[str] = STATES_ABNORMAL,
        templates: Sequence[str] = TEMPLATES,
        layers: Layers = None,
        prompts: PromptOptions = PromptOptions(),  # noqa: B008 (frozen)
        projection: Literal["linear", "clip"] = "linear",
        temperature: PositiveFloat = 0.01,
        hsf: HsfOptions = HsfOptions(),  # noqa: B008 (frozen)
        score_without_hsf: Literal["published", "paper", "map_top"] = "published",
        top_share: Annotated[float, Range(low=0, open_low=True, high=1)] = 0.02,
        sigma: Annotated[float, AtLeast(0)] = 4.0,
        **base: Any,
    ) -> None:
        super().__init__(backbone, **base)
        self.layers = tapped_layers(backbone, layers)
        self.temperature, self.sigma = temperature, sigma
        self.score_without_hsf, self.top_share = score_without_hsf, top_share
        self.hsf = HybridSemanticFusion(hsf)
        self.ensemble = PromptEnsemble(backbone, (states_normal, states_abnormal), templates, prompts.text_mode)
        self.dynamic_prompts = prompts.dynamic
        self.image_prompts: HybridLearnablePrompts | None = None
        self.text_prompts: HybridLearnablePrompts | None = None
        self.patch_projection: nn.ModuleList | None = None
        self.cls_projection: nn.Linear | None = None
        depth, width, dim = prompts.depth_on(backbone), backbone.width, backbone.embed_dim
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            if prompts.image:
                self.image_prompts = HybridLearnablePrompts(prompts, feature_dim=dim, width=width, depth=depth)
            if prompts.text:
                text_width = backbone.text_width
                self.text_prompts = HybridLearnablePrompts(prompts, feature_dim=dim, width=text_width, depth=depth)
            if projection == "linear":
                self.patch_projection = nn.ModuleList([nn.Linear(width, dim) for _ in self.layers])
                self.cls_projection = nn.Linear(dim, dim)
        self._texts: dict[str, Tensor] = {}  # category -> [2, C], dropped when learned values change
        self._pooled: dict[str, Tensor] = {}  # image key -> global feature [C] of the frozen tower

    # ---- towers ------------------------------------------------------------------------------------------------------

    def features(self, batch: Batch) -> AdaptedFeatures:
        """Runs both adapted towers on a batch (sections 3.3 and 3.4)."""
        tokens, pooled = self._image_tokens(batch)
        projected = [
            self.backbone.project(patches) if self.patch_projection is None else self.patch_projection[i](patches)
            for i, patches in enumerate(tokens.patches)
        ]
        cls = tokens.cls if self.cls_projection is None else self.cls_projection(tokens.cls)
        return AdaptedFeatures(
            patches=F.normalize(torch.stack(projected).float(), dim=-1),
            cls=F.normalize(cls.float(), dim=-1),
            text=self.encode_text(batch.category, pooled),
            grid=tokens.grid,
        )

    def _image_tokens(self, batch: Batch) -> tuple[ImageTokens, Tensor]:
        """The prompted image tower on a batch, and the global features `[B, C]` of the frozen tower."""
        if self.backbone.has_stem:  # what the prompts meet behind it is frozen, and comes from the token cache
            frozen = self.frozen_tokens(batch)
            grid = self.backbone.grid_of(batch.size)
            return self.encode_embedded(frozen["embedded"], grid, frozen["cls"]), frozen["cls"]
        pooled = self._global_features(batch) if self.dynamic_prompts and self.image_prompts is not None else None
        tokens = self.encode_image(batch.image, pooled)
        # without prompts that need it, the class token is the global feature
        return tokens, tokens.cls if pooled is None else pooled

    def cache_key(self) -> dict[str, Any] | None:
        """The patch embedding and the global feature are kept where a stem makes them worth it."""
        return {"embedded": True} if self.backbone.has_stem else None

    def encode_frozen(self, images: Tensor) -> dict[str, Tensor]:
        """`embedded` `[M, 1 + N, Dv]`, the input of the tower behind its stem; `cls` `[M, C]`, its global feature."""
        embedded, grid = self.backbone.embed_image(images)
        return {"embedded": embedded, "cls": self.backbone.encode_embedded(embedded, grid).cls}

    def _global_features(self, batch: Batch) -> Tensor:
        """Global features `[B, C]` of the frozen tower without prompts, computed once for each image."""
        cached = [None if key is None else self._pooled.get(key) for key in batch.key]
        missing = [i for i, feature in enumerate(cached) if feature is None]
        if missing:
            with torch.no_grad():
                fresh = self.backbone.encode_image(batch.image[missing]).cls
            for i, feature in zip(missing, fresh, strict=True):
                cached[i] = feature
                if (key := batch.key[i]) is not None:
                    self._pooled[key] = feature.cpu()
        return torch.stack([feature.to(batch.image.device) for feature in cached if feature is not None])

    def encode_image(self, images: Tensor, pooled: Tensor | None) -> ImageTokens:
        """Runs the image tower with its prompts, which stand behind the patches and are replaced at each of the J blocks.

        Args:
            images: `[B, 3, H, W]`, normalised.
            pooled: Global features `[B, C]` for dynamic prompts; None where there are none.
        """
        return self.encode_embedded(*self.backbone.embed_image(images), pooled)

    def encode_embedded(self, embedded: Tensor, grid: tuple[int, int], pooled: Tensor | None) -> ImageTokens:
        """As `encode_image`, from the patch embedding `[B, 1 + N, Dv]` and its grid."""
        if self.image_prompts is None:
            with torch.no_grad():
                return self.backbone.encode_embedded(embedded, grid, layers=self.layers)
        prompts = Prompts(self.image_prompts(pooled))
        return self.backbone.encode_embedded(embedded, grid, layers=self.layers, prompts=prompts)

    def encode_text(self, categories: Sequence[str], pooled: Tensor | None) -> Tensor:
        """Text features of each image's category, computed once a category where they do not depend on the image.

        Args:
            categories: B names.
            pooled: Global features `[B, C]` for dynamic prompts; None where there are none.

        Returns:
            Normal and abnormal text feature `[B, 2, C]`, unit norm.
        """
        if self.text_prompts is not None and self.text_prompts.dynamic is not None:
            return self.ensemble.encode(categories, self.text_prompts(pooled))
        learning = torch.is_grad_enabled() and self.text_prompts is not None
        cached = {} if learning else self._texts
        missing = [category for category in dict.fromkeys(categories) if category not in cached]
        if missing:
            with torch.set_grad_enabled(learning):
                prompts = None if self.text_prompts is None else self.text_prompts(None)
                cached.update(zip(missing, self.ensemble.encode(missing, prompts), strict=True))
        return torch.stack([cached[category] for category in categories])

    # ---- scores ------------------------------------------------------------------------------------------------------

    def patch_logits(self, features: AdaptedFeatures) -> Tensor:
        """Similarities `[layers, B, N, 2]` of every layer's patches with the two texts, divided by the temperature."""
        with in_float32(features.text):
            return features.patches @ features.text.mT / self.temperature

    def image_logits(self, features: AdaptedFeatures, logits: Tensor, seeds: Sequence[int]) -> Tensor:
        """Similarities `[B, 2]` of the class token, fused with the anomalous patches, with the two texts.

        Args:
            features: Of the batch.
            logits: Its `patch_logits`, which say how anomalous each patch is.
            seeds: One for each image, for k-means.
        """
        cls = features.cls
        if self.hsf.enabled:
            prob = logits.detach().mean(dim=0).softmax(dim=-1)[..., 1]  # [B, N]
            cls = self.hsf.fuse(self.hsf.feature(features.patches, prob, seeds), cls)
        with in_float32(cls):
            return torch.einsum("bc,bkc->bk", cls, features.text) / self.temperature

    def layer_maps(self, logits: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """Upsamples the abnormal probabilities of each layer to `[layers, B, H, W]`.

        The softmax of two classes is the sigmoid of their difference and upsampling is linear, so one channel is enough.
        """
        return upsample(to_grid(logits[..., 1] - logits[..., 0], grid), size, align_corners=True).sigmoid()

    def top_score(self, logits: Tensor) -> Tensor:
        """The image score `[B]` of `map_top`, from similarities `[layers, B, N, 2]`."""
        margin = (logits[..., 1] - logits[..., 0]).mean(dim=0)
        count = max(1, round(self.top_share * margin.shape[1]))
        return margin.topk(count, dim=1).values.mean(dim=1).sigmoid()

    def kmeans_seeds(self, batch: Batch, epoch: int | None) -> list[int]:
        """One seed for each image, from (`seed`, epoch, index) in training and (`seed`, index) in evaluation.

        None are drawn without the semantic fusion, which alone runs k-means.
        """
        if not self.hsf.enabled:
            return []
        when = [] if epoch is None else [epoch + 1]
        return [int(derived_generator(self.seed, *when, i).integers(2**31)) for i in batch.index.tolist()]

    @torch.no_grad()
    def predict(self, batch: Batch) -> Prediction:
        features = self.features(batch)
        logits = self.patch_logits(features)
        raw = self.layer_maps(logits.mean(dim=0, keepdim=True), features.grid, batch.size)[0]
        smooth = gaussian_smooth(raw, self.sigma)
        if not self.hsf.enabled and self.score_without_hsf == "paper":
            return Prediction(smooth.flatten(1).amax(dim=1), smooth)
        if not self.hsf.enabled and self.score_without_hsf == "map_top":
            return Prediction(self.top_score(logits), smooth)
        score = self.image_logits(features, logits, self.kmeans_seeds(batch, None)).softmax(dim=-1)[:, 1]
        return Prediction(score, smooth)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """`focal_image` of the image score, `focal` and `dice` of the layers' maps (section 3.6)."""
        features = self.features(batch)
        logits = self.patch_logits(features)
        values = {}
        if "focal_image" in self.terms:
            seeds = self.kmeans_seeds(batch, self.current_epoch)
            prob = self.image_logits(features, logits, seeds).softmax(dim=-1)[:, 1]
            values["focal_image"] = self.terms["focal_image"](prob, batch.label).mean()
        if wants_masks(self.terms):
            mask = training_mask(batch.mask, batch.path, self.terms)
            maps = self.layer_maps(logits, features.grid, (mask.shape[-2], mask.shape[-1]))
            values.update(map_losses(self.terms, maps, mask))
        return values

    # ---- caches ------------------------------------------------------------------------------------------------------

    def invalidate_caches(self) -> None:
        self._texts.clear()

    def clear_caches(self) -> None:
        """Drops everything that is computed once for an image or a category, as if the method were new."""
        self.invalidate_caches()
        self.ensemble.clear()
        self._pooled.clear()
