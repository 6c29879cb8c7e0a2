"""FiLo: fine-grained defect descriptions in learned sentences, a detector's boxes, and convolutions of several shapes.

Gu, Zhu, Zhu, Chen, Li, Tang, Wang, "FiLo: Zero-Shot Anomaly Detection by Fine-Grained Description and High-Quality
Localization", ACM MM 2024, arXiv 2404.13671; published code, state of 2024-07-25. The defaults are those of the published
code, which made the released weights. Where the paper's text differs an option has the value `paper`: `token_capture`,
`texts.class_text`, `texts.pair_norm`, `mmci.fuse`, `maps.scaling`, `score` and `stages.schedule`; and in the loss
configuration `dice.over` is `image`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_vlm.backbone import ClipBackbone
from anomaly_vlm.data.types import Batch
from anomaly_vlm.detectors import Detector, MapDetector, caption_of
from anomaly_vlm.errors import UserError
from anomaly_vlm.losses import PROBABILITY
from anomaly_vlm.losses.maps import map_losses, training_mask, wants_masks
from anomaly_vlm.methods.base.detections import UsesDetections
from anomaly_vlm.methods.base.frozen_tokens import FrozenTokens
from anomaly_vlm.methods.base.prediction import Prediction
from anomaly_vlm.methods.filo.boxes import BoxOptions, Located, Locator
from anomaly_vlm.methods.filo.heads import AdapterOptions, FiloAdapter, FiloHeads, TokenList
from anomaly_vlm.methods.filo.maps import MapOptions, joined, map_logits, probabilities
from anomaly_vlm.methods.filo.mmci import MMCIOptions
from anomaly_vlm.methods.filo.sentences import FiloPromptLearner, SentenceFeatures, Sentences, mean_pairs
from anomaly_vlm.methods.filo.stages import StageOptions
from anomaly_vlm.methods.filo.texts import DefectTexts, TextOptions
from anomaly_vlm.methods.shared.layers import Layers, tapped_layers
from anomaly_vlm.methods.shared.precision import summed_product
from anomaly_vlm.options import AtLeast
from anomaly_vlm.texts import load_texts

log = logging.getLogger("anomaly_vlm")
Ablation = Literal["fg_des", "grounding", "position_prompt", "mmci", "adapter"]
ABLATIONS: tuple[str, ...] = get_args(Ablation)


class FiLo(FrozenTokens, UsesDetections):
    """Sentences with descriptions and positions, linear and MMCI heads on frozen tokens, an adapter, boxes.

    The contexts with their meta nets and the heads are learned in stage 1, the adapter in stage 2. Both towers are frozen.

    Args:
        backbone: Frozen towers. The paper has OpenAI's ViT-L/14@336 at 518 px; the published code runs it with exact GELU.
        descriptions: Table of defect descriptions: the name of a shipped one, a JSON file, or the table itself, see
            `DefectTexts`.
        texts: How descriptions become text features.
        detector: Gives boxes of test images. A `MapDetector` takes them from the method's own map. None: the sentences name
            all positions, and the map is not damped.
        without: What is left out, for ablations. `fg_des`: sentences have the general states alone. `grounding`: there are
            no boxes. `position_prompt`: sentences name no position, though boxes damp the map. `mmci`: linear heads alone.
            `adapter`: the global feature is CLIP's.
        layers: Tapped 1-based vision blocks, see `tapped_layers`; `quarters`: 6, 12, 18, 24 of 24, as published.
        n_plain: Number of first blocks without V-V path; None for a quarter of the depth.
        token_capture: `published`: the tokens that the published code holds, which the released weights need. `paper`: each
            block's own. See `TokenList`.
        mmci: Options of the MMCI heads.
        adapter: Options of the adapter.
        maps: How maps are made of similarities.
        score: What the text similarities add to the image score. `published`: the abnormal similarity itself. `paper`: the
            softmax of both.
        boxes: Which boxes count, and what they do to the map.
        stages: What is trained when, and how fast.
        base: See `AnomalyMethod`.

    Raises:
        UserError: The table of descriptions has another form, or the tower lacks the blocks of `layers` or `n_plain`.
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
        descriptions: str | Mapping[str, Any] = "filo_descriptions",
        texts: TextOptions = TextOptions(),  # noqa: B008 (frozen)
        detector: Detector | MapDetector | None = None,
        without: Sequence[Ablation] = (),
        layers: Layers | Literal["quarters"] = "quarters",
        n_plain: Annotated[int, AtLeast(0)] | None = None,
        token_capture: Literal["published", "paper"] = "published",
        mmci: MMCIOptions = MMCIOptions(),  # noqa: B008 (frozen)
        adapter: AdapterOptions = AdapterOptions(),  # noqa: B008 (frozen)
        maps: MapOptions = MapOptions(),  # noqa: B008 (frozen)
        score: Literal["published", "paper"] = "published",
        boxes: BoxOptions = BoxOptions(),  # noqa: B008 (frozen)
        stages: StageOptions = StageOptions(),  # noqa: B008 (frozen)
        **base: Any,
    ) -> None:
        super().__init__(backbone, detector=None if "grounding" in without else detector, **base)
        self.texts = DefectTexts(load_texts(descriptions), texts, fine_grained="fg_des" not in without)
        self.sentences = Sentences(self.texts, texts.context_length, positioned="position_prompt" not in without)
        self.layers = tuple(sorted(tapped_layers(backbone, backbone.quarters if layers == "quarters" else layers)))
        self.n_plain = round(backbone.num_layers / 4) if n_plain is None else n_plain
        if self.n_plain >= backbone.num_layers:
            raise UserError(f"method.n_plain is {n_plain}: {backbone.name} has {backbone.num_layers} vision blocks")
        self.map_options, self.score_kind, self.stages = maps, score, stages
        self.joint = stages.schedule == "paper"  # one loss trains everything in each epoch
        self.locator = Locator(boxes)
        if stages.epochs == 1 and "adapter" not in without and stages.first and stages.second and not self.joint:
            log.warning("epochs=1 trains the heads alone: the adapter keeps its random start; give 2 or more")
        self.token_list = TokenList(self.layers, self.n_plain, as_published=token_capture == "published")
        self.adapter_temperature = adapter.temperature
        dim, length = backbone.embed_dim, texts.context_length
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.normal = FiloPromptLearner(length, dim, backbone.text_width)
            self.abnormal = FiloPromptLearner(length, dim, backbone.text_width)
            self.heads = FiloHeads(self.token_list.names, backbone.width, dim, None if "mmci" in without else mmci)
            self.adapter = None if "adapter" in without else FiloAdapter(dim, adapter.reduction)

    # ---- image tower: frozen -----------------------------------------------------------------------------------------

    def cache_key(self) -> dict[str, Any]:
        listed = self.token_list
        return {
            "entries": listed.names,
            "n_plain": listed.n_plain,
            "published": listed.as_published,
            "cls": "projected",
        }

    def encode_frozen(self, images: Tensor) -> dict[str, Tensor]:
        return self.token_list.encode(self.backbone, images)

    def feature(self, cls: Tensor, *, adapted: bool) -> Tensor:
        """Global feature `[B, C]` of unit norm, of the projected class token `[B, C]`, through the adapter if `adapted`."""
        cls = cls.to(self.normal.ctx.dtype)
        return F.normalize(self.adapter(cls) if adapted and self.adapter is not None else cls, dim=-1)

    def invalidate_caches(self) -> None:
        self.heads.invalidate_caches()

    # ---- sentences: FG-Des -------------------------------------------------------------------------------------------

    def sentence_features(
        self, categories: Sequence[str], feature: Tensor, positions: Sequence[int | None] | None = None
    ) -> list[SentenceFeatures]:
        """Features of each image's sentences, conditioned on its global feature.

        Args:
            categories: B names.
            feature: Global features `[B, C]`.
            positions: For each image the position that its sentences name; None for all nine.
        """
        chosen = list(positions or [None] * len(categories))
        return self.sentences.encode(self.backbone, categories, chosen, self.normal(feature), self.abnormal(feature))

    def pairs(self, features: Sequence[SentenceFeatures], positions: Sequence[int | None] | None = None) -> Tensor:
        """Normal and abnormal text feature `[B, 2, C]` of each image, see `mean_pairs`."""
        chosen = list(positions or [None] * len(features))
        return mean_pairs(features, chosen, divided_twice=self.texts.options.pair_norm == "published")

    def similarity(self, feature: Tensor, pairs: Tensor) -> Tensor:
        """Similarities `[B, 2]` (normal, abnormal) of global features `[B, C]` with text features `[B, 2, C]`."""
        return summed_product("bc,bkc->bk", feature, pairs)

    # ---- maps and boxes: HQ-Loc --------------------------------------------------------------------------------------

    def map_logits(
        self, outputs: Sequence[Tensor], pairs: Tensor, grid: tuple[int, int], size: tuple[int, int]
    ) -> list[Tensor]:
        """Abnormal minus normal logit `[branches, B, H, W]` of each head, see `maps.map_logits`."""
        return map_logits(outputs, pairs, grid, size, self.map_options.logit_scale)

    def joined_map(
        self, outputs: Sequence[Tensor], pairs: Tensor, grid: tuple[int, int], size: tuple[int, int]
    ) -> Tensor:
        """The heads' maps as one `[B, H, W]`, before any box."""
        return joined(probabilities(self.map_logits(outputs, pairs, grid, size)), self.map_options)

    def captions(self, category: str) -> tuple[str, ...]:
        words = self.texts.detector_words(category)
        return (caption_of(words, separator=self.texts.words["detector"]["separator"]),)

    def located(self, batch: Batch) -> list[Located]:
        """Boxes and positions by what the detector found in these images beforehand."""
        located = []
        for path, category in zip(batch.path, batch.category, strict=True):
            (caption,), words = self.captions(category), self.texts.detector_words(category)
            located.append(self.locator.by_queries(self.detections_for(path, caption), words, batch.size))
        return located

    # ---- prediction --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def predict(self, batch: Batch) -> Prediction:
        tokens, size, grid = self.frozen_tokens(batch), batch.size, self.grid(batch)
        feature = self.feature(tokens["cls"], adapted=True)
        outputs = self.heads(tokens, grid)
        located = self.located(batch) if isinstance(self.detector, Detector) else None
        positions = None if located is None else [one.position for one in located]
        features = self.sentence_features(batch.category, feature, positions)
        pairs = self.pairs(features)
        heat = self.joined_map(outputs, pairs, grid, size)
        if isinstance(self.detector, MapDetector):
            located = [self.locator.by_boxes(self.detector.boxes(one), size) for one in heat]
            if self.sentences.positioned:  # the sentences of all nine positions are encoded already
                pairs = self.pairs(features, [one.position for one in located])
                heat = self.joined_map(outputs, pairs, grid, size)
        score = self.image_score(self.similarity(feature, pairs), heat)
        if located is None:
            return Prediction(score, heat)
        damped = torch.stack([self.locator.damped(one, where.found) for one, where in zip(heat, located, strict=True)])
        return Prediction(score, damped, tuple(where.found.boxes[where.found.valid] for where in located))

    def image_score(self, similarity: Tensor, heat: Tensor) -> Tensor:
        """Image scores `[B]` of similarities `[B, 2]` and maps `[B, H, W]` before any box."""
        abnormal = similarity[:, 1]
        if self.score_kind == "paper":
            abnormal = (similarity / self.adapter_temperature).softmax(dim=-1)[:, 1]
        return (abnormal + heat.flatten(1).amax(dim=1)) / 2

    def grid(self, batch: Batch) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.backbone.grid_of(batch.size)

    def display_name(self, name: str) -> str:
        """The method's name, with what takes the place of the paper's detector."""
        if self.detector is None:
            return f"{name} (no detector)"
        return f"{name} ({self.detector.name})" if self.detector.replaces else name

    # ---- training ----------------------------------------------------------------------------------------------------

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Heads, prompts and adapter, each with its rate.

        Raises:
            UserError: The loss lacks the terms of a stage.
        """
        if self.stages.first_in_run and not wants_masks(self.terms):
            raise UserError(
                "the loss has neither 'focal' nor 'dice', which stage 1 needs: choose loss=filo, or method.stages.first=0"
            )
        if self.adapter is not None and "image" not in self.terms:
            raise UserError(
                "the loss has no term 'image', which trains the adapter: choose loss=filo, or method.without=[adapter]"
            )
        rates = self.stages.rates
        groups: dict[str, list[nn.Parameter]] = {name: [] for name in rates}
        for name, parameter in self.learnable().items():
            kind = {"normal": "prompts", "abnormal": "prompts", "adapter": "adapter"}.get(name.split(".")[0], "heads")
            groups[kind].append(parameter)
        return [{"params": members, "lr": rates[kind]} for kind, members in groups.items() if members]

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        if self.joint:
            return {**self.map_terms(batch, adapted=True), **self.image_term(batch, through_text=True)}
        if self.current_epoch < self.stages.first_in_run or self.adapter is None:
            return self.map_terms(batch, adapted=False)
        return self.image_term(batch, through_text=False)

    def on_train_epoch_end(self) -> None:
        """Ends the run with stage 1 where there is no adapter: stage 2 would have nothing to train."""
        super().on_train_epoch_end()
        if self.adapter is None and not self.joint and self.current_epoch + 1 >= self.stages.first_in_run:
            self.trainer.should_stop = True

    def map_terms(self, batch: Batch, *, adapted: bool) -> dict[str, Tensor]:
        """Stage 1: focal and dice loss of each head's map, over all nine positions."""
        if not wants_masks(self.terms):
            return {}
        mask = training_mask(batch.mask, batch.path, self.terms)
        tokens, grid = self.frozen_tokens(batch), self.grid(batch)
        feature = self.feature(tokens["cls"], adapted=adapted)
        pairs = self.pairs(self.sentence_features(batch.category, feature))
        logits = self.map_logits(self.heads(tokens, grid), pairs, grid, (mask.shape[-2], mask.shape[-1]))
        normal = probabilities([-one for one in logits])  # near 0 it has digits that 1 minus the abnormal one lost
        return map_losses(self.terms, probabilities(logits), mask, normal=normal)

    def image_term(self, batch: Batch, *, through_text: bool) -> dict[str, Tensor]:
        """Stage 2: cross entropy of the adapted global feature.

        Args:
            batch: Training images.
            through_text: Whether gradients also flow through the sentences, which follow the adapted feature.
        """
        if "image" not in self.terms:
            return {}
        feature = self.feature(self.frozen_tokens(batch)["cls"], adapted=True)
        with torch.set_grad_enabled(through_text and torch.is_grad_enabled()):
            pairs = self.pairs(self.sentence_features(batch.category, feature))
        prob = (self.similarity(feature, pairs) / self.adapter_temperature).softmax(dim=-1)[:, 1]
        return {"image": self.terms["image"](prob, batch.label).mean()}
