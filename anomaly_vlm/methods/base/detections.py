"""`UsesDetections`: methods that ask a detector about every image before an evaluation."""

from __future__ import annotations

from typing import Any

from anomaly_vlm.backbone import ClipBackbone
from anomaly_vlm.detectors import Detector, MapDetector, Queries
from anomaly_vlm.errors import UserError
from anomaly_vlm.methods.base.method import AnomalyMethod


class UsesDetections(AnomalyMethod):
    """A method that reads the detections of an image.

    Args:
        backbone: Frozen towers.
        detector: An open-vocabulary detector, one that reads the method's own map, or None.
        base: See `AnomalyMethod`.

    Attributes:
        detections: Detections by (image path, caption), which `runs.detect.precompute_detections` fills in.
    """

    def __init__(self, backbone: ClipBackbone, *, detector: Detector | MapDetector | None = None, **base: Any) -> None:
        super().__init__(backbone, **base)
        self.detector = detector
        self.detections: dict[tuple[str, str], Queries] = {}

    def captions(self, category: str) -> tuple[str, ...]:
        """Captions that the detector gets with every image of a category; () where it is not run."""
        raise NotImplementedError(f"{type(self).__name__} defines no captions")

    def detections_for(self, path: str, caption: str) -> Queries:
        """The detections of an image for a caption.

        Raises:
            UserError: The detector was not run on the image.
        """
        if (path, caption) not in self.detections:
            raise UserError(
                f"no detections of image '{path}': the detector looks at all images before an evaluation"
                " (runs.detect.precompute_detections)"
            )
        return self.detections[path, caption]
