"""The values of a road table: pixel and component metrics of several anomaly scores, and accuracy on known classes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from anomaly_vlm.metrics._engine.curves import Curve
from anomaly_vlm.metrics._engine.inputs import ArrayLike
from anomaly_vlm.metrics.components import ComponentMetrics
from anomaly_vlm.metrics.pixel import PixelMetrics

PIXEL_VALUES = ("pixel_ap", "pixel_fpr95", "pixel_auroc")
COMPONENT_VALUES = ("siou", "ppv", "threshold")


class RoadMetrics(Metric):
    """AP, FPR95 and AUROC over all valid pixels, and sIoU, PPV and F1* of components, for several scores of the same images.

    `compute` gives `pixel_ap`, `pixel_fpr95`, `pixel_auroc`, `siou`, `ppv`, `component_f1`, `threshold` and `prevalence`
    (the share of anomalous pixels) as `SCORE/NAME` for each score, and those of the first score as `mean/NAME` too. With
    each comes `known_accuracy`, the share of pixels of the training classes whose class is predicted correctly; it is NaN
    if no class labels were given.

    Args:
        scores: Names of the scores; the first one is the method's own.
        components: Options of `ComponentMetrics`.
        **kwargs: Options of `torchmetrics.Metric`.

    Raises:
        ValueError: No name was given, or an option of `ComponentMetrics` is out of its range.
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
        for metric in (*self.pixels.values(), *self.components.values()):
            metric.void_only = "ignore"  # frames without an obstacle have void pixels alone
        self.add_state("right", torch.tensor(0, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("labelled", torch.tensor(0, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, maps: Mapping[str, Tensor], masks: ArrayLike | None, *, index: ArrayLike | None = None) -> None:
        """Adds frames.

        Args:
            maps: `[B, H, W]` finite pixel scores by the name of the score.
            masks: `[B, H, W]` of 0 (normal), 1 (anomalous) and 255 (ignored); with None, for a set without masks, nothing is
                added.
            index: `[B]` integers, the numbers in the data set; a repeated one counts once.

        Raises:
            ValueError: Names the first bad frame and the value.
        """
        if masks is None:
            return
        for name in self.scores:
            self.pixels[name].update(maps[name], masks, index=index)
            self.components[name].update(maps[name], masks, index=index)

    def update_classes(self, predicted: Tensor, classes: Tensor) -> None:
        """Adds pixels whose class is known.

        Args:
            predicted: Predicted class of each pixel, in any shape.
            classes: True class of each pixel, in the same shape.
        """
        self.right += (predicted == classes).sum().to(self.right)
        self.labelled += predicted.numel()

    def compute(self) -> dict[str, Tensor]:
        """Returns all values by name, as zero-dimensional float64 CPU tensors; the same on every process."""
        accuracy = float(self.right) / float(self.labelled) if self.labelled else math.nan
        out = {}
        for name in self.scores:
            pixel, component = self.pixels[name].compute(), self.components[name].compute()
            row = {key: pixel[key] for key in PIXEL_VALUES if key in pixel}
            row.update({key: component[key] for key in COMPONENT_VALUES})
            row["component_f1"] = component["f1"]
            row["known_accuracy"] = torch.tensor(accuracy, dtype=torch.float64)
            row["prevalence"] = pixel["num_anomalous_pixels"] / pixel["num_pixels"]
            out.update({f"{name}/{key}": value for key, value in row.items()})
        first = f"{self.scores[0]}/"
        out.update({f"mean/{key.removeprefix(first)}": v for key, v in out.items() if key.startswith(first)})
        return out

    def all_curves(self, points: int = 1000) -> dict[tuple[str, str], dict[str, Curve]]:
        """Returns ROC and PR over all valid pixels, by the name of the score and `pixel`; see `CurveMetric.all_curves`."""
        return {(name, "pixel"): self.pixels[name].curves(points=points) for name in self.scores}

    def reset(self) -> None:
        """Forgets all frames and classes."""
        super().reset()
        for metric in (*self.pixels.values(), *self.components.values()):
            metric.reset()
