"""The metrics as functions of arrays, for use without a metric object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from anomaly_vlm.metrics._engines import pixel_engine
from anomaly_vlm.metrics._group import Alone
from anomaly_vlm.metrics._image import ImageEngine
from anomaly_vlm.metrics._inputs import ArrayLike
from anomaly_vlm.metrics._names import as_tensors
from anomaly_vlm.metrics._options import PixelOptions, checked_recall


def pixel_metrics(
    maps: ArrayLike,
    masks: ArrayLike,
    *,
    category: str | Sequence[str] | None = None,
    index: ArrayLike | None = None,
    **options: Any,
) -> dict[str, Tensor]:
    """What `PixelMetrics(**options)` computes of one set of images. Undefined values are NaN, without a warning.

    Args:
        maps: [B, H, W], [B, 1, H, W] or [H, W] scores, or a list of [H, W] of any sizes; NumPy arrays or tensors.
        masks: same sizes; 0 normal, 1 anomalous, 255 void.
        category: one name an image, or one for all. index: [B]; a repeated one counts once.
        options: of `PixelMetrics`.

    Raises:
        ValueError: names the first bad image and the value, or a wrong option.

    Example:
        >>> import numpy as np
        >>> scores, mask = np.array([[0.1, 0.4], [0.35, 0.8]]), np.array([[0, 0], [1, 1]])
        >>> float(pixel_metrics(scores, mask)["pixel_f1_max"])
        0.8
    """
    engine = pixel_engine(PixelOptions.make(**options))
    engine.commit(engine.prepare(maps, masks, category, index))
    return as_tensors(engine.results(Alone()))


def image_metrics(
    scores: ArrayLike,
    labels: ArrayLike,
    *,
    category: str | Sequence[str] | None = None,
    index: ArrayLike | None = None,
    recall: float = 0.95,
) -> dict[str, Tensor]:
    """What `ImageMetrics(recall)` computes of one set of images. Undefined values are NaN, without a warning.

    Args:
        scores: [B] finite scores. labels: [B] 0 normal, 1 anomalous.
        category: one name an image, or one for all. index: [B]; a repeated one counts once.
        recall: in (0, 1]; 0.95 gives `image_fpr95`.

    Raises:
        ValueError: names the first bad image and the value.
    """
    engine = ImageEngine(checked_recall(recall))
    engine.commit(engine.prepare(scores, labels, category, index))
    return as_tensors(engine.results(Alone()))
