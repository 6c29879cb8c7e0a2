"""One value each, with the engine of `PixelMetrics` and `ImageMetrics`. Several at once: `PixelMetrics` shares the work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from anomaly_vlm.metrics._engine import pixel_engine
from anomaly_vlm.metrics._engine.group import Alone
from anomaly_vlm.metrics._engine.image import ImageEngine
from anomaly_vlm.metrics._engine.inputs import ArrayLike
from anomaly_vlm.metrics._engine.metric import EngineMetric
from anomaly_vlm.metrics._engine.options import PixelOptions, Values, as_tensors, recall_name
from anomaly_vlm.metrics._engine.pixel import PixelEngine


class SingleMetric(EngineMetric):
    """Base of the metrics of one value, for maps and masks (pixel level) or for scores and labels (image level).

    `compute` gives a 0-dim float64 tensor: the value, or its mean over the categories where it is defined.

    Args:
        mode, bins, half, workers, device: of `PixelMetrics`.
        kwargs: of `torchmetrics.Metric`.
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
        options = PixelOptions.make(mode, bins, half=half, workers=workers, device=device)
        super().__init__(self._engines(options), **kwargs)

    def _engines(self, options: PixelOptions) -> dict[str, PixelEngine | ImageEngine]:
        """The engines of both levels, without work that the value does not need."""
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
        """Adds images, as `PixelMetrics.update` where `scores` are maps ([B, H, W] ...) and as `ImageMetrics.update` where
        they are [B].

        Raises:
            ValueError: see there; or maps and image scores in one metric.
        """
        level = "image" if _is_flat(scores) else "pixel"
        if level not in self.engines:
            raise ValueError(f"{type(self).__name__} needs maps [B, H, W] and masks, not one score an image")
        other = "pixel" if level == "image" else "image"
        if other in self.engines and self.engines[other].ledger.categories:
            raise ValueError(
                f"{type(self).__name__} holds {other} scores already: use another metric for {level} scores"
            )
        engine = self.engines[level]
        engine.commit(engine.prepare(scores, targets, category, index))
        self._changed()

    def compute(self) -> Tensor:
        """The value; its mean over categories where those were given."""
        values = self.values()
        plain = (f"pixel_{self.value_name}", f"image_{self.value_name}")
        name = next(name for name in values if name.removeprefix("mean/") in plain)
        return as_tensors(values)[name]

    def results(self) -> dict[str, Tensor]:
        """The value of every category, their mean and the pooled value; F1-max with its thresholds."""
        return as_tensors(self.values())

    def _results(self, group: Alone) -> Values:
        levels = {name for part in group.gather_objects(self._levels()) for name in part}
        if len(levels) > 1:
            raise ValueError(f"{type(self).__name__} got maps on one process and image scores on another: use one kind")
        level = levels.pop() if levels else "pixel"
        values = self.engines[level].results(group)
        wanted = (f"{level}_{self.value_name}", f"{level}_{self.value_name}_threshold")
        return {name: value for name, value in values.items() if _base_name(name) in wanted}

    def _levels(self) -> list[str]:
        return [name for name, engine in self.engines.items() if engine.ledger.categories]

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: Any = None) -> Any:
        """The value, or a series of values, as torchmetrics draws them (needs matplotlib, extra `plot`)."""
        return self._plot(val, ax)


class AUROC(SingleMetric):
    """Area under the ROC curve (Mann-Whitney; ties count one half).

    Example:
        >>> metric = AUROC()
        >>> metric.update([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
        >>> metric.compute()
        tensor(0.7500, dtype=torch.float64)
    """

    value_name = "auroc"


class AveragePrecision(SingleMetric):
    """Average precision, step-wise as scikit-learn (not the optimistic trapezoid area)."""

    value_name = "ap"


class F1Max(SingleMetric):
    """Largest F1 over all thresholds; `results()` names the threshold too."""

    value_name = "f1_max"


class FPRAtRecall(SingleMetric):
    """False-positive rate at the largest threshold that reaches a recall.

    Args:
        recall: in (0, 1].
        kwargs: of `SingleMetric`.
    """

    higher_is_better = False

    def __init__(self, recall: float = 0.95, **kwargs: Any) -> None:
        self._recall = PixelOptions.make(recall=recall).recall
        super().__init__(**kwargs)

    def _engines(self, options: PixelOptions) -> dict[str, PixelEngine | ImageEngine]:
        return super()._engines(replace(options, recall=self._recall))

    @property
    def value_name(self) -> str:
        return recall_name(self._recall)


class AUPRO(SingleMetric):
    """Area under the per-region overlap curve up to a false-positive rate; maps and masks only.

    Args:
        limit: false-positive rate in (0, 1].
        connectivity: 8 or 4.
        aupro: `exact`, or the published codes' 200-threshold values `legacy` and `legacy_filled` (limit 0.3, 8-connected).
        kwargs: of `SingleMetric`.
    """

    def __init__(self, limit: float = 0.3, connectivity: int = 8, aupro: str = "exact", **kwargs: Any) -> None:
        if aupro not in ("exact", "legacy", "legacy_filled"):
            raise ValueError(f"aupro is {aupro!r}: choose exact, legacy or legacy_filled")
        self._variant = aupro
        self._asked = PixelOptions.make(
            kwargs.get("mode", "exact"), aupro_limits=limit, connectivity=connectivity, legacy=aupro != "exact"
        )
        if aupro != "exact" and limit != 0.3:
            raise ValueError(f"aupro={aupro!r} is defined for limit=0.3 only, not {limit}")
        super().__init__(**kwargs)

    def _engines(self, options: PixelOptions) -> dict[str, PixelEngine | ImageEngine]:
        asked = self._asked
        options = replace(
            options, aupro_limits=asked.aupro_limits, connectivity=asked.connectivity, legacy=asked.legacy
        )
        return {"pixel": pixel_engine(options)}

    @property
    def value_name(self) -> str:
        if self._variant != "exact":
            return f"aupro_{self._variant}"
        return self._asked.aupro_names()[0][0].removeprefix("pixel_")


def _base_name(name: str) -> str:
    """`pixel_auroc` of `bottle/pixel_auroc`, `mean/pixel_auroc/lower` ..."""
    return name.removesuffix("/lower").removesuffix("/upper").rpartition("/")[2]


def _is_flat(scores: Any) -> bool:
    if isinstance(scores, list | tuple):
        return not scores or not hasattr(scores[0], "__len__")
    return scores.ndim == 1
