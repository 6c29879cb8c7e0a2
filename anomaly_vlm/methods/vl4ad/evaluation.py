"""Evaluation on road scenes: several scores from the same masks, and the accuracy of the known classes."""

from __future__ import annotations

from typing import Any

import torch

from anomaly_vlm.data.types import Batch
from anomaly_vlm.methods.base.evaluation import Evaluation, names_of, two_images
from anomaly_vlm.methods.base.prediction import Prediction
from anomaly_vlm.methods.vl4ad.pixel_scores import anomaly_score
from anomaly_vlm.metrics import RoadMetrics


class RoadEvaluation(Evaluation):
    """An evaluation whose table has a row for each score in place of one for each category."""

    def metric_names(self, method: Any) -> list[str]:
        """Names of the metrics that a pass gives.

        Args:
            method: Which is to be evaluated.
        """
        metrics, (maps, masks) = RoadMetrics([method.score], components=method.components), two_images()
        metrics.update({method.score: maps}, masks, index=torch.arange(2))
        return names_of(metrics.compute())

    def start(self, method: Any) -> None:
        """Begins a pass with the metrics of the scores that the method compares."""
        self.make_metrics = lambda: RoadMetrics(method.compare, components=method.components)
        super().start(method)

    def measure(self, method: Any, batch: Batch) -> Prediction:
        """Adds all compared scores of a batch, and the classes of labelled pixels, to the metrics."""
        y = method.pixel_classes(batch.image)
        prediction: Prediction = method.prediction(batch, y).checked(batch)
        maps = {name: anomaly_score(y, name).float() for name in method.compare}
        self.metrics.update(maps, batch.mask, index=batch.index)
        if batch.semantic is not None:
            of_class = torch.tensor(method.columns.of_class, device=y.by_class.device)
            labelled = batch.semantic < len(of_class)
            predicted = y.by_class[:, : y.num_known].argmax(dim=1)[labelled]
            self.metrics.update_classes(predicted, of_class[batch.semantic[labelled].long()])
        return prediction
