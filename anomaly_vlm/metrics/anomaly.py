"""Pixel and image metrics behind one update."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from anomaly_vlm.metrics._engine import pixel_engine
from anomaly_vlm.metrics._engine.group import Alone
from anomaly_vlm.metrics._engine.image import ImageEngine
from anomaly_vlm.metrics._engine.inputs import ArrayLike, Image, as_names, to_numpy
from anomaly_vlm.metrics._engine.metric import CurveMetric, EngineMetric
from anomaly_vlm.metrics._engine.options import PixelOptions, Values, as_tensors, checked_recall
from anomaly_vlm.metrics._engine.pixel import PixelEngine


class AnomalyMetrics(CurveMetric, EngineMetric):
    """What `PixelMetrics` and `ImageMetrics` give, in one dict.

    Images without a mask feed the image part only; a set without any gives NaN pixel values, so that the names are the
    same for every set.

    Args:
        pixel: options of `PixelMetrics`. image: options of `ImageMetrics`.
        kwargs: of `torchmetrics.Metric`.
    """

    def __init__(
        self, pixel: Mapping[str, Any] | None = None, image: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        engines: dict[str, PixelEngine | ImageEngine] = {
            "pixel": pixel_engine(PixelOptions.make(**(pixel or {}))),
            "image": ImageEngine(checked_recall(**{"recall": 0.95, **(image or {})})),
        }
        super().__init__(engines, **kwargs)

    def update(
        self,
        prediction_scores: ArrayLike,
        maps: ArrayLike,
        labels: ArrayLike,
        masks: ArrayLike | None,
        *,
        category: str | Sequence[str] | None = None,
        index: ArrayLike | None = None,
    ) -> None:
        """Adds images; nothing is added if anything is wrong.

        Args:
            prediction_scores: [B] image scores.
            maps: [B, H, W] or a list of [H, W].
            labels: [B] 0 normal, 1 anomalous.
            masks: like `maps`, 0 / 1 / 255; None for images without pixel labels, also as an entry of a list.
            category: one name an image, or one for all.
            index: [B] number in the data set; a repeated one counts once.

        Raises:
            ValueError: see `PixelMetrics.update` and `ImageMetrics.update`.
        """
        pixel, image = self.engines["pixel"], self.engines["image"]
        scored = image.prepare(prediction_scores, labels, category, index)
        images: list[Image] = []
        if masks is not None:
            if isinstance(masks, list | tuple) and any(mask is None for mask in masks):
                kept = [i for i, mask in enumerate(masks) if mask is not None]
                names = as_names(category, len(masks))
                maps, masks = [maps[i] for i in kept], [masks[i] for i in kept]
                category = [names[i] for i in kept] if category is not None else None  # type: ignore[misc]
                index = to_numpy(index)[kept] if index is not None else None
            images = pixel.prepare(maps, masks, category, index)
        image.commit(scored)
        pixel.commit(images)
        self._changed()

    def replace_scores(self, scores: Mapping[int, float]) -> None:
        """Gives images that were added other image scores, where these are known at the end alone.

        Args:
            scores: number in the data set (`index` of `update`) to finite score, on every process of all images or of its
                own. Images that are not named keep theirs.

        Raises:
            ValueError: a score is not finite.
        """
        if wrong := [number for number, score in scores.items() if not math.isfinite(score)]:
            raise ValueError(f"the new score of image {wrong[0]} is {scores[wrong[0]]}: expected a finite number")
        self.engines["image"].replace_scores(scores)
        self._changed()

    def compute(self) -> dict[str, Tensor]:
        """All values by name, as 0-dim float64 CPU tensors; the same on every process."""
        return as_tensors(self.values())

    def _results(self, group: Alone) -> Values:
        """The pixel part names the image part's categories too."""
        image = self.engines["image"]
        names = [name for name in image.ledger.order(group) if name is not None]
        return {**self.engines["pixel"].results(group, names), **image.results(group)}
