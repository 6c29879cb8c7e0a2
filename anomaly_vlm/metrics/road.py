"""The road table: pixel and component metrics of several anomaly scores of the same images, and known-class accuracy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from anomaly_vlm.metrics._engine.inputs import ArrayLike
from anomaly_vlm.metrics.components import ComponentMetrics
from anomaly_vlm.metrics.pixel import PixelMetrics

PIXEL = ("pixel_ap", "pixel_fpr95", "pixel_auroc")


class RoadMetrics(Metric):
    """AP, FPR95 and AUROC over all valid pixels, sIoU, PPV and F1* of components, for each score.

    `compute` gives `pixel_ap`, `pixel_fpr95`, `pixel_auroc`, `siou`, `ppv`, `component_f1`, `threshold` and `prevalence`
    (share of anomalous pixels) as `SCORE/NAME`, those of the first score as `mean/NAME`; and with each `known_accuracy`, the
    share of pixels of known classes whose class is right (NaN where no labels of classes were given).

    Args:
        scores: names; the first one is the method's own.
        components: options of `ComponentMetrics`.
        kwargs: of `torchmetrics.Metric`.
    """

    full_state_update = False
    is_differentiable = False
    right: Tensor
    labelled: Tensor

    def __init__(self, scores: Sequence[str], *, components: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(compute_with_cache=False, **kwargs)
        if not scores:
            raise ValueError("scores is empty: give at least one name")
        self.scores = tuple(scores)
        self.pixels = {name: PixelMetrics(aupro_limits=()) for name in self.scores}
        self.components = {name: ComponentMetrics(**(components or {})) for name in self.scores}
        self.add_state("right", torch.tensor(0, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("labelled", torch.tensor(0, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, maps: Mapping[str, Tensor], masks: ArrayLike | None, *, index: ArrayLike | None = None) -> None:
        """Adds frames.

        Args:
            maps: score -> [B, H, W]. masks: [B, H, W] of 0 / 1 / 255; None where the set has none: nothing is added.
            index: [B] number in the data set.
        """
        if masks is None:
            return
        for name in self.scores:
            self.pixels[name].update(maps[name], masks, index=index)
            self.components[name].update(maps[name], masks, index=index)

    def update_classes(self, predicted: Tensor, classes: Tensor) -> None:
        """Adds predicted and true classes, any one shape, of pixels whose class is known."""
        self.right += (predicted == classes).sum().to(self.right)
        self.labelled += predicted.numel()

    def compute(self) -> dict[str, Tensor]:
        """All values by name, as 0-dim float64 CPU tensors; the same on every process."""
        share = float(self.right) / float(self.labelled) if self.labelled else math.nan
        out = {}
        for name in self.scores:
            pixel, component = self.pixels[name].compute(), self.components[name].compute()
            row = {key: pixel[key] for key in PIXEL if key in pixel}
            row.update({key: component[key] for key in ("siou", "ppv", "threshold")})
            row.update({"component_f1": component["f1"], "known_accuracy": torch.tensor(share, dtype=torch.float64)})
            row["prevalence"] = pixel["num_anomalous_pixels"] / pixel["num_pixels"]
            out.update({f"{name}/{key}": value for key, value in row.items()})
        first = self.scores[0]
        out.update(
            {f"mean/{key.removeprefix(f'{first}/')}": v for key, v in out.items() if key.startswith(f"{first}/")}
        )
        return out

    def reset(self) -> None:
        """Forgets everything."""
        super().reset()
        for metric in (*self.pixels.values(), *self.components.values()):
            metric.reset()
