"""`CategoryScores`: transductive methods, whose image scores need all evaluated images of a category."""

from __future__ import annotations

from torch import Tensor

from anomaly_vlm.methods.base.method import AnomalyMethod


class CategoryScores(AnomalyMethod):
    """A method whose predictions bring `score_components`, which become scores once all images of a category are there.

    An evaluation calls `category_scores` at its end. `predict` of a batch alone returns the best score that single images
    allow.
    """

    def category_scores(self, components: Tensor) -> Tensor:
        """Computes the image scores of all evaluated images of one category.

        Args:
            components: Their `Prediction.score_components` `[n, K]`.

        Returns:
            `[n]`.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no category_scores")
