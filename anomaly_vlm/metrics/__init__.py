"""Anomaly metrics: exact, mergeable, fast. Pixel and image AUROC, AP, F1-max, FPR at a recall, AUPRO; road components."""

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
