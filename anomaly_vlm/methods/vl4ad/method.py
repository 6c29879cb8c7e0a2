"""VL4AD: unknown objects on the road are pixels that no known class claims, by the masks of a text-aware segmenter.

Zhong, Sicking, Hueger, Gottschalk, "Vision-Language Models Improve Pixel-wise Anomaly Detection", arXiv 2409.17330, 2024.
There is no published code. A mask transformer on a frozen CLIP ConvNeXt learns the 19 Cityscapes classes; its masks are
classified by similarity to class texts. At test time and without training, classes merge and further texts name unknown
objects. What the paper leaves open follows FC-CLIP, which it builds on, and Mask2Former's Cityscapes recipe;
`experiments/vl4ad` says which choices are this project's. The defaults are the published sizes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_vlm.backbone import ConvNextBackbone
from anomaly_vlm.data.types import Batch
from anomaly_vlm.errors import UserError
from anomaly_vlm.methods.base.method import AnomalyMethod
from anomaly_vlm.methods.base.prediction import Prediction
from anomaly_vlm.methods.shared.seeding import derived_generator
from anomaly_vlm.methods.shared.sliding_window import SlidingWindow
from anomaly_vlm.methods.vl4ad.clip_classifier import ClipClassifierOptions, clip_logits
from anomaly_vlm.methods.vl4ad.evaluation import RoadEvaluation
from anomaly_vlm.methods.vl4ad.mask_decoder import Decoded, DecoderOptions, MaskClassifier, MaskDecoder
from anomaly_vlm.methods.vl4ad.mask_matching import MaskMatching, Segments, seeded, segments
from anomaly_vlm.methods.vl4ad.options import PassOptions, UntrainedOptions
from anomaly_vlm.methods.vl4ad.pixel_scores import (
    PixelClasses,
    Score,
    Void,
    anomaly_score,
    class_probabilities,
    geometric_ensemble,
    largest_of,
    pixel_classes,
)
from anomaly_vlm.methods.vl4ad.training import parameter_groups, stage_losses, with_poly_decay
from anomaly_vlm.methods.vl4ad.vocabulary import Columns, Vocabulary, centred, concept_vectors
from anomaly_vlm.options import AtLeast
from anomaly_vlm.texts import load_texts

COMPARED: tuple[Score, ...] = tuple(name for name in get_args(Score) if name != "max")  # shown beside the paper's score


class VL4AD(AnomalyMethod):
    """Mask decoder and mask classifier on a frozen ConvNeXt; pixel scores from masks.

    The decoder and the classifier are learned (20.8 M numbers at the published size).

    Args:
        backbone: Frozen ConvNeXt CLIP.
        concepts: Table of texts with classes as lists of concepts, templates, groups and proposed OOD prompts: the name of a
            shipped one, a JSON file, or the table itself.
        classifier: `text`; or `linear`: learned class vectors in place of the texts, the vision-only baseline.
        prompt_ensemble: Whether a class is the maximum over all of its concepts; False for its name alone.
        merge: Which classes are one column at test time: `none`, `cityscapes_groups`, `surroundings`, or name to classes.
        ood_prompts: Texts of unknown objects at test time, or lists of them; `proposed` for the table's six.
        void: How the void column counts, see `class_probabilities`.
        clip_classifier: Whether CLIP's own classification of masks joins in.
        score: Anomaly score of a pixel: `max` is the paper's, the others are for comparison.
        compare: Scores shown beside it in evaluations.
        decoder: Sizes of the decoder.
        passes: Passes over an image at test time.
        untrained: What an untrained backbone needs.
        components: Options of the component metrics, see `ComponentMetrics`.
        poly_power: The learning rate falls as (1 - step / steps) ** poly_power; 0 for a constant rate.
        base: See `AnomalyMethod`.

    Raises:
        UserError: Options exclude each other, or a class or concept of them is unknown.
    """

    backbone_types = (ConvNextBackbone,)
    evaluation_type = RoadEvaluation
    overlay: ClassVar[Literal["blend", "heat"]] = "heat"
    loss_terms: ClassVar[dict[str, frozenset[str]]] = {
        "class": frozenset({"ce_with_void"}),
        "mask": frozenset({"bce_of_logits"}),
        "dice": frozenset({"dice"}),
    }

    def __init__(
        self,
        backbone: ConvNextBackbone,
        *,
        concepts: str | Mapping[str, Any] = "vl4ad_prompts",
        classifier: Literal["text", "linear"] = "text",
        prompt_ensemble: bool = True,
        merge: str | Mapping[str, Sequence[str]] = "cityscapes_groups",
        ood_prompts: str | Sequence[str | Sequence[str]] = (),
        void: Void = "drop",
        clip_classifier: ClipClassifierOptions = ClipClassifierOptions(),  # noqa: B008 (frozen)
        score: Score = "max",
        compare: Sequence[Score] = COMPARED,
        decoder: DecoderOptions = DecoderOptions(),  # noqa: B008 (frozen)
        passes: PassOptions = PassOptions(),  # noqa: B008 (frozen)
        untrained: UntrainedOptions = UntrainedOptions(),  # noqa: B008 (frozen)
        components: Mapping[str, Any] | None = None,
        poly_power: Annotated[float, AtLeast(0)] = 0.9,
        **base: Any,
    ) -> None:
        super().__init__(cast(Any, backbone), **base)
        if classifier == "linear" and (len(ood_prompts) or clip_classifier.ensemble == "geometric"):
            raise UserError(
                "method.classifier=linear has no texts: leave ood_prompts and clip_classifier.ensemble=geometric out, or"
                " choose classifier=text"
            )
        if untrained.train_backbone and not backbone.is_random:
            raise UserError("VL4AD keeps a trained CLIP frozen: untrained.train_backbone is for untrained weights only")
        self.vocabulary = Vocabulary(load_texts(concepts), ensembling=prompt_ensemble and classifier == "text")
        self.train_columns = self.vocabulary.columns()  # every class for itself
        self.columns = self.vocabulary.columns(merge, ood_prompts)  # at test time
        self.void, self.clip_classifier = void, clip_classifier
        self.score, self.compare = score, tuple(dict.fromkeys([score, *compare]))
        self.color_range = (-1.0, 0.0) if score in ("max", "margin", "max_softmax") else None
        self.center_text = backbone.is_random if untrained.center_text is None else untrained.center_text
        self.passes = SlidingWindow(
            scales=passes.scales, window=passes.window, overlap=passes.overlap, multiple=backbone.stride
        )
        self.chunk, self.components, self.poly_power = passes.chunk, dict(components or {}), poly_power
        self.decoder = MaskDecoder(decoder, backbone.widths, seed=self.seed)
        self.classifier = MaskClassifier(decoder.hidden, backbone.embed_dim, seed=self.seed + 1)
        self.class_vectors: nn.Parameter | None = None
        if classifier == "linear":
            generator = torch.Generator().manual_seed(self.seed + 2)
            shape = (len(self.train_columns.names), backbone.embed_dim)
            self.class_vectors = nn.Parameter(torch.randn(shape, generator=generator))
        self.matching: MaskMatching | None = None  # without losses nothing is matched
        if self.terms:
            weights = {name: term.weight for name, term in self.terms.items()}
            self.matching = MaskMatching(points=decoder.points, weights=weights)
        if backbone.is_random if untrained.train_backbone is None else untrained.train_backbone:
            backbone.trunk().requires_grad_(True)
        self._texts: dict[tuple[str, ...], Tensor] = {}

    @property
    def clip(self) -> ConvNextBackbone:
        """The backbone, by its own type."""
        return cast(ConvNextBackbone, self.backbone)

    # ---- classes -----------------------------------------------------------------------------------------------------

    def concept_vectors(self, columns: Columns) -> Tensor:
        """One vector `[M, C]` of unit norm for each concept of `columns`. Texts are encoded once."""
        if self.class_vectors is not None:
            return F.normalize(self.class_vectors, dim=-1)
        if (vectors := self._texts.get(columns.texts)) is None:
            vectors = concept_vectors(self.clip, columns.texts, self.vocabulary.templates)
            if self.center_text:
                vectors = centred(vectors, len(self.train_columns.texts))
            self._texts[columns.texts] = vectors
        if vectors.device != self.classifier.void.device or vectors.dtype != self.classifier.void.dtype:
            vectors = self._texts[columns.texts] = vectors.to(self.classifier.void)
        return vectors

    def class_logits(self, decoded: Decoded, stage: int, columns: Columns) -> Tensor:
        """Class logits of the masks of a decoder stage: the largest similarity to a column's concepts.

        Args:
            decoded: Outputs of the decoder.
            stage: Number of the stage.
            columns: Known columns and further ones.

        Returns:
            `[B, N, columns + 1]`, void last.
        """
        vectors = self.concept_vectors(columns)
        logits = self.classifier(decoded.masks[stage], decoded.queries[stage], decoded.pixels, vectors)
        return largest_of(logits, columns.members)

    def clip_logits(self, masks: Tensor, dense: Tensor, columns: Columns) -> Tensor:
        """Class logits `[B, N, columns]` of masks by CLIP's own head, see `clip_classifier.clip_logits`."""
        return clip_logits(self.clip, masks, dense, self.concept_vectors(columns), columns.members)

    def mask_classes(self, decoded: Decoded, dense: Tensor) -> Tensor:
        """Class probabilities c `[B, N, K + Q]` of the last stage's masks, columns as at test time."""
        logits = self.class_logits(decoded, -1, self.columns)
        if self.clip_classifier.ensemble == "none":
            return class_probabilities(logits, void=self.void)
        return geometric_ensemble(
            logits,
            self.clip_logits(decoded.masks[-1], dense, self.columns),
            num_known=self.columns.num_known,
            alpha=self.clip_classifier.alpha,
            beta=self.clip_classifier.beta,
            void=self.void,
        )

    # ---- pixels ------------------------------------------------------------------------------------------------------

    def decode(self, images: Tensor) -> tuple[Decoded, Tensor]:
        """All decoder stages, and the dense CLIP feature, of images.

        Args:
            images: `[B, 3, H, W]`, normalised, with sides that are multiples of the stride.
        """
        pyramid = self.clip.encode_image(images)
        return self.decoder(pyramid.maps), pyramid.dense

    def _pass(self, images: Tensor, size: tuple[int, int]) -> PixelClasses:
        inner = (images.shape[-2], images.shape[-1])
        padded = self.clip.pad(images)
        decoded, dense = self.decode(padded)
        return pixel_classes(
            decoded.masks[-1],
            self.mask_classes(decoded, dense),
            num_known=self.columns.num_known,
            padded=(padded.shape[-2], padded.shape[-1]),
            inner=inner,
            size=size,
            chunk=self.chunk,
        )

    @torch.no_grad()
    def pixel_classes(self, images: Tensor, size: tuple[int, int] | None = None) -> PixelClasses:
        """Class sums of normalised images `[B, 3, H, W]` of any size.

        Args:
            images: Normalised.
            size: Height and width of the result; None for that of the images.
        """
        return self.passes(self._pass, images, size or (images.shape[-2], images.shape[-1]))

    def prediction(self, batch: Batch, y: PixelClasses) -> Prediction:
        """Maps of a batch by its class sums, and as image scores their maxima over the pixels with a label.

        Images without any label have the maximum over all pixels.
        """
        maps = anomaly_score(y, self.score)
        labelled = maps if batch.mask is None else maps.masked_fill(batch.mask == 255, -torch.inf)
        score = labelled.flatten(1).amax(dim=1)
        score = torch.where(score.isfinite(), score, maps.flatten(1).amax(dim=1))
        notes = tuple(self._most_like(*pair) for pair in zip(maps, y.by_class, strict=True))
        return Prediction(score, maps, notes=notes)

    def _most_like(self, anomaly_map: Tensor, by_class: Tensor) -> str:
        """Names the column, known or further, that the most anomalous hundredth of an image is most like."""
        hot = anomaly_map.flatten().topk(max(1, anomaly_map.numel() // 100)).indices
        column = int(by_class.flatten(1)[:, hot].argmax(dim=0).mode().values)
        return f"most like {self.columns.names[column]}"

    def predict(self, batch: Batch) -> Prediction:
        return self.prediction(batch, self.pixel_classes(batch.image))

    # ---- learning ----------------------------------------------------------------------------------------------------

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        if not self.terms:
            return super().losses(batch)
        if batch.semantic is None:
            raise UserError(
                f"VL4AD learns from class labels, and '{batch.path[0]}' has none: train on cityscapes or procedural_road"
            )
        targets = segments(self.clip.pad(batch.semantic, value=255))
        decoded, _ = self.decode(self.clip.pad(batch.image))
        stages = [
            self.stage_losses(
                decoded.masks[i], self.class_logits(decoded, i, self.train_columns), targets, key=(i, batch)
            )
            for i in range(len(decoded.masks))
        ]
        return {name: torch.stack([values[name] for values in stages]).sum() for name in self.terms}

    def stage_losses(
        self, masks: Tensor, logits: Tensor, targets: Sequence[Segments], *, key: tuple[int, Batch] | None = None
    ) -> dict[str, Tensor]:
        """The terms of one decoder stage, see `training.stage_losses`.

        Args:
            masks: Mask logits `[B, N, h, w]`.
            logits: Class logits `[B, N, K + 1]`.
            targets: Segments of each image.
            key: Stage and batch, from which the random points derive; None: they come from the global generator.
        """
        assert self.matching is not None
        if key is None:
            return stage_losses(self.terms, self.matching, masks, logits, targets)
        with seeded(self._draw_seed(*key), masks.device):
            return stage_losses(self.terms, self.matching, masks, logits, targets)

    def _draw_seed(self, stage: int, batch: Batch) -> int:
        numbers = (self.seed, self.current_epoch, stage, *batch.index.tolist())
        return int(derived_generator(*numbers).integers(2**31))

    def configure_optimizers(self) -> Any:
        """Poly decay by step, unless the configuration has a schedule of its own."""
        configured = super().configure_optimizers()
        trainer = getattr(self, "_trainer", None)
        if isinstance(configured, dict) or not self.poly_power or trainer is None:
            return configured
        return with_poly_decay(configured, max(1, int(trainer.estimated_stepping_batches)), self.poly_power)

    def parameter_groups(self) -> list[Any]:
        return parameter_groups(self.learnable())
