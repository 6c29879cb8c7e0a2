"""An evaluation: the metrics and the image rows of one pass over a test set, handed to a method."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import lightning as L
import torch
import torch.distributed as dist

from anomaly_vlm.data.types import VOID, Batch
from anomaly_vlm.methods.base.images import Images, predict_images
from anomaly_vlm.methods.base.prediction import ImageRow, Prediction
from anomaly_vlm.metrics import AnomalyMetrics

log = logging.getLogger("anomaly_vlm")
CURVE_POINTS = 100  # a curve is off by less than 1 / 100 of its height, and has 200 vertices at most, mostly far fewer


@dataclass(frozen=True)
class EvaluationResult:
    """The result of an evaluation.

    Attributes:
        values: Metrics by `CATEGORY/NAME` and `mean/NAME`, fractions in [0, 1].
        rows: A row for each image, in the order of the data set.
        curves: ROC, PR and PRO by category and level, see `metrics.AnomalyMetrics.all_curves`; empty where not asked for.
    """

    values: dict[str, float] = field(default_factory=dict)
    rows: list[ImageRow] = field(default_factory=list)
    curves: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)

    @property
    def means(self) -> dict[str, float]:
        """Means over the categories, by metric."""
        return {key.removeprefix("mean/"): value for key, value in self.values.items() if key.startswith("mean/")}


class Evaluation:
    """Collects metrics and image rows of one pass at a time.

    Lightning's hooks of a method call `start`, `update` and `finish`. The result of the last pass stays in `result`.

    Args:
        metrics: Makes the metrics of a pass.
        curves: Whether tests give curves too, which costs as much as the metrics again.
    """

    def __init__(self, metrics: Callable[[], Any] = AnomalyMetrics, *, curves: bool = False) -> None:
        self.make_metrics = metrics
        self.with_curves = curves
        self.metrics: Any = None
        self.result = EvaluationResult()
        self._rows: list[ImageRow] = []
        self._regions: list[tuple[int, str, bool]] = []  # of anomalous images with a mask: index, path, any region left

    def start(self, method: Any) -> None:
        """Begins a pass with new metrics."""
        self.metrics, self._rows, self._regions = self.make_metrics(), [], []

    def update(self, method: Any, batch: Batch) -> Prediction:
        """Predicts a batch and adds it to metrics and rows."""
        prediction = self.measure(method, batch)
        columns = (batch.index, batch.label, prediction.score)
        components = prediction.score_components
        each = [()] * len(batch) if components is None else [tuple(row) for row in components.tolist()]
        for path, category, index, label, score, row in zip(
            batch.path, batch.category, *(column.tolist() for column in columns), each, strict=True
        ):
            self._rows.append(ImageRow(index, path, category, label, score, row))
        return prediction

    def measure(self, method: Any, batch: Batch) -> Prediction:
        """Predicts a batch and adds it to the metrics alone."""
        prediction: Prediction = method.predict(batch).checked(batch)
        if batch.mask is not None:
            left, void = ((batch.mask == value).flatten(1).any(dim=1).tolist() for value in (1, VOID))
            for index, path, label, here, unknown in zip(
                batch.index.tolist(), batch.path, batch.label.tolist(), left, void, strict=True
            ):
                if label == 1 and (here or not unknown):
                    self._regions.append((index, path, here))
        self.metrics.update(
            prediction.score, prediction.map, batch.label, batch.mask, category=batch.category, index=batch.index
        )
        return prediction

    def finish(self, method: Any, *, testing: bool = True) -> EvaluationResult:
        """Ends the pass on all processes: gathers the rows, computes the scores of whole categories and the metrics.

        Args:
            method: Whose predictions these are.
            testing: Whether this is a test, which may be asked for curves, and no validation.
        """
        rows, regions = self._rows, self._regions
        if dist.is_available() and dist.is_initialized():
            gathered: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(gathered, (rows, regions))
            rows, regions = ([row for process in gathered for row in process[part]] for part in (0, 1))
        _name_empty_masks(sorted(set(regions)), method)
        rows = self._with_category_scores(method, sorted({row.index: row for row in rows}.values()))
        values = {key: float(value) for key, value in self.metrics.compute().items()}
        curves = self.metrics.all_curves(CURVE_POINTS) if testing and self.with_curves else {}
        self.metrics, self._rows, self._regions = None, [], []
        self.result = EvaluationResult(values, rows, curves)
        return self.result

    def _with_category_scores(self, method: Any, rows: list[ImageRow]) -> list[ImageRow]:
        """Replaces scores that depend on the whole category by the final ones, in the rows and in the metrics."""
        by_category: dict[str, list[ImageRow]] = {}
        for row in rows:
            if row.score_components:
                by_category.setdefault(row.category, []).append(row)
        final: dict[int, float] = {}
        for members in by_category.values():
            scores = method.category_scores(torch.tensor([row.score_components for row in members])).tolist()
            final.update({row.index: score for row, score in zip(members, scores, strict=True)})
        if final:
            self.metrics.replace_scores(final)
        return [replace(row, score=final.get(row.index, row.score)) for row in rows]


def _name_empty_masks(regions: Sequence[tuple[int, str, bool]], method: Any) -> None:
    """Says which anomalous images have no anomalous pixel at the size of the evaluation: thin regions vanish there."""
    empty = [path for _, path, here in regions if not here]
    if empty and method.global_rank == 0:
        side = "" if method.preprocess is None else f" at {method.preprocess.mask_side} px"
        log.warning(
            "%d of %d masks are empty%s, so that their images count without a region (%s%s)",
            len(empty), len(regions), side, ", ".join(empty[:3]), ", ..." if len(empty) > 3 else "",
        )  # fmt: skip


class Evaluated(L.LightningModule):
    """What is done with a method's predictions: a call with images, and Lightning's tests, validations and predictions.

    Attributes:
        evaluation: Collects metrics and image rows; its `result` is that of the last pass.
    """

    evaluation: Evaluation

    def predict(self, batch: Batch) -> Prediction:
        """Computes scores and maps of a batch, without gradient."""
        raise NotImplementedError(f"{type(self).__name__} defines no predict")

    def invalidate_caches(self) -> None:
        """Drops what was computed from learned values; it is called whenever these may have changed."""

    def forward(self, images: Images, category: str | Sequence[str] | None = None) -> Prediction:
        """Scores and maps of images as a user has them, at their own size; see `images.predict_images`."""
        return predict_images(self, images, category)

    def on_test_epoch_start(self) -> None:
        self.invalidate_caches()
        self.evaluation.start(self)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds a batch to the evaluation."""
        self.evaluation.update(self, batch)

    def on_test_epoch_end(self) -> None:
        self._finish("test")

    def on_validation_epoch_start(self) -> None:
        self.invalidate_caches()
        self.evaluation.start(self)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds a batch to the evaluation."""
        self.evaluation.update(self, batch)

    def on_validation_epoch_end(self) -> None:
        self._finish("val")

    def _finish(self, stage: str) -> None:
        """Ends the pass, and logs the means that are numbers."""
        for key, value in self.evaluation.finish(self, testing=stage == "test").values.items():
            row, _, name = key.rpartition("/")
            if row in ("mean", "") and value == value:
                self.log(f"{stage}/{name}", value, rank_zero_only=False, sync_dist=False)

    def on_predict_epoch_start(self) -> None:
        self.invalidate_caches()

    def predict_step(self, batch: Batch, batch_idx: int) -> Prediction:
        """The checked prediction of a batch."""
        return self.predict(batch).checked(batch)
