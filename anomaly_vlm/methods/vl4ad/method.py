"""VL4AD: unknown objects on the road are pixels that no known class claims, by the masks of a text-aware segmenter.

Zhong, Sicking, Hueger, Gottschalk, "Vision-Language Models Improve Pixel-wise Anomaly Detection", arXiv 2409.17330, 2024.
There is no published code. A mask transformer on a frozen CLIP ConvNeXt learns the 19 Cityscapes classes; its masks are
classified by similarity to class texts. At test time and without training, classes merge and further texts name unknown
objects. What the paper's text leaves open follows FC-CLIP (which it builds on) and Mask2Former's Cityscapes recipe;
`experiments/vl4ad` says which choices are this project's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_vlm.backbone import ConvNextBackbone
from anomaly_vlm.data.types import Batch
from anomaly_vlm.errors import UserError, unknown_choice
from anomaly_vlm.methods.base.method import AnomalyMethod
from anomaly_vlm.methods.base.prediction import Prediction
from anomaly_vlm.methods.shared.seeding import derived_generator
from anomaly_vlm.methods.shared.sliding_window import SlidingWindow
from anomaly_vlm.methods.vl4ad.evaluation import RoadEvaluation
from anomaly_vlm.methods.vl4ad.mask_decoder import Decoded, MaskClassifier, MaskDecoder, decoder_config, pool
from anomaly_vlm.methods.vl4ad.mask_matching import MaskMatching, Segments, count_segments, seeded, segments
from anomaly_vlm.methods.vl4ad.pixel_scores import (
    SCORES,
    VOID,
    PixelClasses,
    Void,
    anomaly_score,
    class_probabilities,
    geometric_ensemble,
    largest_of,
    pixel_classes,
)
from anomaly_vlm.methods.vl4ad.vocabulary import Columns, Vocabulary, centred, concept_vectors

COMPARED = tuple(name for name in SCORES if name != "max")  # shown beside the paper's score


class VL4AD(AnomalyMethod):
    """Mask decoder and mask classifier on a frozen ConvNeXt; pixel scores from masks.

    Learned: decoder and classifier (20.8 M numbers at the published size); the trunk too where its weights are random.

    Args:
        backbone: frozen ConvNeXt CLIP.
        concepts: table of texts (`vl4ad_prompts`): classes as lists of concepts, templates, groups, proposed OOD prompts.
        classifier: `text`, or `linear`: learned class vectors in place of the texts, the vision-only baseline.
        prompt_ensemble: a class is the maximum over all of its concepts; False: its name alone.
        merge: at test time, `none`, `cityscapes_groups`, `surroundings` or name to classes.
        ood_prompts: at test time, further texts (or lists of them); `proposed`: the table's six.
        void: `drop` (FC-CLIP) or `ignore` (the paper's formula), see `class_probabilities`.
        ensemble: `none`, or `geometric` with CLIP's own classifier and the exponents `alpha` (known) and `beta` (further).
        score: `max` (paper), or one of the comparison scores. compare: scores shown beside it in evaluations.
        queries, hidden, heads, pixel_layers, pixel_ffn, decoder_layers, decoder_ffn: sizes of the decoder.
        points: at which masks are compared with segments in training.
        center_text: subtract what the class texts have in common. train_backbone: train the trunk. None: both exactly where
            the backbone's weights are random (the paper does neither).
        scales, window, overlap: passes of inference, see `SlidingWindow`. chunk: masks at full size at a time (memory).
        components: options of the component metrics, see `ComponentMetrics`.
        poly_power: the learning rate falls as (1 - step / steps) ** poly_power; 0: constant.
        options: see `AnomalyMethod`.

    Raises:
        UserError: an option out of its range, or options that exclude each other.
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
        concepts: Mapping[str, Any],
        classifier: Literal["text", "linear"] = "text",
        prompt_ensemble: bool = True,
        merge: str | Mapping[str, Sequence[str]] = "cityscapes_groups",
        ood_prompts: str | Sequence[str | Sequence[str]] = (),
        void: Void = "drop",
        ensemble: Literal["none", "geometric"] = "none",
        alpha: float = 0.4,
        beta: float = 0.8,
        score: str = "max",
        compare: Sequence[str] = COMPARED,
        queries: int = 250,
        hidden: int = 256,
        heads: int = 8,
        pixel_layers: int = 6,
        pixel_ffn: int = 1024,
        decoder_layers: int = 9,
        decoder_ffn: int = 2048,
        points: int = 12544,
        center_text: bool | None = None,
        train_backbone: bool | None = None,
        scales: Sequence[float] = (1.0,),
        window: Sequence[int] | None = None,
        overlap: float = 0.25,
        chunk: int = 16,
        components: Mapping[str, Any] | None = None,
        poly_power: float = 0.9,
        **options: Any,
    ) -> None:
        super().__init__(cast(Any, backbone), **options)
        for name, value, allowed in (
            ("classifier", classifier, ("text", "linear")),
            ("void", void, VOID),
            ("ensemble", ensemble, ("none", "geometric")),
            ("score", score, SCORES),
            *(("compare", entry, SCORES) for entry in compare),
        ):
            if value not in allowed:
                raise unknown_choice(name, str(value), allowed)
        for name, number in (("alpha", alpha), ("beta", beta)):
            if not 0 <= number <= 1:
                raise UserError(f"{name} is {number}: give an exponent from 0 to 1")
        if classifier == "linear" and (len(ood_prompts) or ensemble == "geometric"):
            raise UserError(
                "classifier=linear has no texts: leave ood_prompts and ensemble=geometric out, or choose classifier=text"
            )
        if train_backbone and not backbone.is_random:
            raise UserError("VL4AD keeps a trained CLIP frozen: train_backbone is for untrained weights only")
        self.vocabulary = Vocabulary(concepts, ensembling=prompt_ensemble and classifier == "text")
        self.known = self.vocabulary.columns()  # what is trained: every class for itself
        self.columns = self.vocabulary.columns(merge, ood_prompts)  # what is tested
        self.void, self.ensemble, self.alpha, self.beta = void, ensemble, alpha, beta
        self.score, self.compare = score, tuple(dict.fromkeys([score, *compare]))
        self.color_range = (-1.0, 0.0) if score in ("max", "margin", "max_softmax") else None
        self.center_text = backbone.is_random if center_text is None else center_text
        self.views = SlidingWindow(scales=scales, window=window, overlap=overlap, multiple=backbone.stride)
        self.chunk, self.components, self.poly_power = chunk, dict(components or {}), poly_power
        config = decoder_config(
            queries=queries,
            hidden=hidden,
            heads=heads,
            pixel_layers=pixel_layers,
            pixel_ffn=pixel_ffn,
            decoder_layers=decoder_layers,
            decoder_ffn=decoder_ffn,
            points=points,
        )
        self.decoder = MaskDecoder(config, backbone.widths, seed=self.seed)
        self.classifier = MaskClassifier(hidden, backbone.embed_dim, seed=self.seed + 1)
        self.class_vectors: nn.Parameter | None = None
        if classifier == "linear":
            generator = torch.Generator().manual_seed(self.seed + 2)
            shape = (len(self.known.names), backbone.embed_dim)
            self.class_vectors = nn.Parameter(torch.randn(shape, generator=generator))
        self.matching: MaskMatching | None = None  # without losses nothing is matched
        if self.terms:
            self.matching = MaskMatching(points=points, weights={name: t.weight for name, t in self.terms.items()})
        if backbone.is_random if train_backbone is None else train_backbone:
            backbone.trunk().requires_grad_(True)
        self._texts: dict[tuple[str, ...], Tensor] = {}

    @property
    def clip(self) -> ConvNextBackbone:
        """The backbone, by its own type."""
        return cast(ConvNextBackbone, self.backbone)

    # ---- classes -----------------------------------------------------------------------------------------------------

    def concept_vectors(self, columns: Columns) -> Tensor:
        """One vector [M, C] of unit norm for each concept of `columns`. Texts are encoded once."""
        if self.class_vectors is not None:
            return F.normalize(self.class_vectors, dim=-1)
        if (found := self._texts.get(columns.texts)) is None:
            found = concept_vectors(self.clip, columns.texts, self.vocabulary.templates)
            if self.center_text:
                found = centred(found, len(self.known.texts))
            self._texts[columns.texts] = found
        if found.device != self.classifier.void.device or found.dtype != self.classifier.void.dtype:
            found = self._texts[columns.texts] = found.to(self.classifier.void)
        return found

    def class_logits(self, decoded: Decoded, stage: int, columns: Columns) -> Tensor:
        """[B, N, columns + 1] of a decoder stage: the largest similarity of a column's concepts; void last."""
        vectors = self.concept_vectors(columns)
        logits = self.classifier(decoded.masks[stage], decoded.queries[stage], decoded.pixels, vectors)
        return largest_of(logits, columns.members)

    def clip_logits(self, masks: Tensor, dense: Tensor, columns: Columns) -> Tensor:
        """[B, N, columns] of CLIP's own classifier: its dense feature pooled within the masks [B, N, h, w], its own head."""
        masks = F.interpolate(masks, size=dense.shape[-2:], mode="bilinear", align_corners=False)
        pooled = pool(masks, dense)  # [B, N, Cv]
        embedded = F.normalize(self.clip.project(pooled.flatten(0, 1)), dim=-1).unflatten(0, pooled.shape[:2])
        scale = min(float(torch.tensor(self.clip.logit_scale).exp()), 100.0)
        logits = scale * embedded @ self.concept_vectors(columns).T
        return torch.stack([logits[..., list(part)].amax(dim=-1) for part in columns.members], dim=-1)

    def mask_classes(self, decoded: Decoded, dense: Tensor) -> Tensor:
        """c [B, N, K + Q] of the last stage, columns as at test time."""
        logits = self.class_logits(decoded, -1, self.columns)
        if self.ensemble == "none":
            return class_probabilities(logits, void=self.void)
        return geometric_ensemble(
            logits,
            self.clip_logits(decoded.masks[-1], dense, self.columns),
            known=self.columns.known,
            alpha=self.alpha,
            beta=self.beta,
            void=self.void,
        )

    # ---- pixels ------------------------------------------------------------------------------------------------------

    def decode(self, images: Tensor) -> tuple[Decoded, Tensor]:
        """All decoder stages, and the dense CLIP feature, of images [B, 3, H, W] whose sides are multiples of the stride."""
        pyramid = self.clip.encode_image(images)
        return self.decoder(pyramid.maps), pyramid.dense

    def _pass(self, images: Tensor, size: tuple[int, int]) -> PixelClasses:
        inner = (images.shape[-2], images.shape[-1])
        padded = self.clip.pad(images)
        decoded, dense = self.decode(padded)
        return pixel_classes(
            decoded.masks[-1],
            self.mask_classes(decoded, dense),
            known=self.columns.known,
            padded=(padded.shape[-2], padded.shape[-1]),
            inner=inner,
            size=size,
            chunk=self.chunk,
        )

    @torch.no_grad()
    def pixel_classes(self, images: Tensor, size: tuple[int, int] | None = None) -> PixelClasses:
        """Class sums of normalised images [B, 3, H, W], any size, at `size` (default: their own)."""
        own = (images.shape[-2], images.shape[-1])
        return self.views(self._pass, images, size or own)

    def prediction(self, batch: Batch, y: PixelClasses) -> Prediction:
        found = anomaly_score(y, self.score)
        valid = found if batch.mask is None else found.masked_fill(batch.mask == 255, -torch.inf)
        score = valid.flatten(1).amax(dim=1)
        score = torch.where(score.isfinite(), score, found.flatten(1).amax(dim=1))
        return Prediction(score, found, notes=tuple(self._find(*pair) for pair in zip(found, y.by_class, strict=True)))

    def _find(self, found: Tensor, by_class: Tensor) -> str:
        """What the most anomalous hundredth of an image is most like, among all columns: it names the find."""
        hot = found.flatten().topk(max(1, found.numel() // 100)).indices
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
            self.stage_losses(decoded.masks[i], self.class_logits(decoded, i, self.known), targets, key=(i, batch))
            for i in range(len(decoded.masks))
        ]
        return {name: torch.stack([values[name] for values in stages]).sum() for name in self.terms}

    def stage_losses(
        self, masks: Tensor, logits: Tensor, targets: Sequence[Segments], *, key: tuple[int, Batch] | None = None
    ) -> dict[str, Tensor]:
        """The terms of one decoder stage, unweighted.

        Args:
            masks: [B, N, h, w]. logits: [B, N, K + 1]. targets: of each image.
            key: (stage, batch), from which the random points derive; None: from the global generator.
        """
        assert self.matching is not None
        if key is None:
            matched = self.matching(masks, logits, targets)
        else:
            with seeded(self._draw_seed(*key), masks.device):
                matched = self.matching(masks, logits, targets)
        count = count_segments(targets)
        values = {}
        if "class" in self.terms:
            values["class"] = self.terms["class"](logits, matched.classes)
        if "mask" in self.terms:
            values["mask"] = self.terms["mask"](matched.logits, matched.labels).sum() / count
        if "dice" in self.terms:
            values["dice"] = self.terms["dice"](matched.logits.sigmoid(), matched.labels).sum() / count
        return values

    def _draw_seed(self, stage: int, batch: Batch) -> int:
        numbers = (self.seed, self.current_epoch, stage, *batch.index.tolist())
        return int(derived_generator(*numbers).integers(2**31))

    def configure_optimizers(self) -> Any:
        """Poly decay by step, unless the configuration has a schedule of its own."""
        made = super().configure_optimizers()
        optimizer = made["optimizer"] if isinstance(made, dict) else made
        trainer = getattr(self, "_trainer", None)
        if isinstance(made, dict) or not self.poly_power or trainer is None:
            return made
        steps = max(1, int(trainer.estimated_stepping_batches))
        schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=steps, power=self.poly_power)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def parameter_groups(self) -> list[Any]:
        """Embeddings (queries, levels, void) without weight decay, as in Mask2Former's recipe."""
        learned = self.learnable()
        plain = [name for name in learned if re.search(r"queries_|level_embed|\.void$", name)]
        return [
            {"params": [p for name, p in learned.items() if name not in plain]},
            {"params": [learned[name] for name in plain], "weight_decay": 0.0},
        ]
