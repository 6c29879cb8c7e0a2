"""Anomaly metrics: exact, mergeable and fast.

`PixelMetrics`, `ImageMetrics` and both in one, `AnomalyMetrics`, give AUROC, AP, F1-max, FPR at a recall and (for pixels)
AUPRO of all categories in one pass. `AUROC`, `AveragePrecision`, `F1Max`, `FPRAtRecall` and `AUPRO` give one value each.
`AUPIMO` measures each image by itself at very low false-positive rates. `ComponentMetrics` and `RoadMetrics` are those of
road anomaly segmentation. All are `torchmetrics.Metric`s; the same values come from plain functions of arrays in
`anomaly_vlm.metrics.functional`. Decisions at a threshold, F1 at thresholds of normal images, calibration and bootstrap
intervals are functions in `anomaly_vlm.metrics.decisions`.
"""

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
