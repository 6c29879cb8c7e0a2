"""SAA and SAA+: boxes that a text detector proposes, masks that SAM cuts, scores that saliency corrects. Nothing is learned.

Cao, Xu, Sun, Cheng, Du, Gao, Shen, "Segment Any Anomaly without Training via Hybrid Prompt Regularization",
arXiv 2305.10724; published code, state of 2023-12-20. The defaults are SAA+ with the published code's numbers, except for
the colour channels: the published code shows SAM and the saliency network BGR images (`channel_order: published`). Plain SAA
is `language: naive` without all three of `ABLATIONS`. The paper's property prompts act on regions and constrain their
IoU; those of the code, and these, act on boxes and have no such constraint. The manual phrases were tuned on the test sets:
`language: general` is the zero-shot reading.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_vlm.backbone import ConvNextBackbone, FrozenTower, TrunkBackbone
from anomaly_vlm.data.types import Batch
from anomaly_vlm.detectors import Detector, MapDetector, Queries, Segmenter, corners, phrases_of
from anomaly_vlm.errors import UserError
from anomaly_vlm.methods.base.detections import UsesDetections
from anomaly_vlm.methods.base.prediction import Prediction
from anomaly_vlm.methods.saa.prompts import Language, SaaPlan, SaaPromptOptions, SaaPrompts
from anomaly_vlm.methods.saa.proposals import BoxThresholds, Fusion, areas, fused, rescored, selected
from anomaly_vlm.methods.saa.saliency import SaliencyOptions, joined_stages, unlike_the_others, unlike_the_rest
from anomaly_vlm.methods.shared.maps import upsample
from anomaly_vlm.methods.shared.precision import in_float32
from anomaly_vlm.options import PositiveInt
from anomaly_vlm.texts import load_texts

Ablation = Literal["property", "saliency", "confidence"]
ABLATIONS: tuple[str, ...] = get_args(Ablation)  # hybrid prompts beside language
ANY_CAPTION = "anomaly."  # for a detector that does not read it


class SAA(UsesDetections):
    """Boxes for phrases on defects, a mask each, the mean of the most salient ones' scores (sections 3 and 4).

    Args:
        backbone: Image trunk of the saliency with stages at strides 4, 8 and 16; the paper has Wide ResNet-50-2 of ImageNet.
        texts: Table of phrases and properties: the name of a shipped one, a JSON file, or the table itself.
        detector: Gives boxes for captions; the paper has Grounding DINO. One that reads boxes from a file tells objects from
            defects by their phrases, of which the object's is the table's object word. A `MapDetector` takes boxes from the
            saliency map itself, and knows no objects.
        segmenter: Gives masks for boxes; the paper has SAM.
        language: `both`: general and manual phrases; `general`, `specific`: the ones or the others alone; `naive`: one
            caption.
        without: Prompts that are left out, for ablations. `property`: no object is looked for, no area is limited, and
            saliency is that of one object. `saliency`: scores stay the detector's. `confidence`: all masks count, not the
            category's `max_anomalies` best.
        prompts: Words and numbers of the prompts.
        boxes: Thresholds of the detector's scores.
        saliency: How saliency is computed and used.
        fusion: How masks become a map, see `fused`.
        channel_order: Channels that SAM and the saliency network see: `rgb`; or `published`: BGR, normalised as if it were
            RGB.
        eval_size: Side of the maps in pixels; None for the image's own size.
        base: See `AnomalyMethod`.

    Raises:
        UserError: There is no detector or no segmenter, the table has another form, or a size does not fit the trunk.
    """

    backbone_types: ClassVar[tuple[type[FrozenTower], ...]] = (TrunkBackbone, ConvNextBackbone)

    def __init__(
        self,
        backbone: Any,
        *,
        texts: str | Mapping[str, Any] = "saa_prompts",
        detector: Detector | MapDetector | None = None,
        segmenter: Segmenter | None = None,
        language: Language = "both",
        without: Sequence[Ablation] = (),
        prompts: SaaPromptOptions = SaaPromptOptions(),  # noqa: B008 (frozen)
        boxes: BoxThresholds = BoxThresholds(),  # noqa: B008 (frozen)
        saliency: SaliencyOptions = SaliencyOptions(),  # noqa: B008 (frozen)
        fusion: Fusion = "published",
        channel_order: Literal["rgb", "published"] = "rgb",
        eval_size: PositiveInt | None = None,
        **base: Any,
    ) -> None:
        super().__init__(backbone, detector=detector, **base)
        if detector is None:
            raise UserError(
                "SAA is made of boxes: choose detector=transformers (Grounding DINO), detector=file or detector=components"
            )
        if segmenter is None:
            raise UserError("SAA cuts masks out of boxes: choose segmenter=sam or segmenter=contrast")
        self.prompts = SaaPrompts(load_texts(texts), language=language, options=prompts)
        self.segmenter = segmenter
        self.by_property, self.by_saliency, self.by_confidence = (name not in without for name in ABLATIONS)
        self.fusion, self.channel_order, self.thresholds, self.saliency = fusion, channel_order, boxes, saliency
        self.sizes = backbone.checked_size(saliency.size), backbone.checked_size(saliency.objects_size)
        self.eval_size = eval_size

    # ---- proposals ---------------------------------------------------------------------------------------------------

    def captions(self, category: str) -> tuple[str, ...]:
        if isinstance(self.detector, Detector) and not self.detector.reads_captions:
            return (ANY_CAPTION,)
        plan = self.prompts.plan(category)
        asked = [caption for caption, _ in plan.phrases] + ([plan.target] if self.by_property else [])
        return tuple(dict.fromkeys(asked))

    def proposals(self, path: str, plan: SaaPlan) -> tuple[Queries, Queries]:
        """Boxes of defects and of objects, by what the detector found in the image beforehand.

        Args:
            path: The image.
            plan: What is looked for.

        Returns:
            Defects in caption order, with duplicates; and objects, of which there are none without `property`.
        """
        assert isinstance(self.detector, Detector)
        object_limit = 1 / plan.objects
        if not self.detector.reads_captions:
            boxes = selected(self.detections_for(path, ANY_CAPTION), self.thresholds)
            is_object = torch.tensor([phrase == plan.word for phrase in phrases_of(boxes, 0)], dtype=torch.bool)
            small = (areas(boxes.boxes) < object_limit) & self.by_property
            objects = boxes.select((is_object & small).nonzero().flatten())
            small = areas(boxes.boxes) < self.defect_limit(objects, plan)
            return boxes.select((~is_object & small).nonzero().flatten()), objects
        objects = Queries(torch.zeros(0, 4), torch.zeros(0))
        if self.by_property:
            objects = selected(self.detections_for(path, plan.target), self.thresholds, max_area=object_limit)
        limit = self.defect_limit(objects, plan)
        each = [
            selected(self.detections_for(path, caption), self.thresholds, word, max_area=limit)
            for caption, word in plan.phrases
        ]
        return Queries(torch.cat([one.boxes for one in each]), torch.cat([one.scores for one in each])), objects

    def defect_limit(self, objects: Queries, plan: SaaPlan) -> float:
        """Share of the image that a defect's box must stay below.

        It is the share of the largest object, or of the image where no object was found, times the plan's `max_area`.
        """
        largest = float(areas(objects.boxes).max()) if len(objects) else 1.0
        return largest * plan.max_area if self.by_property else math.inf

    # ---- saliency ----------------------------------------------------------------------------------------------------

    def features(self, image: Tensor, side: int) -> Tensor:
        """Features of an image that is resized to a square (bilinear, as OpenCV does it).

        Args:
            image: uint8 `[3, H, W]`.
            side: Of the square, in pixels.

        Returns:
            `[h, w, C]`, unit norm.
        """
        square = F.interpolate(image[None].float(), size=(side, side), mode="bilinear", align_corners=False)
        small = square.round() / 255
        mean, std = (small.new_tensor(values).view(3, 1, 1) for values in (self.backbone.mean, self.backbone.std))
        stages = self.backbone.encode_image((small - mean) / std).maps  # type: ignore[attr-defined]  # a trunk's
        return joined_stages(stages[:3])

    def saliency_map(self, image: Tensor, objects: Tensor | None = None) -> Tensor:
        """Saliency `[H, W]` of an image.

        Args:
            image: uint8 `[3, H, W]`.
            objects: Masks `[n, H, W]` where there are several objects; None for one.
        """
        features = self.features(image, self.sizes[objects is not None])
        with in_float32(features):  # half precision cannot tell cosines near 1 apart
            if objects is None:
                small = unlike_the_rest(features, farthest=self.saliency.farthest, memory_mb=self.saliency.memory_mb)
            else:
                small = unlike_the_others(features, objects, memory_mb=self.saliency.memory_mb)
        return upsample(small, (image.shape[-2], image.shape[-1]), align_corners=False)

    # ---- prediction --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def predict(self, batch: Batch) -> Prediction:
        size = batch.size if self.eval_size is None else (self.eval_size, self.eval_size)
        scale = torch.tensor([size[1] / batch.size[1], size[0] / batch.size[0]] * 2)
        maps, boxes = [], []
        for image, path, category in zip(self.pixels(batch.image), batch.path, batch.category, strict=True):
            heat, corners_used = self.anomaly_map(image, path, self.prompts.plan(category))
            maps.append(upsample(heat, size, align_corners=False))
            boxes.append(corners_used.cpu() * scale)
        heat = torch.stack(maps)
        return Prediction(heat.flatten(1).amax(dim=1), heat, tuple(boxes))

    def pixels(self, images: Tensor) -> Tensor:
        """Turns normalised images `[B, 3, H, W]` back into uint8 pixels, in the channel order of SAM and saliency."""
        mean, std = (images.new_tensor(values).view(3, 1, 1) for values in (self.backbone.mean, self.backbone.std))
        exact = ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
        return exact.flip(1) if self.channel_order == "published" else exact

    def anomaly_map(self, image: Tensor, path: str, plan: SaaPlan) -> tuple[Tensor, Tensor]:
        """The map of an image, and the boxes whose masks are in it.

        Args:
            image: uint8 `[3, H, W]`.
            path: Its file, under which its detections are stored.
            plan: What is looked for.

        Returns:
            Map `[H, W]`, and corners `[n, 4]` in pixels of the image.
        """
        size, saliency, objects = (image.shape[-2], image.shape[-1]), None, None
        if isinstance(self.detector, MapDetector):
            saliency = self.saliency_map(image)
            proposed = self.detector.boxes(saliency)
            sides = (proposed.boxes[:, 2:] - proposed.boxes[:, :2]) / proposed.boxes.new_tensor([size[1], size[0]])
            small = sides.prod(dim=1) < (plan.max_area if self.by_property else math.inf)
            boxes, scores = proposed.boxes[small], proposed.scores[small]
        else:
            defects, targets = self.proposals(path, plan)
            boxes, scores = corners(defects.boxes, size), defects.scores
            if len(boxes) and self.by_saliency and self.by_property and plan.objects > 1:
                objects = self.segmenter.masks(image, corners(targets.boxes, size)).to(image.device)
        masks = self.segmenter.masks(image, boxes).to(image.device)
        scores = scores.to(image.device)
        if self.by_saliency and len(masks):
            saliency = self.saliency_map(image, objects) if saliency is None else saliency
            scores = rescored(scores, masks, saliency, weight=self.saliency.weight)
        if self.by_confidence:
            best = scores.argsort(descending=True, stable=True)[: plan.max_anomalies]
            masks, scores, boxes = masks[best], scores[best], boxes[best.cpu()]
        return fused(masks, scores, self.fusion), boxes

    def display_name(self, name: str) -> str:
        """`saa` or `saa+`, with what takes the place of the paper's detector and segmenter."""
        plain = self.prompts.language == "naive" and not (self.by_property or self.by_saliency or self.by_confidence)
        notes = [model.name for model in (self.detector, self.segmenter) if model is not None and model.replaces]
        notes += ["BGR"] if self.channel_order == "published" else []
        full = name if plain else f"{name}+"
        return f"{full} ({', '.join(notes)})" if notes else full
