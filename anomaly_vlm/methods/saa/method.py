"""SAA and SAA+: boxes that a text detector proposes, masks that SAM cuts, scores that saliency corrects. Nothing is learned.

Cao, Xu, Sun, Cheng, Du, Gao, Shen, "Segment Any Anomaly without Training via Hybrid Prompt Regularization",
arXiv 2305.10724; published code, state of 2023-12-20. The defaults are SAA+ with the published code's numbers, but for its
channel order (`channel_order: official` shows SAM and the saliency network BGR images, as it does). SAA is `language: naive`
with all three parts of `without`. The paper's property prompts act on regions and have an IoU constraint; the
code's, and these, act on boxes and have none. Manual phrases were tuned on the test sets: `language: general` is the
zero-shot reading.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_vlm.backbone import ConvNextBackbone, FrozenTower, TrunkBackbone
from anomaly_vlm.data.types import Batch
from anomaly_vlm.detectors import Detector, MapDetector, Queries, Segmenter, check_floor, corners, phrases_of
from anomaly_vlm.errors import UserError, unknown_choice
from anomaly_vlm.methods.base.detections import UsesDetections
from anomaly_vlm.methods.base.prediction import Prediction
from anomaly_vlm.methods.saa.prompts import HybridPrompts, Plan
from anomaly_vlm.methods.saa.saliency import joined_stages, unlike_the_others, unlike_the_rest
from anomaly_vlm.methods.shared.maps import upsample
from anomaly_vlm.methods.shared.patch_memory import checked_memory

PARTS = ("property", "saliency", "confidence")  # hybrid prompts beside language, which ablations leave out
CHOICES = {"fusion": ("official", "mean"), "channel_order": ("rgb", "official")}
ANY_CAPTION = "anomaly."  # for a detector that does not read it


def areas(boxes: Tensor) -> Tensor:
    """Shares of the image [k] of boxes [k, 4] in relative centre form."""
    return boxes[:, 2] * boxes[:, 3]


def keep(
    queries: Queries,
    word: str = "",
    *,
    box_threshold: float,
    text_threshold: float,
    max_area: float = math.inf,
    min_area: float = 0.0,
) -> Queries:
    """The queries with a score and an area between the limits whose phrase does not contain `word`; in query order.

    Args:
        word: as a part of another word too (`nut` in `peanut`); '' rules none out.
        box_threshold: kept are higher scores. text_threshold: words of a phrase have a higher probability.
        max_area, min_area: limits of `w h`, both exclusive.

    Raises:
        UserError: the queries were stored above a score that is higher than `box_threshold`.
    """
    check_floor(queries, box_threshold)
    area = areas(queries.boxes)
    found = queries.only(((queries.scores > box_threshold) & (area < max_area) & (area > min_area)).nonzero().flatten())
    if not word or not len(found):
        return found
    free = [word not in phrase.lower() for phrase in phrases_of(found, text_threshold)]
    return found.only(torch.tensor(free).nonzero().flatten())


def rescored(scores: Tensor, masks: Tensor, saliency: Tensor, *, weight: float = 3.0) -> Tensor:
    """Scores [n] times exp(weight x mean saliency in the mask); an empty mask leaves its score.

    Args:
        masks: bool [n, H, W]. saliency: [H, W].
    """
    means = [saliency[mask].mean() if mask.any() else saliency.new_zeros(()) for mask in masks]
    return scores * (weight * torch.stack(means)).exp() if means else scores


def fused(masks: Tensor, scores: Tensor, how: str = "official") -> Tensor:
    """One map [H, W] of masks [n, H, W] and scores [n]: at each pixel the sum of its masks' scores over 1 + their number
    (`official`, so that a single mask counts half), or over their number (`mean`); 0 under no mask."""
    total, count = scores.new_zeros(masks.shape[1:]), scores.new_zeros(masks.shape[1:])
    for mask, score in zip(masks, scores, strict=True):
        total[mask] += score
        count[mask] += 1
    return total / (1 + count if how == "official" else count.clamp_min(1))


class SAA(UsesDetections):
    """Boxes for phrases on defects, a mask each, the mean of the most salient ones' scores.

    Args:
        backbone: image trunk of the saliency (paper: Wide ResNet-50-2, ImageNet), stages at strides 4, 8 and 16.
        texts: table of phrases and properties (`saa_prompts`).
        detector: boxes for captions (paper: Grounding DINO); from a file, whose phrases tell objects (named by the table's
            object word) from defects; or, a `MapDetector`, from the saliency map itself, without object boxes.
        segmenter: masks for boxes (paper: SAM).
        language: `both`: general and manual phrases; `general`, `specific`: these alone; `naive`: `naive_caption` alone.
        object_word: `parsed`, what the published code's detector was asked for (`candle,`), or `clean`.
        without: prompts left out, for ablations: `property` (no object is looked for, no area is limited, saliency is of one
            object), `saliency` (scores stay the detector's), `confidence` (all masks count, not the category's
            `max_anomalies` best).
        naive_caption: of `naive`.
        generic: `objects`, `max_anomalies`, `max_area` of categories that the table lacks.
        fusion: see `fused`.
        channel_order: what SAM and saliency see: `rgb`, or `official`: BGR, normalised as if it were RGB.
        box_threshold, text_threshold: see `keep`.
        saliency_size, objects_size: side in pixels at which the trunk sees an image of one object, of several.
        farthest: positions that saliency of one object is the mean over. weight: see `rescored`.
        eval_size: side of the maps in pixels; None: the image's own size.
        memory_mb: bound on the similarities of positions held at a time, in MB.
        base: see `AnomalyMethod`.

    Raises:
        UserError: an option that is unknown or out of range, no detector, or no segmenter.

    Reference: sections 3 and 4; published code.
    """

    backbone_types: ClassVar[tuple[type[FrozenTower], ...]] = (TrunkBackbone, ConvNextBackbone)

    def __init__(
        self,
        backbone: Any,
        *,
        texts: Mapping[str, Any],
        detector: Detector | MapDetector | None = None,
        segmenter: Segmenter | None = None,
        language: Literal["both", "general", "specific", "naive"] = "both",
        object_word: Literal["parsed", "clean"] = "parsed",
        without: Sequence[str] = (),
        naive_caption: str = "anomaly",
        generic: Mapping[str, Any] | None = None,
        fusion: Literal["official", "mean"] = "official",
        channel_order: Literal["rgb", "official"] = "rgb",
        box_threshold: float = 0.1,
        text_threshold: float = 0.1,
        saliency_size: int = 256,
        objects_size: int = 1024,
        farthest: int = 400,
        weight: float = 3.0,
        eval_size: int | None = None,
        memory_mb: float = 256.0,
        **base: Any,
    ) -> None:
        super().__init__(backbone, detector=detector, **base)
        for name, value in (("fusion", fusion), ("channel_order", channel_order)):
            if value not in CHOICES[name]:
                raise unknown_choice(f"method.{name}", str(value), CHOICES[name])
        if wrong := [part for part in without if part not in PARTS]:
            raise unknown_choice("part in method.without", str(wrong[0]), PARTS)
        if detector is None:
            raise UserError(
                "SAA is made of boxes: choose detector=transformers (Grounding DINO), detector=file or detector=components"
            )
        if segmenter is None:
            raise UserError("SAA cuts masks out of boxes: choose segmenter=sam or segmenter=contrast")
        if not (0 <= box_threshold < 1 and 0 <= text_threshold < 1) or farthest < 1 or weight < 0:
            raise UserError(
                f"method: box_threshold {box_threshold}, text_threshold {text_threshold}, farthest {farthest}, weight"
                f" {weight}: give thresholds from 0 to 1, at least one position, and a weight of at least 0"
            )
        if eval_size is not None and eval_size < 1:
            raise UserError(f"method.eval_size is {eval_size}: give the side of the maps in pixels, or null")
        checked_memory(memory_mb)
        self.prompts = HybridPrompts(
            texts,
            language=language,
            naive=naive_caption,
            object_word=object_word,
            generic={"objects": 1, "max_anomalies": 5, "max_area": 0.9, **(generic or {})},
        )
        self.segmenter = segmenter
        self.by_property, self.by_saliency, self.by_confidence = (part not in without for part in PARTS)
        self.fusion, self.channel_order = fusion, channel_order
        self.thresholds: dict[str, Any] = {"box_threshold": box_threshold, "text_threshold": text_threshold}
        self.sizes = backbone.checked_size(saliency_size), backbone.checked_size(objects_size)
        self.farthest, self.weight, self.eval_size, self.memory_mb = farthest, weight, eval_size, memory_mb

    # ---- proposals ---------------------------------------------------------------------------------------------------

    def captions(self, category: str) -> tuple[str, ...]:
        if isinstance(self.detector, Detector) and not self.detector.reads_captions:
            return (ANY_CAPTION,)
        plan = self.prompts.plan(category)
        asked = [caption for caption, _ in plan.phrases] + ([plan.target] if self.by_property else [])
        return tuple(dict.fromkeys(asked))

    def proposals(self, path: str, plan: Plan) -> tuple[Queries, Queries]:
        """Boxes of defects and of objects, by what the detector found in the image beforehand; in caption order, with
        duplicates. Without `property` there are no objects."""
        assert isinstance(self.detector, Detector)
        object_limit = 1 / plan.objects
        if not self.detector.reads_captions:
            found = keep(self.detections_for(path, ANY_CAPTION), **self.thresholds)
            named = torch.tensor([phrase == plan.word for phrase in phrases_of(found, 0)], dtype=torch.bool)
            objects = found.only((named & (areas(found.boxes) < object_limit) & self.by_property).nonzero().flatten())
            defects = found.only((~named & (areas(found.boxes) < self.defect_limit(objects, plan))).nonzero().flatten())
            return defects, objects
        asked = (
            self.detections_for(path, plan.target) if self.by_property else Queries(torch.zeros(0, 4), torch.zeros(0))
        )
        objects = keep(asked, **self.thresholds, max_area=object_limit)
        limit = self.defect_limit(objects, plan)
        each = [
            keep(self.detections_for(path, caption), word, **self.thresholds, max_area=limit)
            for caption, word in plan.phrases
        ]
        return Queries(torch.cat([one.boxes for one in each]), torch.cat([one.scores for one in each])), objects

    def defect_limit(self, objects: Queries, plan: Plan) -> float:
        """Below which share of the image a defect's box must stay; of the largest object's box, or of the image where none
        was found."""
        largest = float(areas(objects.boxes).max()) if len(objects) else 1.0
        return largest * plan.max_area if self.by_property else math.inf

    # ---- saliency ----------------------------------------------------------------------------------------------------

    def features(self, image: Tensor, side: int) -> Tensor:
        """[h, w, C], unit norm, of an image uint8 [3, H, W] resized to a square (bilinear, as OpenCV)."""
        small = (
            F.interpolate(image[None].float(), size=(side, side), mode="bilinear", align_corners=False).round() / 255
        )
        mean, std = (small.new_tensor(values).view(3, 1, 1) for values in (self.backbone.mean, self.backbone.std))
        return joined_stages(self.backbone.encode_image((small - mean) / std).maps[:3])  # type: ignore[attr-defined]

    def saliency_map(self, image: Tensor, objects: Tensor | None = None) -> Tensor:
        """Saliency [H, W] of an image uint8 [3, H, W]: of one object, or, given masks [n, H, W], of several."""
        features = self.features(image, self.sizes[objects is not None])
        with torch.autocast(features.device.type, enabled=False):  # half precision cannot tell cosines near 1 apart
            if objects is None:
                small = unlike_the_rest(features, farthest=self.farthest, memory_mb=self.memory_mb)
            else:
                small = unlike_the_others(features, objects, memory_mb=self.memory_mb)
        return upsample(small, (image.shape[-2], image.shape[-1]), align_corners=False)

    # ---- prediction --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def predict(self, batch: Batch) -> Prediction:
        size = batch.size if self.eval_size is None else (self.eval_size, self.eval_size)
        scale = torch.tensor([size[1] / batch.size[1], size[0] / batch.size[0]] * 2)
        maps, boxes = [], []
        for image, path, category in zip(self.pixels(batch.image), batch.path, batch.category, strict=True):
            heat, used = self.judge(image, path, self.prompts.plan(category))
            maps.append(upsample(heat, size, align_corners=False))
            boxes.append(used.cpu() * scale)
        heat = torch.stack(maps)
        return Prediction(heat.flatten(1).amax(dim=1), heat, tuple(boxes))

    def pixels(self, images: Tensor) -> Tensor:
        """Normalised images [B, 3, H, W] as the uint8 pixels that they were, in the channel order of SAM and saliency."""
        mean, std = (images.new_tensor(values).view(3, 1, 1) for values in (self.backbone.mean, self.backbone.std))
        exact = ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
        return exact.flip(1) if self.channel_order == "official" else exact

    def judge(self, image: Tensor, path: str, plan: Plan) -> tuple[Tensor, Tensor]:
        """Map [H, W] of an image uint8 [3, H, W], and the boxes [n, 4] (corners in its pixels) of the masks in it."""
        size, saliency, objects = (image.shape[-2], image.shape[-1]), None, None
        if isinstance(self.detector, MapDetector):
            saliency = self.saliency_map(image)
            found = self.detector.boxes(saliency)
            sides = (found.boxes[:, 2:] - found.boxes[:, :2]) / found.boxes.new_tensor([size[1], size[0]])
            small = sides.prod(dim=1) < (plan.max_area if self.by_property else math.inf)
            boxes, scores = found.boxes[small], found.scores[small]
        else:
            defects, targets = self.proposals(path, plan)
            boxes, scores = corners(defects.boxes, size), defects.scores
            if len(boxes) and self.by_saliency and self.by_property and plan.objects > 1:
                objects = self.segmenter.masks(image, corners(targets.boxes, size)).to(image.device)
        masks = self.segmenter.masks(image, boxes).to(image.device)
        scores = scores.to(image.device)
        if self.by_saliency and len(masks):
            saliency = self.saliency_map(image, objects) if saliency is None else saliency
            scores = rescored(scores, masks, saliency, weight=self.weight)
        if self.by_confidence:
            best = scores.argsort(descending=True, stable=True)[: plan.max_anomalies]
            masks, scores, boxes = masks[best], scores[best], boxes[best.cpu()]
        return fused(masks, scores, self.fusion), boxes

    def display_name(self, name: str) -> str:
        """SAA or SAA+; and which of the paper's parts were replaced."""
        plain = self.prompts.language == "naive" and not (self.by_property or self.by_saliency or self.by_confidence)
        notes = [part.name for part in (self.detector, self.segmenter) if part is not None and part.replaces]
        notes += ["BGR"] if self.channel_order == "official" else []
        full = name if plain else f"{name}+"
        return f"{full} ({', '.join(notes)})" if notes else full
