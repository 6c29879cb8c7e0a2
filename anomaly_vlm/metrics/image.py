"""Image-level metrics of all categories."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from anomaly_vlm.metrics._engine.image import image_engine
from anomaly_vlm.metrics._engine.inputs import ArrayLike
from anomaly_vlm.metrics._engine.metric import CurveMetric


class ImageMetrics(CurveMetric):
    """Image AUROC, AP, F1-max with its threshold, and FPR at a recall; always exact.

    The names are `image_auroc`, `image_ap`, `image_f1_max`, `image_f1_max_threshold` and `image_fpr95`. Formulas, categories
    and undefined values are those of `PixelMetrics`. Memory: 5 B an image, 13 B with `index`. Time: O(B log B).

    Args:
        recall: In (0, 1]; 0.95 gives `image_fpr95`.
        calibration_bins: With it, `image_calibration_error` is computed, see `functional.calibration_error`.
        **kwargs: Options of `torchmetrics.Metric`.

    Raises:
        ValueError: The recall is out of its range.

    Example:
        >>> metric = ImageMetrics()
        >>> metric.update([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
        >>> metric.compute()["image_ap"]
        tensor(0.8333, dtype=torch.float64)
    """

    def __init__(self, recall: float = 0.95, calibration_bins: int | None = None, **kwargs: Any) -> None:
        super().__init__({"image": image_engine(recall, calibration_bins)}, **kwargs)

    def update(
        self,
        scores: ArrayLike,
        labels: ArrayLike,
        *,
        category: str | Sequence[str] | None = None,
        index: ArrayLike | None = None,
    ) -> None:
        """Adds images.

        Args:
            scores: `[B]` finite scores, higher = more anomalous; float64 is cast to float32 first.
            labels: `[B]` 0 (normal) or 1 (anomalous).
            category: One name an image, or one for all.
            index: `[B]` integers, the numbers in the data set; a repeated one counts once.

        Raises:
            ValueError: Names the first bad image and the value; the state is as before.
        """
        self.engines["image"].add(scores, labels, category, index)
        self._changed()
