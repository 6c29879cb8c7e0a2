"""`Transductive`: methods that look at all test images of a category before they score one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from anomaly_vlm.data.types import Batch
from anomaly_vlm.errors import UserError
from anomaly_vlm.methods.base.method import AnomalyMethod


class Transductive(AnomalyMethod):
    """A method whose predictions depend on the set of images that is scored, and hold for that set alone.

    Runs, and calls with images, hand over every category before they ask for predictions. A subclass defines
    `fit_test_category`; one that is transductive with some options alone overrides `is_transductive`.
    """

    @property
    def is_transductive(self) -> bool:
        """Whether predictions depend on the set of images that is scored, as configured."""
        return True

    def check_test_set(self, counts: Mapping[str, int]) -> None:
        """Checks the numbers of images by category, before any image is read.

        Raises:
            UserError: A category has too few.
        """

    def fit_test_category(self, category: str, images: Sequence[Batch]) -> None:
        """Takes in all images of one category that will be scored.

        Args:
            category: The category.
            images: Batches of one image each, all of the same category; each is read, on the method's device, when it is
                asked for. Labels and masks must not be used.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no fit_test_category")

    def display_name(self, name: str) -> str:
        """The method's name, marked as transductive where it is."""
        name = super().display_name(name)
        return f"{name} (transductive)" if self.is_transductive else name

    def not_seen(self, batch: Batch, row: int) -> UserError:
        """The error for an image that was not among those handed over."""
        return UserError(
            f"image '{batch.path[row]}' was not among the images that {type(self).__name__} compared with each other: hand"
            " over all images of a category together"
        )


def image_name(batch: Batch, row: int = 0) -> str:
    """Names an image of the set that is scored; the same file twice has two names."""
    return f"{int(batch.index[row])}:{batch.path[row]}"
