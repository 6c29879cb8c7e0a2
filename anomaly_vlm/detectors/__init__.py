"""Detectors behind one interface: open-vocabulary models, boxes from a file, or from a method's own map. Masks for boxes.

Backends import their packages when they are built, so that this package loads without them.
"""

from __future__ import annotations

from anomaly_vlm.detectors.base import Detector, MapDetector, Picture
from anomaly_vlm.detectors.boxes import (
    Detections,
    Queries,
    caption_of,
    check_floor,
    clip,
    corners,
    detections,
    phrase_of,
    phrases_of,
    select,
)
from anomaly_vlm.detectors.components import ComponentsDetector
from anomaly_vlm.detectors.contrast import ContrastSegmenter
from anomaly_vlm.detectors.segmenter import Segmenter
from anomaly_vlm.detectors.stores import DetectionStore, MaskStore

__all__ = [
    "ComponentsDetector",
    "ContrastSegmenter",
    "DetectionStore",
    "Detections",
    "Detector",
    "MapDetector",
    "MaskStore",
    "Picture",
    "Queries",
    "Segmenter",
    "caption_of",
    "check_floor",
    "clip",
    "corners",
    "detections",
    "no_detector",
    "phrase_of",
    "phrases_of",
    "select",
]


def no_detector() -> None:
    """`detector=none`: a method that can do without looks at no boxes."""
    return
