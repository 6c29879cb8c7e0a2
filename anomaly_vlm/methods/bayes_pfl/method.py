"""Bayes-PFL: prompts of a frozen CLIP with random offsets, whose distributions follow the image and the state.

Qu et al., "Bayesian Prompt Flow Learning for Zero-Shot Anomaly Detection", CVPR 2025, arXiv 2503.10080. The published
program stretches scores over the test images of a category (`image_score="category_minmax"`), takes fewer pixels for
seven named test categories (`top_k="published"`), and ends its stages by labelled images of test categories, which is
not done here.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_vlm.backbone import ClipBackbone
from anomaly_vlm.data.types import Batch
from anomaly_vlm.errors import UserError
from anomaly_vlm.losses import PROBABILITY
from anomaly_vlm.losses.maps import map_losses, training_mask, wants_masks
from anomaly_vlm.methods.base.category_scores import CategoryScores
from anomaly_vlm.methods.base.frozen_tokens import FrozenTokens
from anomaly_vlm.methods.base.prediction import Prediction
from anomaly_vlm.methods.bayes_pfl.flows import Draw, GaussianHead, ImageFlow, StateFlow, divergences
from anomaly_vlm.methods.bayes_pfl.heads import PatchAttention, PatchFeature, start_linear, top_score
from anomaly_vlm.methods.bayes_pfl.stages import StageOptions, schedule_of
from anomaly_vlm.methods.bayes_pfl.texts import pair_features
from anomaly_vlm.methods.shared.layers import Layers, tapped_layers
from anomaly_vlm.methods.shared.maps import gaussian_smooth, to_grid, upsample
from anomaly_vlm.methods.shared.precision import summed_product
from anomaly_vlm.methods.shared.seeding import derived_generator
from anomaly_vlm.options import AtLeast, PositiveInt
from anomaly_vlm.texts import load_texts, table_key

STATE, CONTEXT, PAIR = 1, 2, 3  # streams of random numbers
Tokens = Mapping[str, Tensor]


class BayesPFL(FrozenTokens, CategoryScores):
    """Learns prompts, the distributions of their offsets, and two small heads. Both towers are frozen.

    Args:
        backbone: Frozen towers. The paper has CLIP ViT-L/14-336 at 518 px.
        texts: Table of class words: its name, a JSON file, or the table itself.
        layers: 1-based vision blocks whose patches are read, see `tapped_layers`.
        prompts: Pairs of prompts.
        context_tokens: Learned tokens that both sentences of a pair share.
        state_tokens: Learned tokens of each state.
        flows: Planar steps of each flow.
        samples: Draws at test time, whose probabilities are averaged.
        rca_heads: Heads of the attention of texts to patches.
        state_log_det: Whether the log determinants of the state flows are divided by the batch (`published`) or not.
        stage: Image head at test time: 2, or 1 where stage 2 was left out.
        sigma: Standard deviation in pixels of the Gaussian that smooths the map; 0 for none.
        top_k: Pixels in the map's part of the image score. `share`: as many of the image as 2,000 are of 518 x 518.
            `published`: 2,000, but 20 for seven named categories.
        image_score: `mean` of the image's probability and the map's part. `category_minmax`: both stretched over all test
            images of a category first, as published.
        stages: What is trained when, and how fast.
        base: See `AnomalyMethod`.

    Raises:
        UserError: The towers do not have the blocks, or widths that the heads cannot divide.
    """

    own_schedule: ClassVar[bool] = True
    loss_terms: ClassVar[dict[str, frozenset[str]]] = {
        "ce": PROBABILITY,
        "focal": frozenset({"balanced_focal", "focal"}),
        "dice": frozenset({"dice"}),
        "kl": frozenset({"flow_divergence"}),
        "texts": frozenset({"square_orthogonality"}),
    }
    color_range = (0.0, 1.0)

    def __init__(
        self,
        backbone: ClipBackbone,
        *,
        texts: str | Mapping[str, Any] = "bayes_pfl_prompts",
        layers: Layers = None,
        prompts: PositiveInt = 3,
        context_tokens: PositiveInt = 5,
        state_tokens: PositiveInt = 5,
        flows: PositiveInt = 10,
        samples: PositiveInt = 10,
        rca_heads: PositiveInt = 4,
        state_log_det: Literal["published", "paper"] = "published",
        stage: Literal[1, 2] = 2,
        sigma: Annotated[float, AtLeast(0)] = 8.0,
        top_k: Literal["share", "published"] = "share",
        image_score: Literal["mean", "category_minmax"] = "mean",
        stages: StageOptions = StageOptions(),  # noqa: B008 (frozen)
        **base: Any,
    ) -> None:
        super().__init__(backbone, **base)
        self.layers, self.texts = tapped_layers(backbone, layers), load_texts(texts)
        width, joint, text = backbone.width, backbone.embed_dim, backbone.text_width
        if joint % rca_heads or width % 2:
            raise UserError(
                f"method.rca_heads is {rca_heads}: {backbone.name} has a joint space of {joint} channels, give a divisor"
            )
        self.samples, self.state_log_det, self.stage, self.sigma = samples, state_log_det, stage, sigma
        self.top_k, self.image_score, self.stages = top_k, image_score, stages
        generator = torch.Generator().manual_seed(self.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.head_context, self.head_state = (GaussianHead(joint, width // 2, text) for _ in range(2))
            self.flow_context = ImageFlow(joint, text, flows)
            self.flow_normal, self.flow_abnormal = (StateFlow(joint, text, flows, generator) for _ in range(2))
            self.fuse, self.rca = (
                PatchFeature(len(self.layers), width, joint),
                PatchAttention(len(self.layers), width, joint, rca_heads),
            )
            self.class_mapping, self.image_mapping = nn.Linear(joint, joint), nn.Linear(joint, joint)
            start_linear(*(module for module in self.children() if module is not backbone))
        start = [(context_tokens, 0.0), (state_tokens, 0.5), (state_tokens, -0.5)]
        self.prompt_context, self.prompt_normal, self.prompt_abnormal = (
            nn.Parameter(mean + 0.02 * torch.randn(prompts, count, text, generator=generator)) for count, mean in start
        )
        self.temperature_pixel, self.temperature_image = (nn.Parameter(torch.tensor(1 / 0.07).log()) for _ in range(2))

    def display_name(self, name: str) -> str:
        name = super().display_name(name)
        return f"{name} (scores stretched over the test set)" if self.image_score == "category_minmax" else name

    # ---- the image tower: frozen -------------------------------------------------------------------------------------

    def cache_key(self) -> dict[str, Any]:
        return {"bayes_pfl": list(self.layers)}

    def encode_frozen(self, images: Tensor) -> dict[str, Tensor]:
        """Encodes images `[M, 3, H, W]` to `cls` `[M, C]`, not normalised, and raw `block_L` `[M, N, Dv]` for each block."""
        tokens = self.backbone.encode_image(images, layers=self.layers)
        blocks = {f"block_{layer}": patches for layer, patches in zip(self.layers, tokens.patches, strict=True)}
        return {"cls": tokens.cls, **blocks}

    # ---- texts -------------------------------------------------------------------------------------------------------

    def sentence(self, category: str) -> str:
        """A placeholder for each learned token, then the class word in lower case."""
        word = self.texts["words"].get(table_key(category), category).lower()
        count = self.prompt_context.shape[1] + self.prompt_normal.shape[1]
        return " ".join(["X"] * count + [word])

    def text_features(self, categories: Sequence[str], context: Tensor, normal: Tensor, abnormal: Tensor) -> Tensor:
        """Text features of the pairs of prompts under R draws of the offsets.

        Args:
            categories: B names.
            context: Offsets `[B, R, Dt]` of the context tokens.
            normal: Offsets `[R, Dt]` of the normal state's tokens.
            abnormal: Offsets `[R, Dt]` of the abnormal state's tokens.

        Returns:
            Unit features `[B, 2, R b, C]`, normal first; draws are the outer loop of the pairs.
        """
        sentences = [self.sentence(category) for category in categories]
        prompts = (self.prompt_context, self.prompt_normal, self.prompt_abnormal)
        return pair_features(self.backbone, sentences, prompts, (context, normal, abnormal))

    # ---- heads -------------------------------------------------------------------------------------------------------

    def image_logits(self, tokens: Tokens, texts: Tensor, *, stage: int) -> Tensor:
        """Similarities `[B, 2, pairs]` of the image and the texts `[B, 2, pairs, C]`, by the head of a stage."""
        feature = tokens["cls"].float()
        if stage == 2:
            feature = self.image_mapping(feature + self.fuse([tokens[f"block_{i}"].float() for i in self.layers]))
        mapped = F.normalize(self.class_mapping(texts), dim=-1)
        scale = self.temperature_image if stage == 1 else self.temperature_image.detach()
        return scale.exp() * summed_product("bspc,bc->bsp", mapped, F.normalize(feature, dim=-1))

    def level_maps(self, tokens: Tokens, texts: Tensor, size: tuple[int, int]) -> list[Tensor]:
        """For each level abnormal probabilities `[B, pairs, H, W]` under texts `[B, 2, pairs, C]`."""
        patch = self.backbone.patch_size
        maps = []
        for level, layer in enumerate(self.layers):
            features, refined = self.rca(level, tokens[f"block_{layer}"].float(), texts.flatten(1, 2))
            normal, abnormal = refined.unflatten(1, texts.shape[1:3]).unbind(dim=1)
            logits = self.temperature_pixel.exp() * summed_product("bnc,bpc->bpn", features, abnormal - normal)
            grids = to_grid(logits, (size[0] // patch, size[1] // patch))
            maps.append(upsample(grids, size, align_corners=True).sigmoid())
        return maps

    # ---- scores ------------------------------------------------------------------------------------------------------

    def noise(self, *numbers: int, count: int) -> Tensor:
        """Standard normal numbers `[count, Dt]` that depend on `numbers` and the seed alone."""
        drawn = derived_generator(self.seed, *numbers).standard_normal((count, self.prompt_context.shape[2]))
        return torch.from_numpy(drawn).float().to(self.device)

    @torch.no_grad()
    def predict(self, batch: Batch) -> Prediction:
        states = [self.noise(STATE, side, count=self.samples) for side in (0, 1)]
        names = [batch.key[i] or batch.path[i] for i in range(len(batch))]
        context = [self.noise(CONTEXT, zlib.crc32(name.encode()), count=self.samples) for name in names]
        probability, maps = self.probabilities(batch, torch.stack(context), *states)
        top = self.top_scores(maps, batch.category)
        components = torch.stack([probability, top], dim=1) if self.image_score == "category_minmax" else None
        return Prediction((probability + top) / 2, gaussian_smooth(maps, self.sigma), score_components=components)

    def probabilities(self, batch: Batch, context: Tensor, normal: Tensor, abnormal: Tensor) -> tuple[Tensor, Tensor]:
        """Abnormal probabilities under given noise, means over the draws.

        Args:
            batch: B images.
            context: Noise `[B, R, Dt]`.
            normal: Noise `[R, Dt]`.
            abnormal: Noise `[R, Dt]`.

        Returns:
            Those of the images `[B]` and of their pixels `[B, H, W]`, not smoothed.
        """
        tokens = self.frozen_tokens(batch)
        texts = self.drawn_texts(tokens, batch.category, context, normal, abnormal)
        logits = self.image_logits(tokens, texts, stage=self.stage)
        maps = torch.stack([level.mean(dim=1) for level in self.level_maps(tokens, texts, batch.size)]).mean(dim=0)
        return (logits[:, 1] - logits[:, 0]).sigmoid().mean(dim=1), maps

    def drawn_texts(
        self, tokens: Tokens, categories: Sequence[str], context: Tensor, normal: Tensor, abnormal: Tensor
    ) -> Tensor:
        """Texts `[B, 2, R b, C]` under noise as of `probabilities`."""
        count, draws = context.shape[:2]
        repeated = tokens["cls"].float().repeat_interleave(draws, dim=0)
        offsets = self.flow_context.draw(self.head_context, repeated, context.flatten(0, 1)).end
        states = [
            flow.draw(self.head_state, noise).end
            for flow, noise in ((self.flow_normal, normal), (self.flow_abnormal, abnormal))
        ]
        return self.text_features(categories, offsets.unflatten(0, (count, draws)), *states)

    def top_scores(self, maps: Tensor, categories: Sequence[str]) -> Tensor:
        """Means `[B]` of the largest values of maps `[B, H, W]`, of as many as `top_k` says."""
        few = self.texts["top_20"] if self.top_k == "published" else None
        return torch.stack([top_score(one, category, few) for one, category in zip(maps, categories, strict=True)])

    def category_scores(self, components: Tensor) -> Tensor:
        """Published image scores of all test images of a category from probabilities and the maps' part `[n, 2]`."""
        low, high = components.amin(dim=0), components.amax(dim=0)
        return ((components - low) / (high - low + 1e-8)).mean(dim=1)

    # ---- learning ----------------------------------------------------------------------------------------------------

    def parameter_groups(self) -> list[dict[str, Any]]:
        """All parameters by their rates."""
        return self.stages.groups(self.learnable())

    def configure_optimizers(self) -> Any:
        """Adam; warm-up and cosine in stage 1, constant rates in stage 2."""
        optimizer = super().configure_optimizers()
        if self._trainer is None:  # tried out before training
            return optimizer
        schedule = schedule_of(optimizer, self.stages, self.trainer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Those of stage 1 in its epochs, then the cross entropy of stage 2; each step with one drawn pair of prompts."""
        numbers = (self.current_epoch, *batch.index[:1].tolist())
        context = torch.cat([self.noise(CONTEXT, self.current_epoch, i, count=1) for i in batch.index.tolist()])
        states = [self.noise(STATE, side, *numbers, count=1) for side in (0, 1)]
        pair = int(derived_generator(self.seed, PAIR, *numbers).integers(len(self.prompt_context)))
        if self.current_epoch < self.stages.first_in_run:
            return self.first_losses(batch, context, *states, pair=pair)
        return self.second_losses(batch, context, *states, pair=pair)

    def first_losses(self, batch: Batch, context: Tensor, *states: Tensor, pair: int) -> dict[str, Tensor]:
        """Stage 1, under noise `[B, Dt]` of the context and `[1, Dt]` of the states."""
        tokens, values = self.frozen_tokens(batch), {}
        draws = self.draws(tokens, context, *states)
        texts = self.text_features(batch.category, draws[0].end[:, None], draws[1].end, draws[2].end)
        if wants_masks(self.terms):
            mask = training_mask(batch.mask, batch.path, self.terms)
            maps = [level[:, pair] for level in self.level_maps(tokens, texts, (mask.shape[-2], mask.shape[-1]))]
            values = map_losses(self.terms, torch.stack(maps), mask, dice_of_normal=False)
        if "ce" in self.terms:
            values["ce"] = self.image_loss(tokens, texts, batch.label, pair=pair, stage=1)
        if "kl" in self.terms:
            values["kl"] = divergences(draws, self.terms["kl"], published=self.state_log_det == "published").sum()
        if (term := self.terms.get("texts")) is not None:
            values["texts"] = term(texts[:, 0]) + term(texts[:, 1])
        return values

    def second_losses(self, batch: Batch, context: Tensor, *states: Tensor, pair: int) -> dict[str, Tensor]:
        """Stage 2: the cross entropy alone, which reaches the mappings and the feature of the patches."""
        tokens = self.frozen_tokens(batch)
        with torch.no_grad():
            texts = self.drawn_texts(tokens, batch.category, context[:, None], *states)
        return {"ce": self.image_loss(tokens, texts, batch.label, pair=pair, stage=2)}

    def image_loss(self, tokens: Tokens, texts: Tensor, label: Tensor, *, pair: int, stage: int) -> Tensor:
        """Cross entropy of the image logits of one pair of prompts."""
        logits = self.image_logits(tokens, texts, stage=stage)[:, :, pair]
        return self.terms["ce"]((logits[:, 1] - logits[:, 0]).sigmoid(), label).mean()

    def draws(self, tokens: Tokens, context: Tensor, normal: Tensor, abnormal: Tensor) -> list[Draw]:
        """The draws of context `[B, Dt]` and states `[1, Dt]`."""
        first = self.flow_context.draw(self.head_context, tokens["cls"].float(), context)
        states = ((self.flow_normal, normal), (self.flow_abnormal, abnormal))
        return [first, *(flow.draw(self.head_state, noise) for flow, noise in states)]
