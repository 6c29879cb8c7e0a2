"""FiLo: fine-grained defect descriptions in learned sentences, a detector's boxes, and convolutions of several shapes.

Gu, Zhu, Zhu, Chen, Li, Tang, Wang, "FiLo: Zero-Shot Anomaly Detection by Fine-Grained Description and High-Quality
Localization", ACM MM 2024, arXiv 2404.13671; published code, state of 2024-07-25. The defaults are the published code's. The
paper's readings: `token_capture: per_layer`, `pair_norm: false`, `score: softmax`, `map_norm: minmax`, `training: joint`,
`mmci.fuse: similarities`, and in the loss config `dice.over: image`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from anomaly_vlm.backbone import ClipBackbone
from anomaly_vlm.data.types import Batch
from anomaly_vlm.detectors import Detector, MapDetector, caption_of
from anomaly_vlm.errors import UserError, unknown_choice
from anomaly_vlm.losses import PROBABILITY
from anomaly_vlm.losses.maps import map_losses, training_mask
from anomaly_vlm.methods.base.detections import UsesDetections
from anomaly_vlm.methods.base.frozen_tokens import FrozenTokens
from anomaly_vlm.methods.base.prediction import Prediction
from anomaly_vlm.methods.filo.boxes import Located, Locator
from anomaly_vlm.methods.filo.heads import Adapter, Heads, TokenList
from anomaly_vlm.methods.filo.mmci import KERNELS
from anomaly_vlm.methods.filo.texts import DefectTexts, PromptLearner, RawTexts, Sentences, embed
from anomaly_vlm.methods.shared.maps import to_grid, upsample

log = logging.getLogger("anomaly_vlm")
CHOICES = {
    "token_capture": ("reference", "per_layer"),
    "score": ("raw", "softmax"),
    "map_norm": ("none", "minmax"),
    "training": ("staged", "joint"),
    "mmci.fuse": ("features", "similarities"),
}
PARTS = ("fg_des", "grounding", "position_prompt", "mmci", "adapter")  # what the paper's ablations leave out


def first_stage(epochs: int | None, first: int, second: int) -> int:
    """Epochs of stage 1; a run shorter than both stages keeps their proportion, with at least one epoch of each."""
    if first < 0 or second < 0 or first + second == 0:
        raise UserError(f"method.stage1_epochs {first}, stage2_epochs {second}: give numbers of epochs, not both 0")
    if second == 0 or first == 0 or epochs is None or epochs >= first + second:
        return first
    return min(max(1, round(epochs * first / (first + second))), max(1, epochs - 1))


def probabilities(logits: Sequence[Tensor]) -> Tensor:
    """Logits of each head [branches, B, H, W] -> probabilities [heads, B, H, W], the mean of a head's branches."""
    return torch.stack([one.sigmoid().mean(dim=0) for one in logits])


class FiLo(FrozenTokens, UsesDetections):
    """Sentences with descriptions and positions, linear and MMCI heads on frozen tokens, an adapter, boxes.

    Learned: contexts and their meta nets, heads (stage 1), adapter (stage 2). Frozen: both towers.

    Args:
        backbone: frozen towers (paper: OpenAI ViT-L/14@336 at 518 px, exact GELU, bicubic position grid).
        descriptions: table of texts, see `DefectTexts`. class_list, class_text: which of it.
        generic_descriptions: of categories that the table lacks.
        detector: boxes for test images; a `MapDetector` takes them from the method's own map; None: no position, no damping.
        without: parts left out, for ablations: `fg_des` (sentences have the general states alone), `grounding` (no boxes),
            `position_prompt` (sentences name no position, boxes still damp the map), `mmci` (linear heads alone), `adapter`.
        layers: tapped 1-based vision blocks, one of them plain; None: the quarters of the depth.
        n_plain: first blocks without V-V path; None: a quarter.
        token_capture: `reference`: what the published code holds under the layers' names (one final V-V state; outputs plus
            the next block's attention), which the released weights need; `per_layer`: each layer's own (paper).
        n_ctx: context tokens. kernels: (height, width) of MMCI's branches.
        mmci: `fuse`: the branches' `features` are summed (code), or their `similarities` averaged (paper).
        adapter_reduction, adapter_temperature: its bottleneck; of its cross entropy.
        logit_scale: of map logits. pair_norm: texts are divided by the norm of the pair too, sqrt(2) (code).
        gaussian: `kernel`, `sigma` of the blur on each map. outside_factor: of the map outside all boxes.
        map_norm: `minmax` scales each head's map to [0, 1] (paper).
        score: image part `raw` similarity (code) or its `softmax` (paper).
        box_threshold, text_threshold, area_threshold: which boxes, which words of the caption.
        phrase_match, score_cut, cells, clip_boxes: see `filo_boxes`; the first choice of each is the code's.
        training: `staged` (code) or `joint`: all terms in every epoch (paper).
        epochs: of the run. stage1_epochs, stage2_epochs: a shorter run keeps their proportion.
        lr_heads, lr_prompts, lr_adapter: rates of the parameter groups.
        base: see `AnomalyMethod`.

    Reference: sections 3.2-3.4.
    """

    loss_terms: ClassVar[dict[str, frozenset[str]]] = {
        "focal": PROBABILITY,
        "dice": frozenset({"dice"}),
        "image": PROBABILITY,
    }

    def __init__(
        self,
        backbone: ClipBackbone,
        *,
        descriptions: Mapping[str, Any],
        class_list: str | None = None,
        class_text: Literal["last", "own"] = "last",
        generic_descriptions: Sequence[str] = (),
        detector: Detector | MapDetector | None = None,
        without: Sequence[str] = (),
        layers: Sequence[int] | None = None,
        n_plain: int | None = None,
        token_capture: Literal["reference", "per_layer"] = "reference",
        n_ctx: int = 12,
        kernels: Sequence[Sequence[int]] = KERNELS,
        mmci: Mapping[str, Any] | None = None,
        adapter_reduction: int = 2,
        adapter_temperature: float = 0.07,
        logit_scale: float = 100.0,
        pair_norm: bool = True,
        gaussian: Mapping[str, float] | None = None,
        outside_factor: float = 0.7,
        map_norm: Literal["none", "minmax"] = "none",
        score: Literal["raw", "softmax"] = "raw",
        box_threshold: float = 0.25,
        text_threshold: float = 0.25,
        area_threshold: float = 0.7,
        phrase_match: Literal["reference", "casefold"] = "reference",
        score_cut: int | Literal["none"] = 2,
        cells: Literal["reference", "thirds"] = "reference",
        clip_boxes: bool = False,
        training: Literal["staged", "joint"] = "staged",
        epochs: int | None = None,
        stage1_epochs: int = 15,
        stage2_epochs: int = 5,
        lr_heads: float = 1e-4,
        lr_prompts: float = 1e-3,
        lr_adapter: float = 1e-5,
        **base: Any,
    ) -> None:
        super().__init__(backbone, detector=None if "grounding" in without else detector, **base)
        fuse = {"fuse": "features", **(mmci or {})}
        blur = {"kernel": 3, "sigma": 4.0, **(gaussian or {})}
        given = (token_capture, score, map_norm, training, fuse["fuse"])
        for (name, known), value in zip(CHOICES.items(), given, strict=True):
            if value not in known:
                raise unknown_choice(f"method.{name}", str(value), known)
        if wrong := [key for key in fuse if key != "fuse"]:
            raise unknown_choice("key of method.mmci", wrong[0], ["fuse"])
        if wrong := [part for part in without if part not in PARTS]:
            raise unknown_choice("part in method.without", str(wrong[0]), PARTS)
        if int(blur["kernel"]) % 2 == 0 or blur["sigma"] <= 0:
            raise UserError(f"method.gaussian {blur}: give an odd kernel and a sigma above 0")
        if n_ctx < 1 or min(adapter_temperature, logit_scale) <= 0:
            raise UserError("method: give n_ctx of at least 1, adapter_temperature and logit_scale above 0")

        self.texts = DefectTexts(
            descriptions,
            class_list=class_list,
            class_text=class_text,
            generic=generic_descriptions,
            fine_grained="fg_des" not in without,
        )
        self.sentences = Sentences(self.texts, n_ctx, positioned="position_prompt" not in without)
        self.layers = backbone.checked_layers(sorted(layers or backbone.quarters))
        self.n_plain = round(backbone.num_layers / 4) if n_plain is None else n_plain
        if not 0 <= self.n_plain < backbone.num_layers:
            raise UserError(f"method.n_plain is {n_plain}: {backbone.name} has {backbone.num_layers} vision blocks")
        self.pair_norm, self.logit_scale, self.adapter_temperature = pair_norm, logit_scale, adapter_temperature
        self.blur, self.sigma = int(blur["kernel"]), float(blur["sigma"])
        self.map_norm, self.score_kind, self.joint = map_norm, score, training == "joint"
        self.locator = Locator(
            box_threshold=box_threshold,
            text_threshold=text_threshold,
            area_threshold=area_threshold,
            phrase_match=phrase_match,
            score_cut=score_cut,
            cells=cells,
            outside_factor=outside_factor,
            clip_boxes=clip_boxes,
        )
        self.rates = {"heads": lr_heads, "prompts": lr_prompts, "adapter": lr_adapter}
        self.stage1_epochs = first_stage(epochs, stage1_epochs, stage2_epochs)
        if epochs == 1 and "adapter" not in without and stage1_epochs and stage2_epochs and not self.joint:
            log.warning("epochs=1 trains the heads alone: the adapter keeps its random start; give 2 or more")

        self.token_list = TokenList(self.layers, self.n_plain, as_held=token_capture == "reference")
        dim = backbone.embed_dim
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.normal = PromptLearner(n_ctx, dim, backbone.text_width)
            self.abnormal = PromptLearner(n_ctx, dim, backbone.text_width)
            self.heads = Heads(
                self.token_list.names,
                backbone.width,
                dim,
                kernels,
                mmci="mmci" not in without,
                similarities=fuse["fuse"] == "similarities",
            )
            self.adapter = None if "adapter" in without else Adapter(dim, adapter_reduction)

    # ---- image tower: frozen -----------------------------------------------------------------------------------------

    def cache_key(self) -> dict[str, Any]:
        listed = self.token_list
        return {"entries": listed.names, "n_plain": listed.n_plain, "as_held": listed.as_held, "cls": "projected"}

    def encode_frozen(self, images: Tensor) -> dict[str, Tensor]:
        """`cls` [M, C] (`ln_post`, projected) and the distinct tokens of the list [M, N, Dv]."""
        return self.token_list.encode(self.backbone, images)

    def feature(self, cls: Tensor, *, adapted: bool) -> Tensor:
        """Global feature [B, C], unit norm."""
        cls = cls.to(self.normal.ctx.dtype)
        return F.normalize(self.adapter(cls) if adapted and self.adapter is not None else cls, dim=-1)

    def invalidate_caches(self) -> None:
        self.heads.forget()

    # ---- sentences: FG-Des -------------------------------------------------------------------------------------------

    def raw_texts(
        self, categories: Sequence[str], feature: Tensor, positions: Sequence[int | None] | None = None
    ) -> list[RawTexts]:
        """Features of each image's sentences, conditioned on its global feature [B, C].

        Only those of its position where one is chosen. Images with the same sentences are encoded together.
        """
        chosen = list(positions or [None] * len(categories))
        context = {"normal": self.normal(feature), "abnormal": self.abnormal(feature)}
        rows: dict[tuple[str, int | None], list[int]] = {}
        for i, key in enumerate(zip(categories, chosen, strict=True)):
            rows.setdefault(key, []).append(i)
        texts: dict[int, RawTexts] = {}
        for (category, position), members in rows.items():
            encoded = {}
            for kind, learned in context.items():
                tree = self.sentences.tree(self.backbone, category, kind, position)
                encoded[kind] = self.backbone.encode_tree(tree, embed(self.backbone, tree, learned[members])).float()
            count = len(self.texts.states(category)[1])
            for row, i in enumerate(members):
                texts[i] = RawTexts(encoded["normal"][row], encoded["abnormal"][row].unflatten(0, (count, -1)))
        return [texts[i] for i in range(len(categories))]

    def pairs(self, texts: Sequence[RawTexts], positions: Sequence[int | None] | None = None) -> Tensor:
        """Normal and abnormal text of each image [B, 2, C]: means of unit features, over states and positions, or at one of
        the nine."""
        both = []
        for one, position in zip(texts, positions or [None] * len(texts), strict=True):
            abnormal = one.abnormal if position is None else one.abnormal[:, position : position + 1]
            means = [F.normalize(part, dim=-1).mean(dim=0) for part in (one.normal, abnormal.flatten(0, 1))]
            both.append(F.normalize(torch.stack(means), dim=-1))
        pairs = torch.stack(both)
        return pairs / 2**0.5 if self.pair_norm else pairs

    def similarity(self, feature: Tensor, pairs: Tensor) -> Tensor:
        """[B, C], [B, 2, C] -> similarities (normal, abnormal) [B, 2]."""
        return torch.einsum("bc,bkc->bk", feature.float(), pairs)

    # ---- maps --------------------------------------------------------------------------------------------------------

    def map_logits(
        self, heads: Sequence[Tensor], pairs: Tensor, grid: tuple[int, int], size: tuple[int, int]
    ) -> list[Tensor]:
        """Abnormal minus normal logit of each head at every pixel [branches, B, H, W]: of two logits only the difference
        matters. Logits are upsampled, not probabilities."""
        toward = self.logit_scale * (pairs[:, 1] - pairs[:, 0])  # [B, C]
        logits = [to_grid(torch.einsum("kbnc,bc->kbn", head, toward), grid) for head in heads]
        return [upsample(one, size, align_corners=True) for one in logits]

    def smooth(self, maps: Tensor) -> Tensor:
        """Blur of maps [..., H, W]."""
        return gaussian_blur(maps, [self.blur, self.blur], [self.sigma, self.sigma])

    def joined(self, maps: Tensor) -> Tensor:
        """One map [B, H, W] of the heads' maps: each blurred, then their mean."""
        if self.map_norm == "none":
            return self.smooth(maps.mean(dim=0))  # the mean of blurred maps is the blurred mean
        smooth = self.smooth(maps)
        low, high = smooth.amin(dim=(-2, -1), keepdim=True), smooth.amax(dim=(-2, -1), keepdim=True)
        return ((smooth - low) / (high - low).clamp_min(1e-12)).mean(dim=0)

    # ---- boxes: HQ-Loc -----------------------------------------------------------------------------------------------

    def captions(self, category: str) -> tuple[str, ...]:
        words = self.texts.detector_words(category)
        return (caption_of(words, separator=self.texts.words["detector"]["separator"]),)

    def located(self, batch: Batch) -> list[Located]:
        """Boxes and positions by what the detector found in these images beforehand."""
        places = []
        for path, category in zip(batch.path, batch.category, strict=True):
            (caption,), words = self.captions(category), self.texts.detector_words(category)
            places.append(self.locator.by_queries(self.detections_for(path, caption), words, batch.size))
        return places

    # ---- prediction --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def predict(self, batch: Batch) -> Prediction:
        tokens, size, grid = self.frozen_tokens(batch), batch.size, self.grid(batch)
        feature = self.feature(tokens["cls"], adapted=True)
        heads = self.heads(tokens, grid)
        places = self.located(batch) if isinstance(self.detector, Detector) else None
        texts = self.raw_texts(batch.category, feature, None if places is None else [p.position for p in places])
        pairs = self.pairs(texts)
        heat = self.joined(probabilities(self.map_logits(heads, pairs, grid, size)))
        if isinstance(self.detector, MapDetector):
            places = [self.locator.by_boxes(self.detector.boxes(m), batch.size) for m in heat]
            if self.sentences.positioned:
                pairs = self.pairs(texts, [p.position for p in places])  # the rows of all nine positions are there
                heat = self.joined(probabilities(self.map_logits(heads, pairs, grid, size)))
        score = self.image_score(self.similarity(feature, pairs), heat)
        if places is None:
            return Prediction(score, heat)
        damped = torch.stack([self.locator.damped(m, place.found) for m, place in zip(heat, places, strict=True)])
        return Prediction(score, damped, tuple(place.found.boxes[place.found.valid] for place in places))

    def image_score(self, similarity: Tensor, heat: Tensor) -> Tensor:
        """[B] of similarities [B, 2] and maps [B, H, W] before any box."""
        abnormal = similarity[:, 1]
        if self.score_kind == "softmax":
            abnormal = (similarity / self.adapter_temperature).softmax(dim=-1)[:, 1]
        return (abnormal + heat.flatten(1).amax(dim=1)) / 2

    def grid(self, batch: Batch) -> tuple[int, int]:
        rows, columns = (side // self.backbone.patch_size for side in batch.size)
        return rows, columns

    def display_name(self, name: str) -> str:
        """Results that the paper's detector had no part in say so."""
        if self.detector is None:
            return f"{name} (no detector)"
        return f"{name} ({self.detector.name})" if self.detector.replaces else name

    # ---- training ----------------------------------------------------------------------------------------------------

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Heads, prompts and adapter, each with its rate."""
        wanted = set() if self.stage1_epochs == 0 else {"focal", "dice"}
        if wanted and not wanted & self.terms.keys():
            raise UserError("the loss has neither 'focal' nor 'dice', which stage 1 needs: choose loss=filo")
        if self.adapter is not None and "image" not in self.terms:
            raise UserError(
                "the loss has no term 'image', which trains the adapter: choose loss=filo, or method.without=[adapter]"
            )
        groups: dict[str, list[nn.Parameter]] = {name: [] for name in self.rates}
        for name, parameter in self.learnable().items():
            kind = {"normal": "prompts", "abnormal": "prompts", "adapter": "adapter"}.get(name.split(".")[0], "heads")
            groups[kind].append(parameter)
        return [{"params": members, "lr": self.rates[kind]} for kind, members in groups.items() if members]

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        if self.joint:
            return {**self.map_terms(batch, adapted=True), **self.image_term(batch, through_text=True)}
        if self.current_epoch < self.stage1_epochs or self.adapter is None:
            return self.map_terms(batch, adapted=False)
        return self.image_term(batch, through_text=False)

    def on_train_epoch_end(self) -> None:
        """Without an adapter stage 2 has nothing to train: the run ends with stage 1."""
        if self.adapter is None and not self.joint and self.current_epoch + 1 >= self.stage1_epochs:
            self.trainer.should_stop = True

    def map_terms(self, batch: Batch, *, adapted: bool) -> dict[str, Tensor]:
        """Stage 1: focal and dice of each head's map, over all nine positions."""
        if not {"focal", "dice"} & self.terms.keys():
            return {}
        tokens, mask, grid = (
            self.frozen_tokens(batch),
            training_mask(batch.mask, batch.path, self.terms),
            self.grid(batch),
        )
        feature = self.feature(tokens["cls"], adapted=adapted)
        pairs = self.pairs(self.raw_texts(batch.category, feature))
        logits = self.map_logits(self.heads(tokens, grid), pairs, grid, (mask.shape[-2], mask.shape[-1]))
        normal = probabilities([-one for one in logits])  # near 0 it has digits that 1 minus the abnormal one lost
        return map_losses(self.terms, probabilities(logits), mask, normal=normal)

    def image_term(self, batch: Batch, *, through_text: bool) -> dict[str, Tensor]:
        """Stage 2: cross entropy of the adapted global feature. Its sentences follow it, without gradient when staged."""
        if "image" not in self.terms:
            return {}
        feature = self.feature(self.frozen_tokens(batch)["cls"], adapted=True)
        with torch.set_grad_enabled(through_text and torch.is_grad_enabled()):
            pairs = self.pairs(self.raw_texts(batch.category, feature))
        prob = (self.similarity(feature, pairs) / self.adapter_temperature).softmax(dim=-1)[:, 1]
        return {"image": self.terms["image"](prob, batch.label).mean()}
