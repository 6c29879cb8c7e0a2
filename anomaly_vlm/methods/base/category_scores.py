"""`CategoryScores`: methods whose image scores are computed at the end of an evaluation, from all images of a category."""

from __future__ import annotations

from torch import Tensor

from anomaly_vlm.methods.base.method import AnomalyMethod


class CategoryScores(AnomalyMethod):
    """A method whose `predict` also returns `score_components`; an evaluation turns those of a category into image scores.

    At its end an evaluation calls `category_scores`. A call of `predict` for a single batch returns the best score that is
    possible without the other images.
    """

    def category_scores(self, components: Tensor) -> Tensor:
        """Computes the image scores of all evaluated images of one category.

        Args:
            components: Their `Prediction.score_components` `[n, K]`.

        Returns:
            `[n]`.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no category_scores")
