"""`Calibrated`: methods that look at their training images once more, after training, to set constants of their scores."""

from __future__ import annotations

from collections.abc import Iterable

from anomaly_vlm.data.types import Batch
from anomaly_vlm.methods.base.method import AnomalyMethod


class Calibrated(AnomalyMethod):
    """A method that computes constants of its scores from the training images and stores them with its weights."""

    def calibrate(self, batches: Iterable[Batch]) -> None:
        """Computes and sets the constants.

        Args:
            batches: The training images as an evaluation would see them, without augmentation, on the method's device.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no calibrate")
