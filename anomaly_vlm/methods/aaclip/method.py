"""AA-CLIP: adapters make CLIP's texts aware of anomalies first, then its patches.

Ma, Zhang, Yao, Tang, Wu, Li, Yan, Jiang, Zhou, "AA-CLIP: Enhancing Zero-Shot Anomaly Detection via Anomaly-Aware CLIP", CVPR
2025, arXiv 2503.06661; code github.com/Mwxinnn/AA-CLIP. Options named `published` do what that program does, `paper` what
the text says. The published image score is stretched over the test images of a category (`image_score="category_minmax"`);
the default takes the same constants from the training images, so that an image has a score alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_vlm.backbone import ClipBackbone, ValueAttention
from anomaly_vlm.data.types import Batch
from anomaly_vlm.losses import PROBABILITY
from anomaly_vlm.losses.maps import map_losses, training_mask, wants_masks
from anomaly_vlm.methods.aaclip.scores import CategoryRanges, Domain, category_minmax, checked_grid, smoothed, stretched
from anomaly_vlm.methods.aaclip.stages import StageOptions, halving
from anomaly_vlm.methods.aaclip.texts import AdaptedText, ClassWords, Sentences, mean_direction
from anomaly_vlm.methods.base.calibrated import Calibrated
from anomaly_vlm.methods.base.category_scores import CategoryScores
from anomaly_vlm.methods.base.prediction import Prediction
from anomaly_vlm.methods.shared.adapters import MixedAdapter, xavier
from anomaly_vlm.methods.shared.layers import Layers, first_blocks, tapped_layers
from anomaly_vlm.methods.shared.maps import to_grid, upsample
from anomaly_vlm.methods.shared.precision import summed_product
from anomaly_vlm.options import AtLeast, Fraction, PositiveFloat, PositiveInt

log = logging.getLogger("anomaly_vlm")


class AACLIP(CategoryScores, Calibrated):
    """Learns bias-free matrices: adapters behind the first blocks of both towers, and projections to a joint space.

    Args:
        backbone: Frozen towers. The paper has CLIP ViT-L/14-336 at 518 px.
        texts: See `Sentences`.
        layers: 1-based vision blocks whose patches are compared with the texts, see `tapped_layers`.
        image_adapt_until: Vision blocks with an adapter behind them. None: a quarter of the depth, as published (6 of 24).
        text_adapt_until: Text blocks with an adapter behind them. None: a quarter of the depth (3 of 12).
        image_weight: Share of the image adapters in the tokens.
        text_weight: Share of the text adapters.
        rank: Rank of the adapters; None for full matrices, as published.
        projection_relu: Whether a LeakyReLU follows the image projections.
        adapt_text: Whether the text tower is adapted; otherwise CLIP's own text features are used and stage 1 is left out.
        vv_blocks: Last vision blocks that have V-V attention in stage 1. None: 19 of 24, at the same share of other depths.
        vv_axis: What V-V attention sees, see `ValueAttention`: `published` the other images of the batch, `paper` the tokens
            of its image.
        stage1_levels: Levels whose maps train the texts: `published` the last alone, `paper` all.
        scale: Multiplies the similarities of patches and texts.
        class_words: See `Sentences`. `described` is knowledge of the test categories.
        domain: Smoothing and image score: `industrial`, or `medical` (the map's maximum alone).
        image_score: `calibrated`: maximum of the map and image value, each stretched by its range over the training images.
            `category_minmax`: by its range over all test images of a category, as published. `map_max`: the map's maximum.
        stages: What is trained when, and how fast.
        base: See `AnomalyMethod`.

    Raises:
        UserError: The towers do not have the blocks.
    """

    own_schedule: ClassVar[bool] = True
    loss_terms: ClassVar[dict[str, frozenset[str]]] = {
        "ce": PROBABILITY,
        "focal": PROBABILITY,
        "dice": frozenset({"dice"}),
        "texts": frozenset({"mean_cosine_square"}),
    }
    color_range = "per_image"
    range: Tensor

    def __init__(
        self,
        backbone: ClipBackbone,
        *,
        texts: Any = "aaclip_prompts",
        layers: Layers = None,
        image_adapt_until: Annotated[int, AtLeast(0)] | None = None,
        text_adapt_until: Annotated[int, AtLeast(0)] | None = None,
        image_weight: Fraction = 0.1,
        text_weight: Fraction = 0.1,
        rank: PositiveInt | None = None,
        projection_relu: bool = False,
        adapt_text: bool = True,
        vv_blocks: Annotated[int, AtLeast(0)] | None = None,
        vv_axis: Literal["published", "paper"] = "published",
        stage1_levels: Literal["published", "paper"] = "published",
        scale: PositiveFloat = 100.0,
        class_words: ClassWords = "described",
        domain: Domain = "industrial",
        image_score: Literal["calibrated", "category_minmax", "map_max"] = "calibrated",
        stages: StageOptions = StageOptions(),  # noqa: B008 (frozen)
        **base: Any,
    ) -> None:
        super().__init__(backbone, **base)
        self.layers = tapped_layers(backbone, layers)
        depth, text_depth = backbone.num_layers, backbone.num_text_layers
        image_until = first_blocks(image_adapt_until, depth, option="image_adapt_until")
        text_until = first_blocks(text_adapt_until, text_depth, option="text_adapt_until")
        replaced = round(depth * 19 / 24) if vv_blocks is None else min(vv_blocks, depth)
        self.value_attention = ValueAttention(depth - replaced, "batch" if vv_axis == "published" else "tokens")
        self.sentences = Sentences(texts, class_words)
        self.projection_relu, self.stage1_levels, self.scale = projection_relu, stage1_levels, float(scale)
        self.domain, self.image_score, self.stages = domain, image_score, stages
        generator = torch.Generator().manual_seed(self.seed)
        self.text = None
        if adapt_text:
            self.text = AdaptedText(backbone, until=text_until, weight=text_weight, rank=rank, generator=generator)
        self.image_adapters = nn.ModuleList(
            [
                MixedAdapter(backbone.width, weight=image_weight, rank=rank, generator=generator)
                for _ in range(image_until)
            ]
        )
        shape = (backbone.embed_dim, backbone.width)
        self.patch_projections = nn.ParameterList([nn.Parameter(xavier(*shape, generator)) for _ in self.layers])
        self.image_projection = nn.Parameter(xavier(*shape, generator))
        self.register_buffer("range", torch.full((4,), torch.nan))  # of map and image value: low, high, low, high
        self._text_features: dict[str, Tensor] = {}

    def display_name(self, name: str) -> str:
        name = super().display_name(name)
        return f"{name} (scores stretched over the test set)" if self.image_score == "category_minmax" else name

    def invalidate_caches(self) -> None:
        self._text_features.clear()

    # ---- texts -------------------------------------------------------------------------------------------------------

    def encode_category(self, category: str) -> Tensor:
        """Normal and abnormal text feature `[2, C]` of a category, unit norm, with gradient where there is one."""
        sides = self.sentences.sides(category)
        if self.text is None:
            features = self.backbone.encode_sentences([*sides[0], *sides[1]])
        else:
            features = self.text.encode(self.backbone, [*sides[0], *sides[1]])
        return torch.stack([mean_direction(part) for part in torch.split(features, [len(side) for side in sides])])

    @torch.no_grad()
    def text_features(self, category: str) -> Tensor:
        """The text features `[2, C]` of a category without gradient; encoded once."""
        if category not in self._text_features:
            self._text_features[category] = self.encode_category(category)
        return self._text_features[category]

    # ---- towers ------------------------------------------------------------------------------------------------------

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The adapted image tower.

        Args:
            images: `[B, 3, H, W]`.

        Returns:
            Unit patches `[levels, B, N, C]`, and the mean `[B, C]` of the unit image projections, which is not normalised.
        """
        tower = self.backbone
        tokens = tower.encode_image(images, layers=self.layers, adapters=list(self.image_adapters)).patches
        normed = [tower.visual.ln_post(patches) for patches in tokens]
        patches = [self._projected(x, p) for x, p in zip(normed, self.patch_projections, strict=True)]
        return torch.stack(patches), self._projected(normed[-1], self.image_projection).mean(dim=1)

    def _projected(self, tokens: Tensor, projection: Tensor) -> Tensor:
        """Unit features `[B, N, C]` of tokens `[B, N, Dv]`."""
        projected = tokens @ projection.T
        return F.normalize(F.leaky_relu(projected) if self.projection_relu else projected, dim=-1)

    @torch.no_grad()
    def encode_unadapted(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The frozen towers of stage 1.

        Args:
            images: `[B, 3, H, W]`.

        Returns:
            Patches `[levels, B, N, C]` of the tower with V-V attention plus the image's own feature, and that feature of the
            ordinary tower `[B, C]`, not normalised.
        """
        tower = self.backbone
        cls = tower.encode_image(images).cls
        tokens = tower.encode_image(images, layers=self.layers, value_attention=self.value_attention).patches
        patches = torch.stack([F.normalize(tower.project(x), dim=-1) for x in tokens])
        return patches + F.normalize(cls, dim=-1)[:, None], cls

    # ---- scores ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def predict(self, batch: Batch) -> Prediction:
        maps, values = self.maps_and_values(batch)
        peaks, lowest = maps.flatten(1).amax(dim=1), maps.flatten(1).amin(dim=1)
        score, shown = peaks, maps
        if self.image_score != "map_max" and torch.isfinite(self.range).all():
            low, high = self.range[:2]
            score, shown = stretched(peaks, low, high), stretched(maps, low, high)
            if self.domain == "industrial":
                score = (score + stretched(values, *self.range[2:])) / 2
        elif self.image_score == "calibrated":
            log.warning("aaclip: no range of the training images is known, so the image score is the map's maximum")
        components = torch.stack([peaks, lowest, values], dim=1) if self.image_score == "category_minmax" else None
        return Prediction(score, shown, score_components=components)

    def maps_and_values(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Maps `[B, H, W]`, sums over the levels, and image values `[B]` in [0, 1], as they are before any stretching."""
        patches, image = self.encode(batch.image)
        texts = torch.stack([self.text_features(category) for category in batch.category])  # [B, 2, C]
        grids = smoothed(self.level_grids(patches, texts, self.grid_of(batch.size)), self.domain)
        values = (summed_product("bc,bc->b", image, texts[:, 1]) + 1) / 2
        return upsample(grids, batch.size, align_corners=True).sum(dim=0), values

    def grid_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of patches of an image of this height and width; see `checked_grid`."""
        return checked_grid(size, self.backbone.patch_size, self.domain)

    def level_grids(self, patches: Tensor, texts: Tensor, grid: tuple[int, int]) -> Tensor:
        """How much closer to the abnormal than to the normal text patches are, `[levels, B, rows, columns]`.

        Args:
            patches: `[levels, B, N, C]`.
            texts: `[B, 2, C]`.
            grid: Rows and columns.
        """
        difference = self.scale * summed_product("lbnc,bc->lbn", patches, texts[:, 1] - texts[:, 0])
        return to_grid((difference + 1) / 2, grid)

    def category_scores(self, components: Tensor) -> Tensor:
        return category_minmax(components, self.domain)

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Batch]) -> None:
        """Finds the range of maps and image values over the training images: the mean of the categories' ranges."""
        ranges = CategoryRanges()
        for batch in batches:
            ranges.add(*self.maps_and_values(batch), batch.category)
        self.range.copy_(ranges.mean())

    # ---- learning ----------------------------------------------------------------------------------------------------

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Matrices of the texts and of the images, each with its rate."""
        groups: dict[str, list[nn.Parameter]] = {"text": [], "image": []}
        for name, parameter in self.learnable().items():
            groups["text" if name.startswith("text.") else "image"].append(parameter)
        rates = {"text": self.stages.text_lr, "image": self.stages.image_lr}
        return [{"params": members, "lr": rates[kind]} for kind, members in groups.items() if members]

    def configure_optimizers(self) -> Any:
        """Adam, with the image rate halved at the milestones, which count steps of stage 2."""
        optimizer = super().configure_optimizers()
        if self._trainer is None:  # tried out before training
            return optimizer
        schedule = halving(optimizer, self.stages, self.trainer, adapt_text=self.text is not None)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Those of stage 1 in its epochs, then those of stage 2."""
        if self.text is not None and self.current_epoch < self.stages.first_in_run:
            return self.text_losses(batch)
        return self.image_losses(batch)

    def text_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Stage 1: `focal` and `dice` of the unadapted patches under the adapted texts, and `texts`."""
        patches, _ = self.encode_unadapted(batch.image)
        encoded = {category: self.encode_category(category) for category in dict.fromkeys(batch.category)}
        texts = torch.stack([encoded[category] for category in batch.category])
        levels = patches if self.stage1_levels == "paper" else patches[-1:]
        values = self.map_terms(levels, texts, batch)
        if (term := self.terms.get("texts")) is not None:
            values["texts"] = term(texts[:, 0], texts[:, 1])
        return values

    def image_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Stage 2: `focal` and `dice` of the adapted patches, and `ce` of the image."""
        patches, image = self.encode(batch.image)
        texts = torch.stack([self.text_features(category) for category in batch.category])
        values = self.map_terms(patches, texts, batch)
        if (ce := self.terms.get("ce")) is not None:
            logits = summed_product("bc,bkc->bk", image, texts)
            values["ce"] = ce(logits.softmax(dim=1)[:, 1], batch.label).mean()
        return values

    def map_terms(self, patches: Tensor, texts: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Losses of the maps of patches `[levels, B, N, C]` under texts `[B, 2, C]`, summed over the levels."""
        if not wants_masks(self.terms):
            return {}
        mask = training_mask(batch.mask, batch.path, self.terms)
        size = (mask.shape[-2], mask.shape[-1])
        difference = self.abnormal_logits(patches, texts, size)
        normal = (-difference).sigmoid()  # near 0 it has digits that 1 minus the abnormal one lost
        return map_losses(self.terms, difference.sigmoid(), mask, normal=normal)

    def abnormal_logits(self, patches: Tensor, texts: Tensor, size: tuple[int, int]) -> Tensor:
        """Abnormal minus normal logits `[levels, B, H, W]` of patches `[levels, B, N, C]`, upsampled."""
        rows = patches.shape[2]
        grid = (round((rows * size[0] / size[1]) ** 0.5), round((rows * size[1] / size[0]) ** 0.5))
        difference = self.scale * summed_product("lbnc,bc->lbn", patches, texts[:, 1] - texts[:, 0])
        return upsample(to_grid(difference, grid), size, align_corners=True)
