"""Anomaly metrics: exact, mergeable and fast.

`PixelMetrics`, `ImageMetrics` and both in one, `AnomalyMetrics`, give AUROC, AP, F1-max, FPR at a recall and (for pixels)
AUPRO of all categories in one pass. `AUROC`, `AveragePrecision`, `F1Max`, `FPRAtRecall` and `AUPRO` give one value each.
`AUPIMO` measures each image by itself at very low false-positive rates. `ComponentMetrics` and `RoadMetrics` are those of
road anomaly segmentation. All are `torchmetrics.Metric`s; the same values come from plain functions of arrays in
`anomaly_vlm.metrics.functional`. Decisions at a threshold, F1 at thresholds of normal images, calibration and bootstrap
intervals are functions in `anomaly_vlm.metrics.decisions`.

The names are loaded when they are first used: a prediction needs the thresholds, and not torchmetrics.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anomaly_vlm.metrics.anomaly import AnomalyMetrics
    from anomaly_vlm.metrics.components import ComponentMetrics
    from anomaly_vlm.metrics.image import ImageMetrics
    from anomaly_vlm.metrics.pixel import PixelMetrics
    from anomaly_vlm.metrics.road import RoadMetrics
    from anomaly_vlm.metrics.single import AUPRO, AUROC, AveragePrecision, F1Max, FPRAtRecall
    from anomaly_vlm.metrics.whole_images import AUPIMO

__all__ = [
    "AUPIMO",
    "AUPRO",
    "AUROC",
    "AnomalyMetrics",
    "AveragePrecision",
    "ComponentMetrics",
    "F1Max",
    "FPRAtRecall",
    "ImageMetrics",
    "PixelMetrics",
    "RoadMetrics",
]

_HOMES = {
    "AUPIMO": "whole_images",
    "AUPRO": "single",
    "AUROC": "single",
    "AnomalyMetrics": "anomaly",
    "AveragePrecision": "single",
    "ComponentMetrics": "components",
    "F1Max": "single",
    "FPRAtRecall": "single",
    "ImageMetrics": "image",
    "PixelMetrics": "pixel",
    "RoadMetrics": "road",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"anomaly_vlm.metrics.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'anomaly_vlm.metrics' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
