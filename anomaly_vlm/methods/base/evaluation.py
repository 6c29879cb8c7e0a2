"""An evaluation: the metrics and the image rows of one pass over a test set, handed to a method."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist

from anomaly_vlm.data.types import VOID, Batch
from anomaly_vlm.methods.base.prediction import ImageRow, Prediction
from anomaly_vlm.names import category_and_metric, mean_values
from anomaly_vlm.reporting.console import is_first_process

log = logging.getLogger("anomaly_vlm")
CURVE_POINTS = 100  # a curve is off by less than 1 / 100 of its height, and has 200 vertices at most, mostly far fewer


def default_metrics() -> Any:
    """New `AnomalyMetrics`, which are imported only where something is evaluated."""
    from anomaly_vlm.metrics import AnomalyMetrics

    return AnomalyMetrics()


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
        return mean_values(self.values)


class Evaluation:
    """Collects metrics and image rows of one pass at a time.

    A method calls `start`, `update` and `finish`. The result of the last pass stays in `result`. A subclass with other
    metrics defines `measure` and `metric_names`.

    Args:
        metrics: Makes the metrics of a pass; None for `AnomalyMetrics` with its defaults.
        curves: Whether tests give curves too, which costs as much as the metrics again.
    """

    def __init__(self, metrics: Callable[[], Any] | None = None, *, curves: bool = False) -> None:
        self.make_metrics = metrics or default_metrics
        self.with_curves = curves
        self.metrics: Any = None
        self.result = EvaluationResult()
        self._rows: list[ImageRow] = []
        # Of anomalous images with a mask: index, path, whether any anomalous pixel is left.
        self._masks: list[tuple[int, str, bool]] = []

    def metric_names(self, method: Any) -> list[str]:
        """Names of the metrics that a pass gives; they are the same for every set.

        Args:
            method: Which is to be evaluated.
        """
        metrics, (maps, masks) = self.make_metrics(), two_images()
        metrics.update(maps.amax(dim=(1, 2)), maps, masks.amax(dim=(1, 2)), masks, category="any", index=[0, 1])
        return names_of(metrics.compute())

    def start(self, method: Any) -> None:
        """Begins a pass with new metrics."""
        self.metrics, self._rows, self._masks = self.make_metrics(), [], []

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
            has_anomalous, has_void = ((batch.mask == value).flatten(1).any(dim=1).tolist() for value in (1, VOID))
            for index, path, label, anomalous, ignored in zip(
                batch.index.tolist(), batch.path, batch.label.tolist(), has_anomalous, has_void, strict=True
            ):
                if label == 1 and (anomalous or not ignored):
                    self._masks.append((index, path, anomalous))
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
        rows, masks = self._rows, self._masks
        if dist.is_available() and dist.is_initialized():
            gathered: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(gathered, (rows, masks))
            rows, masks = ([row for process in gathered for row in process[part]] for part in (0, 1))
        _warn_empty_masks(sorted(set(masks)), method)
        rows = self._with_category_scores(method, sorted({row.index: row for row in rows}.values()))
        values = {key: float(value) for key, value in self.metrics.compute().items()}
        curves = self.metrics.all_curves(CURVE_POINTS) if testing and self.with_curves else {}
        self.metrics, self._rows, self._masks = None, [], []
        self.result = EvaluationResult(values, rows, curves)
        return self.result

    def _with_category_scores(self, method: Any, rows: list[ImageRow]) -> list[ImageRow]:
        """Replaces scores that depend on the whole category by the final ones, in the rows and in the metrics.

        The rows keep the score of the image alone beside the final one.
        """
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
        return [
            replace(row, score=final[row.index], single_image_score=row.score) if row.index in final else row
            for row in rows
        ]


def two_images() -> tuple[torch.Tensor, torch.Tensor]:
    """Maps and masks `[2, 8, 8]` of a normal and an anomalous image, to try metrics out with."""
    maps, masks = torch.arange(128.0).view(2, 8, 8) / 128, torch.zeros(2, 8, 8, dtype=torch.uint8)
    masks[1, 4:] = 1
    return maps, masks


def names_of(values: Mapping[str, Any]) -> list[str]:
    """The names of metrics that have a mean over the categories, or are no category's."""
    rows = (category_and_metric(key) for key in values)
    return sorted({name for row, name in rows if row in ("mean", "")})


def _warn_empty_masks(masks: Sequence[tuple[int, str, bool]], method: Any) -> None:
    """Warns of anomalous images whose mask has no anomalous pixel left at the evaluation's resolution."""
    empty = [path for _, path, anomalous in masks if not anomalous]
    if empty and is_first_process():
        side = "" if method.preprocess is None else f" at {method.preprocess.mask_side} px"
        log.warning(
            "%d of %d masks are empty%s, so that their images count without a region (%s%s)",
            len(empty), len(masks), side, ", ".join(empty[:3]), ", ..." if len(empty) > 3 else "",
        )  # fmt: skip
