"""Anomaly metrics: exact, mergeable and fast.

`PixelMetrics`, `ImageMetrics` and both in one, `AnomalyMetrics`, give AUROC, AP, F1-max, FPR at a recall and (for pixels)
AUPRO of all categories in one pass. `AUROC`, `AveragePrecision`, `F1Max`, `FPRAtRecall` and `AUPRO` give one value each.
`ComponentMetrics` and `RoadMetrics` are those of road anomaly segmentation. All are `torchmetrics.Metric`s; the same values
come from plain functions of arrays in `anomaly_vlm.metrics.functional`.
"""

from anomaly_vlm.metrics.anomaly import AnomalyMetrics
from anomaly_vlm.metrics.components import ComponentMetrics
from anomaly_vlm.metrics.image import ImageMetrics
from anomaly_vlm.metrics.pixel import PixelMetrics
from anomaly_vlm.metrics.road import RoadMetrics
from anomaly_vlm.metrics.single import AUPRO, AUROC, AveragePrecision, F1Max, FPRAtRecall

__all__ = [
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
