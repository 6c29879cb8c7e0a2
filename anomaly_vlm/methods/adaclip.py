"""AdaCLIP: a frozen CLIP adapted by static and dynamic prompt tokens in both towers.

Cao, Zhang, Frittoli, Cheng, Shen, Boracchi, "Adapting CLIP with Hybrid Learnable Prompts for Zero-Shot Anomaly Detection",
ECCV 2024, arXiv 2407.15795. Where paper and published code differ, the default is the code, which made the released
weights: `prompts.text_mode`, `hsf.mode`, `score_without_hsf` and, in the loss config, `dice.over` select the paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_vlm.backbone import ClipBackbone, ImageTokens, Prompts
from anomaly_vlm.data.types import Batch
from anomaly_vlm.errors import UserError, unknown_choice
from anomaly_vlm.losses import PROBABILITY
from anomaly_vlm.methods.base import AnomalyMethod, Prediction
from anomaly_vlm.methods.hsf import HybridSemanticFusion
from anomaly_vlm.methods.parts import derived_generator, fill_templates, gaussian_smooth, to_grid, upsample

PAPER_DEPTH = 4  # blocks with prompts
SCORES = ("cls", "map_max", "map_top")


class HybridPrompts(nn.Module):
    """Prompt tokens of one tower (section 3.3): static ones, learned for each depth, plus dynamic ones, a linear map of the
    image's global feature that is the same at every depth.

    Args:
        kind: `S`, `D` or `SD`.
        feature_dim: C, of the global feature. width: D, of the tower. depth: J. length: n.
    """

    def __init__(self, kind: str, feature_dim: int, width: int, depth: int, length: int) -> None:
        super().__init__()
        self.depth = depth
        self.static = (
            nn.ParameterList([torch.randn(length, width) * 0.02 for _ in range(depth)]) if "S" in kind else None
        )
        self.dynamic = nn.ModuleList([nn.Linear(feature_dim, width) for _ in range(length)]) if "D" in kind else None

    def forward(self, pooled: Tensor | None) -> list[Tensor]:
        """Global features [B, C] (None for kind `S`) -> one prompt a depth, [B, n, D], or [n, D] for kind `S`."""
        static = [] if self.static is None else list(self.static)
        if self.dynamic is None:
            return static
        dynamic = torch.stack([linear(pooled) for linear in self.dynamic], dim=1)  # [B, n, D]
        return [s + dynamic for s in static] or [dynamic] * self.depth


@dataclass
class Features:
    """What the adapted towers make of a batch.

    Attributes:
        patches: [layers, B, N, C] projected patch tokens, unit norm. cls: [B, C] class token, unit norm.
        text: [B, C, 2] texts (normal, abnormal), unit norm. grid: rows and columns of patches.
    """

    patches: Tensor
    cls: Tensor
    text: Tensor
    grid: tuple[int, int]


class AdaCLIP(AnomalyMethod):
    """Hybrid prompts in both towers, linear projections of patches and class token, semantic fusion (HSF).

    Learned: prompts and projections. Frozen: CLIP. Parameters are initialised from `seed`.

    Args:
        backbone: frozen towers (paper: OpenAI ViT-L/14@336 at 518 px, run with exact GELU).
        states_normal, states_abnormal, templates: prompt ensemble; `{}` takes the class word, then the state.
        layers: 1-based vision blocks whose patches are compared with the texts (paper: 6, 12, 18, 24).
        prompts: `branch`: towers with prompts, subset of `VL` (V image, L text); `type`: `S`, `D`, `SD` or empty; `depth`:
            blocks that get prompts (None: 4, the paper's, or as many as the shallower tower has); `length`: tokens (5);
            `text_mode`: `overwrite` the sentence's first words from block 1 on (code), or `insert` behind the start token
            from block 0 on (paper).
        projection: `linear` layers, learned, or CLIP's own frozen `clip` projection (paper, appendix 5).
        temperature: of the similarities (0.01).
        hsf: options of `HybridSemanticFusion`.
        score_without_hsf: image score with HSF off: `cls` (code), the maximum of the map, `map_max` (paper), or `map_top`,
            the probability of the mean logit over the `top_share` of patches with the largest ones. In training the class
            token is compared in each case.
        top_share: of `map_top`, in (0, 1]; at least one patch.
        sigma: of the Gaussian on the map, in pixels at input size (4); 0 for none.
        base: see `AnomalyMethod`.

    Reference: sections 3.2-3.6; published code, state of 2024-2025.
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
        states_normal: Sequence[str],
        states_abnormal: Sequence[str],
        templates: Sequence[str],
        layers: Sequence[int],
        prompts: Mapping[str, Any],
        projection: Literal["linear", "clip"] = "linear",
        temperature: float = 0.01,
        hsf: Mapping[str, Any] | None = None,
        score_without_hsf: Literal["cls", "map_max", "map_top"] = "cls",
        top_share: float = 0.02,
        sigma: float = 4.0,
        **base: Any,
    ) -> None:
        super().__init__(backbone, **base)
        self.states, self.templates = (list(states_normal), list(states_abnormal)), list(templates)
        self.layers = backbone.checked_layers(layers)
        if projection not in ("linear", "clip"):
            raise unknown_choice("method.projection", str(projection), ["linear", "clip"])
        if score_without_hsf not in SCORES:
            raise unknown_choice("method.score_without_hsf", str(score_without_hsf), SCORES)
        if not 0 < top_share <= 1:
            raise UserError(f"method.top_share is {top_share}: give a share of the patches above 0, up to 1")
        self.top_share = top_share
        self.temperature, self.score_without_hsf, self.sigma = temperature, score_without_hsf, sigma
        self.hsf = HybridSemanticFusion(**(hsf or {}))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self._build_prompts(**prompts)
            width, dim = backbone.width, backbone.embed_dim
            linear = projection == "linear"
            self.patch_projection = nn.ModuleList([nn.Linear(width, dim) for _ in self.layers]) if linear else None
            self.cls_projection = nn.Linear(dim, dim) if linear else None
        self._sentences: dict[str, tuple[Tensor, Tensor]] = {}  # class word -> tokens, states behind text block 0
        self._texts: dict[str, Tensor] = {}  # category -> [C, 2], while the learned values stand still
        self._pooled: dict[str, Tensor] = {}  # image key -> unprompted global feature [C]

    def _build_prompts(
        self, branch: str, type: str, depth: int | None, length: int, text_mode: str = "overwrite"
    ) -> None:
        if set(branch) - set("VL"):
            raise unknown_choice("method.prompts.branch", branch, ["VL", "V", "L", ""])
        if type not in ("SD", "S", "D", ""):
            raise unknown_choice("method.prompts.type", type, ["SD", "S", "D", ""])
        if text_mode not in ("overwrite", "insert"):
            raise unknown_choice("method.prompts.text_mode", text_mode, ["overwrite", "insert"])
        clip = self.backbone
        deepest = min(clip.num_layers, clip.num_text_layers)
        depth = min(PAPER_DEPTH, deepest) if depth is None else depth
        if not 1 <= depth <= deepest or length < 1:
            raise UserError(f"method.prompts: depth {depth}, length {length}: give a depth of 1 to {deepest} (the blocks of"
                            f" {clip.name}) and a length of at least 1")  # fmt: skip
        self.prompt_length, self.text_mode = length, text_mode
        make = partial(HybridPrompts, type, clip.embed_dim, depth=depth, length=length)
        self.image_prompts = make(clip.width) if "V" in branch and type else None
        self.text_prompts = make(clip.text_width) if "L" in branch and type else None
        self.needs_pooled = "D" in type and bool(branch)

    # ---- towers ------------------------------------------------------------------------------------------------------

    def features(self, batch: Batch) -> Features:
        """Both towers on a batch: section 3.3 and 3.4."""
        tokens, pooled = self._image_tokens(batch)
        projected = [
            self.backbone.project(patches) if self.patch_projection is None else self.patch_projection[i](patches)
            for i, patches in enumerate(tokens.patches)
        ]
        cls = tokens.cls if self.cls_projection is None else self.cls_projection(tokens.cls)
        return Features(
            patches=F.normalize(torch.stack(projected).float(), dim=-1),
            cls=F.normalize(cls.float(), dim=-1),
            text=self.encode_text(batch.category, pooled),
            grid=tokens.grid,
        )

    def _image_tokens(self, batch: Batch) -> tuple[ImageTokens, Tensor]:
        """The prompted image tower on a batch, and the unprompted global features [B, C]."""
        if self.backbone.has_stem:  # what the prompts meet behind it is frozen, and comes from the token cache
            frozen = self.frozen(batch)
            embedded: Tensor = frozen["embedded"]
            pooled: Tensor | None = frozen["cls"]
            grid = (batch.size[0] // self.backbone.patch_size, batch.size[1] // self.backbone.patch_size)
        else:
            embedded, grid = self.backbone.embed_image(batch.image)
            pooled = self._global_features(batch) if self.needs_pooled and self.image_prompts is not None else None
        tokens = self.encode_embedded(embedded, grid, pooled)
        # without image prompts the tower's own class token is the unprompted one
        return tokens, tokens.cls if pooled is None else pooled

    def frozen_facts(self) -> dict[str, Any] | None:
        """The patch embedding and the global feature where a stem makes them worth keeping."""
        return {"embedded": True} if self.backbone.has_stem else None

    def encode_frozen(self, images: Tensor) -> dict[str, Tensor]:
        """`embedded` [M, 1 + N, Dv], the input of the tower behind its stem; `cls` [M, C], its global feature."""
        embedded, grid = self.backbone.embed_image(images)
        return {"embedded": embedded, "cls": self.backbone.encode_embedded(embedded, grid).cls}

    def _global_features(self, batch: Batch) -> Tensor:
        """Unprompted frozen global features u [B, C], computed once an image."""
        known = [None if key is None else self._pooled.get(key) for key in batch.key]
        missing = [i for i, feature in enumerate(known) if feature is None]
        if missing:
            with torch.no_grad():
                fresh = self.backbone.encode_image(batch.image[missing]).cls
            for i, feature in zip(missing, fresh, strict=True):
                known[i] = feature
                if (key := batch.key[i]) is not None:
                    self._pooled[key] = feature.cpu()
        return torch.stack([feature.to(batch.image.device) for feature in known if feature is not None])

    def encode_image(self, images: Tensor, pooled: Tensor | None) -> ImageTokens:
        """Image tower with its prompts appended behind the patches at block 0 and replaced up to depth J."""
        return self.encode_embedded(*self.backbone.embed_image(images), pooled)

    def encode_embedded(self, embedded: Tensor, grid: tuple[int, int], pooled: Tensor | None) -> ImageTokens:
        """`encode_image` from the patch embedding [B, 1 + N, Dv]."""
        if self.image_prompts is None:
            with torch.no_grad():
                return self.backbone.encode_embedded(embedded, grid, layers=self.layers)
        prompts = Prompts(self.image_prompts(pooled))
        return self.backbone.encode_embedded(embedded, grid, layers=self.layers, prompts=prompts)

    def encode_text(self, categories: Sequence[str], pooled: Tensor | None) -> Tensor:
        """Text features [B, C, 2] of each image's class word: mean over the sentences of each side, unit norm.

        Sentences are encoded in one call; once a category where they do not depend on the image.
        """
        if self.text_prompts is not None and self.text_prompts.dynamic is not None:
            return self._ensemble(categories, self.text_prompts(pooled))
        fixed = self.text_prompts is None
        learning = torch.is_grad_enabled() and not fixed
        known = {} if learning else self._texts
        unknown = [category for category in dict.fromkeys(categories) if category not in known]
        if unknown:
            with torch.set_grad_enabled(learning):
                texts = self._ensemble(unknown, None if self.text_prompts is None else self.text_prompts(None))
            known.update(zip(unknown, texts, strict=True))
        return torch.stack([known[category] for category in categories])

    def _ensemble(self, categories: Sequence[str], prompts: list[Tensor] | None) -> Tensor:
        """Sentences of every entry of `categories` in one batch; prompts [B, n, Dt], [n, Dt] or none -> [B, C, 2]."""
        first, overwrite = (1, True) if self.text_mode == "overwrite" else (0, False)
        entries = [self._sentence_states(category) for category in categories]
        longest = max(tokens.shape[1] for tokens, _ in entries)
        tokens = torch.cat([F.pad(tokens, (0, longest - tokens.shape[1])) for tokens, _ in entries])
        states = torch.cat([F.pad(states, (0, 0, 0, longest - states.shape[1])) for _, states in entries])
        entering = None
        if prompts is not None:
            count = len(tokens) // len(entries)
            spread = [p if p.ndim == 2 else p.repeat_interleave(count, dim=0) for p in prompts]
            entering = Prompts(spread[first:], first_block=first, place="start", insert=not overwrite)
            if overwrite and not spread[first:]:
                entering = None  # depth 1: the code's text prompts would start at block 1
        encoded = self.backbone.encode_text(tokens, states=states, first_block=first, prompts=entering)
        encoded = F.normalize(encoded.float(), dim=-1).unflatten(0, (len(entries), -1))  # [B, sentences, C]
        border = len(self.states[0]) * len(self.templates)
        sides = [encoded[:, :border].mean(dim=1), encoded[:, border:].mean(dim=1)]
        return F.normalize(torch.stack(sides, dim=-1), dim=1)

    def sentences(self, category: str) -> tuple[list[str], list[str]]:
        """The normal and the abnormal sentences about a category; `-` in its name becomes a blank."""
        word = category.replace("-", " ")
        normal, abnormal = (fill_templates(self.templates, states, word) for states in self.states)
        return normal, abnormal

    def _sentence_states(self, category: str) -> tuple[Tensor, Tensor]:
        """Token ids [sentences, T] and what depends on nothing learned: the input of block 1 (of block 0 for `insert`)."""
        if category not in self._sentences:
            normal, abnormal = self.sentences(category)
            tokens = self.backbone.tokenize(normal + abnormal)
            until = 1 if self.text_mode == "overwrite" else 0
            self._sentences[category] = (tokens, self.backbone.text_states(tokens, until=until))
        return self._sentences[category]

    # ---- scores ------------------------------------------------------------------------------------------------------

    def patch_logits(self, features: Features) -> Tensor:
        """Similarities of every layer's patches with the two texts: [layers, B, N, 2]."""
        return features.patches @ features.text / self.temperature

    def image_logits(self, features: Features, logits: Tensor, seeds: Sequence[int]) -> Tensor:
        """Similarities of the (fused) class token with the two texts: [B, 2]."""
        cls = features.cls
        if self.hsf.enabled:
            prob = logits.detach().mean(dim=0).softmax(dim=-1)[..., 1]  # [B, N]
            cls = self.hsf.fuse(self.hsf.feature(features.patches, prob, seeds), cls)
        return torch.einsum("bc,bck->bk", cls, features.text) / self.temperature

    def layer_maps(self, logits: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """Abnormal probability [layers, B, H, W]. Two-class softmax is the sigmoid of the difference and upsampling is
        linear, so one channel is enough."""
        return upsample(to_grid(logits[..., 1] - logits[..., 0], grid), size, align_corners=True).sigmoid()

    def top_score(self, logits: Tensor) -> Tensor:
        """Image score [B] of `map_top` from similarities [layers, B, N, 2]."""
        margin = (logits[..., 1] - logits[..., 0]).mean(dim=0)
        count = max(1, round(self.top_share * margin.shape[1]))
        return margin.topk(count, dim=1).values.mean(dim=1).sigmoid()

    def _seeds(self, batch: Batch, epoch: int | None) -> list[int]:
        """One k-means seed an image, from (seed, epoch, index) in training and (seed, index) in evaluation."""
        when = [] if epoch is None else [epoch + 1]
        return [int(derived_generator(self.seed, *when, i).integers(2**31)) for i in batch.index.tolist()]

    @torch.no_grad()
    def predict(self, batch: Batch) -> Prediction:
        features = self.features(batch)
        logits = self.patch_logits(features)
        size = batch.size
        raw = self.layer_maps(logits.mean(dim=0, keepdim=True), features.grid, size)[0]
        smooth = gaussian_smooth(raw, self.sigma)
        if not self.hsf.enabled and self.score_without_hsf == "map_max":
            return Prediction(smooth.flatten(1).amax(dim=1), smooth)
        if not self.hsf.enabled and self.score_without_hsf == "map_top":
            return Prediction(self.top_score(logits), smooth)
        score = self.image_logits(features, logits, self._seeds(batch, None)).softmax(dim=-1)[:, 1]
        return Prediction(score, smooth)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        features = self.features(batch)
        logits = self.patch_logits(features)
        values = {}
        if "focal_image" in self.terms:
            prob = self.image_logits(features, logits, self._seeds(batch, self.current_epoch)).softmax(dim=-1)[:, 1]
            values["focal_image"] = self.terms["focal_image"](prob, batch.label).mean()
        if "focal" in self.terms or "dice" in self.terms:
            mask = self.training_mask(batch)
            maps = self.layer_maps(logits, features.grid, (mask.shape[-2], mask.shape[-1]))
            values.update(self.map_losses(maps, mask))
        return values

    # ---- caches of what depends on learned values, checkpoints -------------------------------------------------------

    def forget(self) -> None:
        """Drops everything computed once for an image, a category or a run."""
        self._sentences, self._texts, self._pooled = {}, {}, {}

    def forget_learned(self) -> None:
        self._texts = {}

    OFFICIAL: ClassVar[dict[str, str]] = {
        "text_prompts.static.": "text_prompter.static_prompts.",
        "image_prompts.static.": "visual_prompter.static_prompts.",
        "text_prompts.dynamic.": "dynamic_text_prompt_generator.head.",
        "image_prompts.dynamic.": "dynamic_visual_prompt_generator.head.",
        "patch_projection.": "patch_token_layer.head.",
        "cls_projection.": "cls_token_layer.head.0.",
    }

    def official_name(self, name: str) -> str:
        for own, official in self.OFFICIAL.items():
            if name.startswith(own):
                return "clip_model." + official + name.removeprefix(own)
        raise KeyError(name)

    def official_ignored(self, key: str) -> bool:
        """Type D keeps the generator of a branch without prompts, unused."""
        unused = {
            "dynamic_text_prompt_generator": self.text_prompts,
            "dynamic_visual_prompt_generator": self.image_prompts,
        }
        return any(key.startswith(f"clip_model.{name}.") and prompts is None for name, prompts in unused.items())
