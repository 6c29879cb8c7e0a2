"""The prediction of a method for a batch, and the row of an image that an evaluation collects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from anomaly_vlm.data.types import Batch
from anomaly_vlm.errors import UserError
from anomaly_vlm.methods.base.verdict import Region, Verdict


class Prediction(NamedTuple):
    """Scores and maps of a batch; higher means more anomalous.

    Attributes:
        score: Image scores `[B]`, finite.
        map: Anomaly maps `[B, H, W]`, finite.
        boxes: B tensors `[n, 4]` of corners (x0, y0, x1, y1) in pixels of the map, for methods that use boxes.
        notes: B texts for the titles of pictures.
        score_components: `[B, K]`, for methods whose scores depend on the other images of a category: what
            `CategoryScores.category_scores` needs of each image.
        verdicts: What the checkpoint's thresholds say of each of B images; empty where there is none.
    """

    score: Tensor
    map: Tensor
    boxes: tuple[Tensor, ...] = ()
    notes: tuple[str, ...] = ()
    score_components: Tensor | None = None
    verdicts: tuple[Verdict, ...] = ()

    @property
    def decision(self) -> list[str]:
        """`OK` or `NOT OK` for each image; empty texts without a threshold."""
        return [verdict.decision for verdict in self.verdicts]

    @property
    def percentile(self) -> list[float | None]:
        """For each image the share in percent of the good parts whose score is not higher; None without a threshold."""
        return [verdict.percentile for verdict in self.verdicts]

    @property
    def regions(self) -> list[tuple[Region, ...]]:
        """For each image where its map is above the threshold of the pixels, the highest first."""
        return [verdict.regions for verdict in self.verdicts]

    def checked(self, batch: Batch) -> Prediction:
        """The prediction as float32.

        Raises:
            UserError: A score or a map is not finite; the message names the image.
        """
        ready = self._replace(score=self.score.detach().float(), map=self.map.detach().float())
        for values, name in ((ready.score[:, None], "score"), (ready.map.flatten(1), "map")):
            bad = ~torch.isfinite(values).all(dim=1)
            if bad.any():
                path = batch.path[int(bad.nonzero()[0])]
                raise UserError(
                    f"the {name} of image '{path}' is not finite: the weights or the precision are at fault; use 32-true"
                )
        return ready


def boxes_of(prediction: Prediction, row: int) -> np.ndarray | None:
    """The boxes `[n, 4]` of an image of a prediction; None where boxes had no part in it."""
    return prediction.boxes[row].cpu().numpy() if prediction.boxes else None


@dataclass(frozen=True, slots=True, order=True)
class ImageRow:
    """One evaluated image, for `images.csv` and the choice of pictures.

    Attributes:
        index: Position in the data set.
        path: Image file.
        category: Row of the results table.
        label: 0 normal, 1 anomalous, -1 unknown.
        score: Image score, from which the metrics are computed.
        score_components: As in its `Prediction`.
        single_image_score: What `predict` gives for the image without the others of its category; None where that is
            `score`.
    """

    index: int
    path: str
    category: str
    label: int
    score: float
    score_components: tuple[float, ...] = ()
    single_image_score: float | None = None

    @property
    def decision_score(self) -> float:
        """The score that a threshold is compared with: that of the image alone, as thresholds are set on such scores."""
        return self.score if self.single_image_score is None else self.single_image_score
