"""What weights are chosen by: whether the evaluated side can give it, and which way is better."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from anomaly_vlm.data import Sample
from anomaly_vlm.errors import UserError
from anomaly_vlm.methods.base.evaluation import Evaluation
from anomaly_vlm.runs.compose import compose
from anomaly_vlm.runs.fit import savers
from anomaly_vlm.runs.selection import check_watched, mode_of
from tests.data.made import squares
from tests.support.road import small_vl4ad

GOOD = [Sample(f"{i}.png", "gear", 0) for i in range(3)]


def run(samples: list[Sample], *words: str, evaluation: Evaluation | None = None) -> Any:
    """What `check_watched` reads of a run that evaluates these samples after every epoch."""
    return SimpleNamespace(
        cfg=compose(["method=linear_heads", "backbone=tiny_random", *words]),
        data=SimpleNamespace(selection_side="test", samples=lambda side: samples),
        method=SimpleNamespace(evaluation=evaluation or Evaluation()),
    )


@pytest.mark.parametrize(
    ("samples", "metric", "message"),
    [
        (squares(4, kind="image"), "pixel_f1_max", "has no pixel masks: choose selection_metric=image_auroc"),
        (GOOD, "pixel_auroc", "has no pixel masks"),
        (GOOD, "image_auroc", "no category with both normal and anomalous images"),
        (squares(4), "pixel_f1", "unknown selection_metric 'pixel_f1'.*did you mean pixel_f1_max"),
    ],
)
def test_a_metric_that_the_evaluated_images_cannot_give(samples: list[Sample], metric: str, message: str) -> None:
    chosen = run(samples, "selection=best_test", f"selection_metric={metric}")
    with pytest.raises(UserError, match=message):
        check_watched(chosen)
    check_watched(run(samples, f"selection_metric={metric}"))  # the last weights: nothing watches it
    check_watched(run(squares(4), "selection=best_test"))
    check_watched(run(squares(4, kind="image"), "selection=best_test", "selection_metric=image_ap"))


def test_a_callback_that_watches_a_metric_is_checked_too() -> None:
    words = ["callbacks=early_stopping", "selection_metric=pixel_fpr95"]
    with pytest.raises(
        UserError, match=r"callbacks.early_stopping.mode is max, .*: set callbacks.early_stopping.mode=min"
    ):
        check_watched(run(squares(4), *words))
    check_watched(run(squares(4), *words, "callbacks.early_stopping.mode=min"))
    with pytest.raises(UserError, match=r"callbacks.early_stopping.monitor: pixel_f1_max is no number"):
        check_watched(run(squares(4, kind="image"), "callbacks=early_stopping"))


def test_road_scenes_have_metrics_of_their_own() -> None:
    names = (method := small_vl4ad()).evaluation.metric_names(method)
    assert {"pixel_ap", "component_f1", "known_accuracy"} <= set(names) and "image_auroc" not in names


def test_rates_of_errors_are_better_where_they_are_smaller(tmp_path: Path) -> None:
    falling = ["image_fpr95", "pixel_fpr95", "image_calibration_error"]
    assert [mode_of(name) for name in (*falling, "pixel_f1_max", "image_auroc")] == ["min"] * 3 + ["max"] * 2
    for metric in ("pixel_fpr95", "pixel_ap"):
        cfg = compose(["method=adaclip", "selection=best_test", f"selection_metric={metric}"])
        assert savers(cfg, tmp_path, choosing=True)[-1].mode == mode_of(metric)
