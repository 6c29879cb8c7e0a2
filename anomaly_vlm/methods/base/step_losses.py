"""`StepLosses`: the losses of an epoch's steps, of which a logger gets some and their means."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


class StepLosses:
    """Sums the losses of an epoch, as Lightning's own means cost a few milliseconds a step.

    Attributes:
        images: Number of images of all steps.
        sums: Loss by name, summed over the images.
    """

    def __init__(self) -> None:
        self.images = 0
        self.sums: dict[str, Tensor] = {}

    def add(self, values: Mapping[str, Tensor], images: int) -> None:
        """Adds the losses of a step of so many images."""
        self.images += images
        for name, value in values.items():
            weighed = value.detach() * images
            self.sums[name] = self.sums[name] + weighed if name in self.sums else weighed

    def means(self) -> dict[str, Tensor]:
        """The means over the images by name, and begins anew."""
        found = {name: value / self.images for name, value in self.sums.items()}
        self.images, self.sums = 0, {}
        return found
