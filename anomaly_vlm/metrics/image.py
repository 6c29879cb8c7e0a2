"""Image-level metrics of all categories."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from anomaly_vlm.metrics._engine.group import Alone
from anomaly_vlm.metrics._engine.image import ImageEngine
from anomaly_vlm.metrics._engine.inputs import ArrayLike
from anomaly_vlm.metrics._engine.metric import CurveMetric, EngineMetric
from anomaly_vlm.metrics._engine.options import Values, as_tensors, checked_recall


class ImageMetrics(CurveMetric, EngineMetric):
    """Image AUROC, AP, F1-max with its threshold, and FPR at a recall; always exact.

    Names `image_auroc`, `image_ap`, `image_f1_max`, `image_f1_max_threshold`, `image_fpr95`; formulas, categories and
    undefined values as in `PixelMetrics`. Memory: 5 B an image, 13 B with `index`. O(B log B).

    Args:
        recall: in (0, 1]; 0.95 gives `image_fpr95`.
        kwargs: of `torchmetrics.Metric`.

    Example:
        >>> metric = ImageMetrics()
        >>> metric.update([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
        >>> metric.compute()["image_ap"]
        tensor(0.8333, dtype=torch.float64)
    """

    def __init__(self, recall: float = 0.95, **kwargs: Any) -> None:
        super().__init__({"image": ImageEngine(checked_recall(recall))}, **kwargs)

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
            scores: [B] finite scores (float64 is cast to float32).
            labels: [B] 0 normal, 1 anomalous.
            category: one name an image, or one for all.
            index: [B] number in the data set; a repeated one counts once.

        Raises:
            ValueError: names the first bad image and the value; the state is as before.
        """
        engine = self.engines["image"]
        engine.commit(engine.prepare(scores, labels, category, index))
        self._changed()

    def compute(self) -> dict[str, Tensor]:
        """All values by name, as 0-dim float64 CPU tensors; the same on every process."""
        return as_tensors(self.values())

    def _results(self, group: Alone) -> Values:
        return self.engines["image"].results(group)
