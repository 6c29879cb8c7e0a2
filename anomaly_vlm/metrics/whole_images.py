"""AUPIMO: how much of each defect is found at a false-positive rate so low that normal images stay clean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from anomaly_vlm.metrics._engine.inputs import ArrayLike, as_tensors
from anomaly_vlm.metrics._engine.metric import EngineMetric
from anomaly_vlm.metrics._engine.whole_images import WholeImageEngine, WholeImageOptions


class AUPIMO(EngineMetric):
    """Area under the per-image overlap (Bertoldo et al., "AUPIMO: Redefining Visual Anomaly Detection Benchmarks", 2024).

    Thresholds are indexed by a false-positive rate that is measured on normal images alone and shared by all images. Every
    anomalous image gets its own value; see `functional.aupimo` for the formula, which is computed exactly. `compute` gives
    their mean, and the mean over categories where there are several; `per_image` the distribution.

    Args:
        fpr_bounds: False-positive rates between which the overlap is averaged, on a logarithmic axis.
        **kwargs: Options of `torchmetrics.Metric`.

    Raises:
        ValueError: The bounds are not two ascending rates in (0, 1].

    Example:
        >>> import torch
        >>> metric = AUPIMO(fpr_bounds=(0.1, 0.5))
        >>> maps = torch.tensor([[[0.1, 0.2], [0.3, 0.4]], [[0.1, 0.1], [0.35, 0.9]]])
        >>> metric.update(maps, torch.tensor([[[0, 0], [0, 0]], [[0, 0], [1, 1]]]))
        >>> metric.compute()
        tensor(0.7153, dtype=torch.float64)
    """

    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def __init__(self, fpr_bounds: Sequence[float] = (1e-5, 1e-4), **kwargs: Any) -> None:
        super().__init__({"pixel": WholeImageEngine(WholeImageOptions.checked(fpr_bounds))}, **kwargs)

    def update(
        self,
        maps: ArrayLike,
        masks: ArrayLike,
        *,
        category: str | Sequence[str] | None = None,
        index: ArrayLike | None = None,
    ) -> None:
        """Adds images; everything is copied.

        Args:
            maps: `[B, H, W]`, `[H, W]` or a list of `[H, W]` finite scores, higher = more anomalous.
            masks: Of the same sizes, of 0 (normal), 1 (anomalous) and 255 (void).
            category: One name an image, or one for all.
            index: `[B]` integers, the numbers in the data set; a repeated one counts once.

        Raises:
            ValueError: Names the first bad image and the value; the state is as before.
        """
        self._add_maps("pixel", maps, masks, category, index)

    def compute(self) -> Tensor:
        """Returns the mean over the anomalous images, or the mean of these over the categories."""
        values = as_tensors(self.values())
        return values["mean/pixel_aupimo"] if "mean/pixel_aupimo" in values else values["pixel_aupimo"]

    def per_image(self) -> dict[str | None, list[tuple[int | None, float]]]:
        """Returns number and value of every anomalous image, by category; every process of the group has to call it."""
        engine = self.engines["pixel"]
        assert isinstance(engine, WholeImageEngine)
        return engine.per_image(self._group())
