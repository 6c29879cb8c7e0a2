"""Pixel and image metrics behind one update."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from anomaly_vlm.metrics._engine.group import Group
from anomaly_vlm.metrics._engine.image import ImageEngine, image_engine
from anomaly_vlm.metrics._engine.inputs import (
    ArrayLike,
    CheckedImage,
    Names,
    PixelOptions,
    Values,
    as_names,
    to_numpy,
)
from anomaly_vlm.metrics._engine.metric import CurveMetric, Engine, pixel_engine
from anomaly_vlm.metrics._engine.pixel import PixelEngine
from anomaly_vlm.metrics._engine.whole_images import WholeImageEngine, WholeImageOptions


class AnomalyMetrics(CurveMetric):
    """What `PixelMetrics` and `ImageMetrics` give, in one dict.

    Images without a mask feed the image part only. A set without any mask has NaN pixel values, so that the names are the
    same for every set.

    Args:
        pixel: Options of `PixelMetrics`.
        image: Options of `ImageMetrics`, and `calibration_bins`: with it, `image_calibration_error` is computed.
        whole_images: Further values that need the pixels of each image by itself, and 4 B of memory for every pixel:
            `aupimo` (True, or bounds of the false-positive rate) gives `pixel_aupimo`; `seg_f1_sigmas` gives
            `pixel_seg_f1`, the F1 at the mean plus so many standard deviations of the scores of normal images;
            `mean_f1` gives `pixel_mean_f1`, the mean over thresholds 0.2 to 0.8 of rescaled scores. None for none of them.
        **kwargs: Options of `torchmetrics.Metric`.

    Raises:
        ValueError: An option is out of its range.
    """

    void_only = "warn"  # the image values are there all the same

    def __init__(
        self,
        pixel: Mapping[str, Any] | None = None,
        image: Mapping[str, Any] | None = None,
        whole_images: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        engines: dict[str, Engine] = {
            "pixel": pixel_engine(PixelOptions.checked(**(pixel or {}))),
            "image": image_engine(**(image or {})),
        }
        options = WholeImageOptions.checked(**{"aupimo": None, **(whole_images or {})})
        if options != WholeImageOptions(aupimo=None):
            engines["whole_images"] = WholeImageEngine(options)
        super().__init__(engines, **kwargs)

    @property
    def _pixel_engine(self) -> PixelEngine:
        engine = self.engines["pixel"]
        assert isinstance(engine, PixelEngine)
        return engine

    @property
    def _image_engine(self) -> ImageEngine:
        engine = self.engines["image"]
        assert isinstance(engine, ImageEngine)
        return engine

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
        """Adds images; none is added if anything is wrong with any of them.

        Args:
            prediction_scores: `[B]` finite image scores.
            maps: `[B, H, W]` finite pixel scores, or a list of `[H, W]`.
            labels: `[B]` 0 (normal) or 1 (anomalous).
            masks: Like `maps`, of 0 (normal), 1 (anomalous) and 255 (void); None for images without pixel labels, also as an
                entry of a list.
            category: One name an image, or one for all.
            index: `[B]` integers, the numbers in the data set; a repeated one counts once.

        Raises:
            ValueError: As `PixelMetrics.update` and `ImageMetrics.update`; the state is as before.
        """
        pixel, image = self._pixel_engine, self._image_engine
        scored = image.prepare(prediction_scores, labels, category, index)
        images: list[CheckedImage] = []
        with_mask: list[int] = [] if masks is None else list(range(len(masks)))
        if masks is not None:
            mask_names: Names = category
            if isinstance(masks, list | tuple) and any(mask is None for mask in masks):
                with_mask = [i for i, mask in enumerate(masks) if mask is not None]
                names = as_names(category, len(masks))
                maps, masks = [maps[i] for i in with_mask], [masks[i] for i in with_mask]
                mask_names = [names[i] for i in with_mask] if category is not None else None
                index = to_numpy(index)[with_mask] if index is not None else None
            images = pixel.prepare(maps, masks, mask_names, index)
        image.commit(scored)
        pixel.commit(images)
        if isinstance(whole := self.engines.get("whole_images"), WholeImageEngine):
            whole.commit(images)
        # a normal image may well have void pixels alone, an anomalous one hardly
        marked = to_numpy(labels).reshape(-1)[with_mask] == 1
        self._masks.add(image for image, anomalous in zip(images, marked, strict=True) if anomalous)
        self._changed()

    def replace_scores(self, scores: Mapping[int, float]) -> None:
        """Replaces the image scores of images that were added, for scores that need all images of a set.

        Args:
            scores: New finite score by the number in the data set (`index` of `update`); on every process those of all
                images, or of its own. Images that are not named keep theirs.

        Raises:
            ValueError: A score is not finite; the state is as before.
        """
        if wrong := [number for number, score in scores.items() if not math.isfinite(score)]:
            raise ValueError(f"the new score of image {wrong[0]} is {scores[wrong[0]]}: expected a finite number")
        self._image_engine.replace_scores(scores)
        self._changed()

    def _results(self, group: Group) -> Values:
        """Returns the values of both engines; the pixel engine names the categories of the image engine too."""
        image = self.engines["image"]
        names = [name for name in image.ledger.order(group) if name is not None]
        values = {**self.engines["pixel"].results(group, names), **image.results(group)}
        if "whole_images" in self.engines:
            values.update(self.engines["whole_images"].results(group, names))
        return values
