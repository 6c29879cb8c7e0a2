"""Metrics of one value each. For several values take `PixelMetrics` or `ImageMetrics`, which share the work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from anomaly_vlm.metrics._engine.group import Group
from anomaly_vlm.metrics._engine.image import ImageEngine
from anomaly_vlm.metrics._engine.inputs import (
    ArrayLike,
    PixelOptions,
    Values,
    as_tensors,
    recall_name,
)
from anomaly_vlm.metrics._engine.metric import Engine, EngineMetric, pixel_engine

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class SingleMetric(EngineMetric):
    """Base of the metrics of one value, of maps and masks (pixel level) or of scores and labels (image level).

    `compute` gives a zero-dimensional float64 tensor: the value, or its mean over the categories where it is defined.

    Args:
        mode: See `PixelMetrics`.
        bins: See `PixelMetrics`.
        half: See `PixelMetrics`.
        workers: See `PixelMetrics`.
        device: See `PixelMetrics`.
        **kwargs: Options of `torchmetrics.Metric`.

    Raises:
        ValueError: An option is out of its range, or options exclude each other.
    """

    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def __init__(
        self,
        *,
        mode: str = "exact",
        bins: int = 65536,
        half: bool = False,
        workers: int | None = None,
        device: str | torch.device | None = None,
        **kwargs: Any,
    ) -> None:
        options = PixelOptions.checked(mode, bins, half=half, workers=workers, device=device)
        super().__init__(self._make_engines(options), **kwargs)

    def _make_engines(self, options: PixelOptions) -> dict[str, Engine]:
        """Returns the engines of both levels, without the work that the value does not need."""
        pixel = replace(options, aupro_limits=(), connectivity=())
        return {"pixel": pixel_engine(pixel), "image": ImageEngine(options.recall)}

    @property
    def value_name(self) -> str:
        """Name of the value without `pixel_` or `image_`."""
        raise NotImplementedError

    def update(
        self,
        scores: ArrayLike,
        targets: ArrayLike,
        *,
        category: str | Sequence[str] | None = None,
        index: ArrayLike | None = None,
    ) -> None:
        """Adds images.

        Args:
            scores: Maps, in the shapes of `PixelMetrics.update`, or image scores `[B]`.
            targets: Masks for maps, labels for image scores.
            category: One name an image, or one for all.
            index: `[B]` integers, the numbers in the data set; a repeated one counts once.

        Raises:
            ValueError: As `PixelMetrics.update` and `ImageMetrics.update`, or maps and image scores came to one metric; the
                state is as before.
        """
        level = "image" if _has_one_axis(scores) else "pixel"
        if level not in self.engines:
            raise ValueError(f"{type(self).__name__} needs maps [B, H, W] and masks, not one score an image")
        other = "pixel" if level == "image" else "image"
        if other in self.engines and self.engines[other].ledger.categories:
            raise ValueError(
                f"{type(self).__name__} holds {other} scores already: use another metric for {level} scores"
            )
        if level == "pixel":
            self._add_maps(level, scores, targets, category, index)
        else:
            self.engines[level].add(scores, targets, category, index)
            self._changed()

    def compute(self) -> Tensor:
        """Returns the value, or its mean over the categories if categories were given.

        Raises:
            ValueError: No pixel of any mask is anomalous, but some masks hold 255, as if it stood for that.
        """
        values = self.values()
        plain = (f"pixel_{self.value_name}", f"image_{self.value_name}")
        name = next(name for name in values if name.removeprefix("mean/") in plain)
        return as_tensors(values)[name]

    def results(self) -> dict[str, Tensor]:
        """Returns the value of every category, their mean and the pooled value; F1-max comes with its thresholds."""
        return as_tensors(self.values())

    def _results(self, group: Group) -> Values:
        """Returns the values of the level that was updated, those of this metric only."""
        mine = [level for level, engine in self.engines.items() if engine.ledger.categories]
        levels = {level for levels in group.gather_objects(mine) for level in levels}
        if len(levels) > 1:
            raise ValueError(f"{type(self).__name__} got maps on one process and image scores on another: use one kind")
        level = levels.pop() if levels else "pixel"
        values = self.engines[level].results(group)
        wanted = (f"{level}_{self.value_name}", f"{level}_{self.value_name}_threshold")
        return {name: value for name, value in values.items() if _base_name(name) in wanted}

    def plot(
        self, val: Tensor | Sequence[Tensor] | None = None, ax: Axes | None = None
    ) -> tuple[Figure | None, Axes | np.ndarray]:
        """Draws the value, or a series of values, as torchmetrics does; needs matplotlib (extra `plot`).

        Args:
            val: A value or several; None draws that of `compute`.
            ax: Matplotlib axes; None makes a figure.
        """
        drawn: tuple[Figure | None, Axes | np.ndarray] = self._plot(val, ax)
        return drawn


class AUROC(SingleMetric):
    """Area under the ROC curve (Mann-Whitney: ties count one half).

    Args:
        **kwargs: Options of `SingleMetric`.

    Example:
        >>> metric = AUROC()
        >>> metric.update([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
        >>> metric.compute()
        tensor(0.7500, dtype=torch.float64)
    """

    value_name = "auroc"


class AveragePrecision(SingleMetric):
    """Average precision in steps, as scikit-learn computes it (not the trapezoid area, which is optimistic).

    Args:
        **kwargs: Options of `SingleMetric`.
    """

    value_name = "ap"


class F1Max(SingleMetric):
    """Largest F1 over all thresholds; `results` gives the threshold too.

    Args:
        **kwargs: Options of `SingleMetric`.
    """

    value_name = "f1_max"


class FPRAtRecall(SingleMetric):
    """False-positive rate at the largest threshold that reaches a recall.

    Args:
        recall: In (0, 1].
        **kwargs: Options of `SingleMetric`.

    Raises:
        ValueError: An option is out of its range, or options exclude each other.
    """

    higher_is_better = False

    def __init__(self, recall: float = 0.95, **kwargs: Any) -> None:
        self._recall = PixelOptions.checked(recall=recall).recall
        super().__init__(**kwargs)

    def _make_engines(self, options: PixelOptions) -> dict[str, Engine]:
        return super()._make_engines(replace(options, recall=self._recall))

    @property
    def value_name(self) -> str:
        """Name of the value without `pixel_` or `image_`."""
        return recall_name(self._recall)


class AUPRO(SingleMetric):
    """Area under the per-region overlap curve up to a false-positive rate; for maps and masks only.

    Args:
        limit: False-positive rate in (0, 1].
        connectivity: Of regions, 8 or 4.
        aupro: `exact`, or the 200-threshold values of published codes, `legacy` and `legacy_filled` (for limit 0.3 and
            8-connected regions only).
        **kwargs: Options of `SingleMetric`.

    Raises:
        ValueError: An option is out of its range, or options exclude each other.
    """

    def __init__(self, limit: float = 0.3, connectivity: int = 8, aupro: str = "exact", **kwargs: Any) -> None:
        if aupro not in ("exact", "legacy", "legacy_filled"):
            raise ValueError(f"aupro is {aupro!r}: choose exact, legacy or legacy_filled")
        self._variant = aupro
        self._aupro_options = PixelOptions.checked(
            kwargs.get("mode", "exact"), aupro_limits=limit, connectivity=connectivity, legacy=aupro != "exact"
        )
        if aupro != "exact" and limit != 0.3:
            raise ValueError(f"aupro={aupro!r} is defined for limit=0.3 only, not {limit}")
        super().__init__(**kwargs)

    def _make_engines(self, options: PixelOptions) -> dict[str, Engine]:
        of_aupro = self._aupro_options
        options = replace(
            options, aupro_limits=of_aupro.aupro_limits, connectivity=of_aupro.connectivity, legacy=of_aupro.legacy
        )
        return {"pixel": pixel_engine(options)}

    @property
    def value_name(self) -> str:
        """Name of the value without `pixel_` or `image_`."""
        if self._variant != "exact":
            return f"aupro_{self._variant}"
        return self._aupro_options.aupro_names()[0][0].removeprefix("pixel_")


def _base_name(name: str) -> str:
    """Returns `pixel_auroc` for `bottle/pixel_auroc`, `mean/pixel_auroc/lower` and so on."""
    return name.removesuffix("/lower").removesuffix("/upper").rpartition("/")[2]


def _has_one_axis(scores: ArrayLike) -> bool:
    """Returns whether these are image scores `[B]`."""
    if isinstance(scores, list | tuple):
        return not scores or not hasattr(scores[0], "__len__")
    return (scores if isinstance(scores, Tensor) else np.asarray(scores)).ndim == 1
