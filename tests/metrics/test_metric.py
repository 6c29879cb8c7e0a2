"""The metrics as torchmetrics users meet them: values, names, warnings, forward, reset, copies, checkpoints, devices."""

from __future__ import annotations

import doctest
import math
import warnings
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from torchmetrics import MetricCollection

from anomaly_vlm.metrics import (
    AUPRO,
    AUROC,
    AnomalyMetrics,
    AveragePrecision,
    F1Max,
    FPRAtRecall,
    ImageMetrics,
    PixelMetrics,
    functional,
    image,
    pixel,
    single,
)
from anomaly_vlm.metrics.functional import image_metrics, pixel_metrics
from tests.metrics.cases import EVERYTHING, Case, random_case
from tests.metrics.test_inputs import as_floats, square

MODES: list[dict[str, Any]] = [{}, {"half": True}, {"mode": "binned", "bins": 50}, EVERYTHING]
NAMES = ["exact", "half", "binned", "everything"]


def filled(case: Case, **options: Any) -> AnomalyMetrics:
    metric = AnomalyMetrics(pixel=options)
    for rows in ([0, 1, 2, 3], [4], list(range(5, 23))):
        given = case.rows(rows)
        maps, masks = given.pop("maps"), given.pop("masks")
        metric.update(case.scores[rows], maps, case.labels[rows], masks, **given)
    return metric


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert list(first) == list(second)
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=0, atol=1e-14, equal_nan=True, msg=name)


def test_scores_that_are_known_at_the_end_alone() -> None:
    """Replaced by number; images without a number, or not named, keep theirs."""
    late, plain = ImageMetrics(), ImageMetrics()
    scores, labels, names = [0.9, 0.2, 0.3, 0.4], [0, 1, 0, 1], ["a", "a", "b", "b"]
    both = AnomalyMetrics()
    both.update(scores, np.zeros((4, 2, 2)), labels, None, category=names, index=[7, 8, 9, 10])
    before = float(both.compute()["a/image_auroc"])
    both.replace_scores({7: 0.1, 8: 0.5, 99: 0.0})
    plain.update([0.1, 0.5, 0.3, 0.4], labels, category=names)
    found = both.compute()
    assert (before, float(found["a/image_auroc"])) == (0.0, 1.0)
    for name, value in plain.compute().items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0, msg=name)
    late.update(scores, labels)
    unnumbered = AnomalyMetrics()
    unnumbered.update(scores, np.zeros((4, 2, 2)), labels, None)
    unnumbered.replace_scores({0: 5.0})
    assert float(unnumbered.compute()["image_auroc"]) == float(late.compute()["image_auroc"])
    with pytest.raises(ValueError, match="the new score of image 8 is nan"):
        both.replace_scores({8: math.nan})


def test_against_scikit_learn() -> None:
    case = random_case(30)
    scores = np.concatenate([part.reshape(-1) for part in case.maps])
    labels = np.concatenate([mask.reshape(-1) for mask in case.masks])
    found = pixel_metrics(case.maps, case.masks)
    assert float(found["pixel_auroc"]) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert float(found["pixel_ap"]) == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    found = image_metrics(case.scores, case.labels)
    assert float(found["image_auroc"]) == pytest.approx(roc_auc_score(case.labels, case.scores), abs=1e-12)
    assert float(found["image_ap"]) == pytest.approx(average_precision_score(case.labels, case.scores), abs=1e-12)


def test_values_are_float64_scalars_and_thresholds_are_scores() -> None:
    case = random_case(31)
    values = filled(case, legacy=True).compute()
    assert all(value.shape == () and value.dtype == torch.float64 for value in values.values())
    everything = {float(score) for part in case.maps for score in part.reshape(-1)}
    assert float(values["pooled/pixel_f1_max_threshold"]) in everything


def test_categories_means_and_pooled() -> None:
    case = random_case(32)
    case.masks[:] = [mask * (name != "tile") for mask, name in zip(case.masks, case.category, strict=True)]
    with pytest.warns(UserWarning, match="the pixel values of 'tile' are undefined"):
        values = as_floats(filled(case).compute())
    for name in ("screw", "cable", "tile"):
        rows = [i for i, category in enumerate(case.category) if category == name]
        alone = pixel_metrics([case.maps[i] for i in rows], [case.masks[i] for i in rows])
        for key, value in as_floats(alone).items():
            assert values[f"{name}/{key}"] == pytest.approx(value, abs=1e-14, nan_ok=True)
    assert math.isnan(values["tile/pixel_auroc"])
    assert values["mean/pixel_auroc"] == pytest.approx((values["screw/pixel_auroc"] + values["cable/pixel_auroc"]) / 2)
    assert (values["mean_count/pixel_auroc"], values["mean_count/image_auroc"]) == (2, 3)
    pooled = as_floats(pixel_metrics(case.maps, case.masks))
    assert values["pooled/pixel_aupro"] == pytest.approx(pooled["pixel_aupro"], abs=1e-14)
    assert values["pooled/pixel_f1_max_threshold"] == pooled["pixel_f1_max_threshold"]
    assert not [name for name in values if name.startswith("mean") and ("threshold" in name or "num_" in name)]


def test_categories_come_in_data_set_order() -> None:
    case, metric = random_case(33), PixelMetrics()
    order = list(range(22, -1, -1))
    given = case.rows(order)
    metric.update(given.pop("maps"), given.pop("masks"), **given)
    names = list(dict.fromkeys(name.split("/")[0] for name in metric.compute()))
    assert names == [*dict.fromkeys(case.category), "mean", "mean_count", "pooled"]


def test_options_name_their_values() -> None:
    values = pixel_metrics(*square(), aupro_limits=(0.3, 0.05), connectivity=(8, 4), recall=0.9, legacy=True)
    assert list(values) == [
        "pixel_auroc",
        "pixel_ap",
        "pixel_f1_max",
        "pixel_f1_max_threshold",
        "pixel_fpr90",
        "pixel_aupro",
        "pixel_aupro_limit0.05",
        "pixel_aupro_conn4",
        "pixel_aupro_conn4_limit0.05",
        "pixel_aupro_legacy",
        "pixel_aupro_legacy_filled",
        "num_regions",
        "num_pixels",
        "num_anomalous_pixels",
    ]


def test_sets_without_masks() -> None:
    metric = AnomalyMetrics()
    scores, labels, maps = [0.1, 0.7, 0.4, 0.8], [0, 1, 0, 1], torch.rand(4, 8, 8)
    metric.update(scores, maps, labels, None, category=list("abab"), index=range(4))
    with pytest.warns(UserWarning, match="the image values of 'a', 'b' are undefined"):
        values = as_floats(metric.compute())
    assert values["pooled/image_auroc"] == 1.0
    assert math.isnan(values["a/pixel_auroc"]) and values["mean_count/pixel_auroc"] == 0
    metric.update([0.3], [maps[0]], [1], [torch.ones(8, 8).triu()], category="a", index=[4])
    metric.update([0.2, 0.9], maps[:2], [0, 1], [None, torch.ones(8, 8).tril()], category="b", index=[5, 6])
    values = as_floats(metric.compute())
    assert (values["a/num_pixels"], values["b/num_pixels"]) == (64, 64)
    assert (values["a/image_auroc"], values["b/image_auroc"]) == (0.5, 1.0)


@pytest.mark.parametrize("metric", [PixelMetrics(), PixelMetrics(mode="binned"), ImageMetrics(), AnomalyMetrics()])
def test_nothing_added(metric: Any) -> None:
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        values = as_floats(metric.compute())
    assert all(math.isnan(v) for name, v in values.items() if not name.startswith(("num_", "shift", "bins")))
    assert all(v == 0 for name, v in values.items() if name.startswith(("num_", "shift", "bins")))


def test_one_warning_for_undefined_values() -> None:
    metric = PixelMetrics(legacy=True)
    metric.update(torch.rand(2, 4, 4), torch.zeros(2, 4, 4))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        first = metric.compute()
        metric.update(torch.rand(2, 4, 4), torch.full((2, 4, 4), 255))
        metric.compute()
    assert [str(warning.message) for warning in caught] == [
        "the pixel values are undefined (NaN): they need anomalous and normal pixels"
    ]
    assert math.isnan(first["pixel_ap"]) and first["num_pixels"] == 32


@pytest.mark.parametrize("options", MODES, ids=NAMES)
def test_compute_again_and_after_more_updates(options: dict[str, Any]) -> None:
    case, metric = random_case(34), PixelMetrics(**options)
    for rows in (list(range(12)), list(range(12, 23))):
        given = case.rows(rows)
        metric.update(given.pop("maps"), given.pop("masks"), **given)
        first = metric.compute()
        metric._changed()
        equal(first, metric.compute())
    equal(first, pixel_metrics(case.maps, case.masks, category=case.category, **options))


@pytest.mark.parametrize("options", MODES, ids=NAMES)
def test_forward_gives_the_batch_alone(options: dict[str, Any]) -> None:
    case, metric = random_case(35), PixelMetrics(**options)
    for rows in (list(range(12)), list(range(8, 23))):
        given = case.rows(rows)
        maps, masks = given.pop("maps"), given.pop("masks")
        equal(metric(maps, masks, **given), pixel_metrics(maps, masks, category=given["category"], **options))
    equal(metric.compute(), pixel_metrics(case.maps, case.masks, category=case.category, **options))
    assert metric.update_count == 2


@pytest.mark.parametrize("options", MODES, ids=NAMES)
def test_reset(options: dict[str, Any]) -> None:
    case, metric = random_case(36), PixelMetrics(**options)
    metric.update(*square())
    metric.compute()
    metric.reset()
    given = case.rows(list(range(23)))
    metric.update(given.pop("maps"), given.pop("masks"), **given)
    equal(metric.compute(), pixel_metrics(case.maps, case.masks, category=case.category, **options))


def test_single_metrics_give_the_same_values() -> None:
    case = random_case(42)
    pairs: list[tuple[Any, str]] = [
        (AUROC(), "pixel_auroc"),
        (AveragePrecision(), "pixel_ap"),
        (F1Max(), "pixel_f1_max"),
        (FPRAtRecall(), "pixel_fpr95"),
        (AUPRO(), "pixel_aupro"),
        (AUPRO(0.05), "pixel_aupro_limit0.05"),
        (AUPRO(connectivity=4), "pixel_aupro_conn4"),
        (AUPRO(aupro="legacy"), "pixel_aupro_legacy"),
        (AUPRO(aupro="legacy_filled"), "pixel_aupro_legacy_filled"),
    ]
    plain = pixel_metrics(case.maps, case.masks, **EVERYTHING)
    named = pixel_metrics(case.maps, case.masks, category=case.category, **EVERYTHING)
    for metric, name in pairs:
        metric.update(case.maps, case.masks)
        assert float(metric.compute()) == pytest.approx(float(plain[name]), abs=1e-14)
        metric.reset()
        metric.update(case.maps, case.masks, category=case.category)
        assert float(metric.compute()) == pytest.approx(float(named[f"mean/{name}"]), abs=1e-14)
        wanted = {key: value for key, value in named.items() if key.split("/")[-1].removesuffix("_threshold") == name}
        equal(metric.results(), wanted)
    image = F1Max()
    image.update(case.scores, case.labels)
    expected = image_metrics(case.scores, case.labels)
    assert image.results() == {name: expected[name] for name in ("image_f1_max", "image_f1_max_threshold")}


def test_collection() -> None:
    case = random_case(43)
    metrics = MetricCollection(
        {"auroc": AUROC(), "f1": F1Max(), "fpr": FPRAtRecall(0.9), "binned": AUPRO(mode="binned")}
    )
    for maps, mask in zip(case.maps, case.masks, strict=True):
        metrics.update(maps, mask)
    found = as_floats(metrics.compute())
    expected = as_floats(pixel_metrics(case.maps, case.masks, recall=0.9))
    names = {"auroc": "pixel_auroc", "f1": "pixel_f1_max", "fpr": "pixel_fpr90", "binned": "pixel_aupro"}
    assert found == pytest.approx({key: expected[name] for key, name in names.items()}, abs=1e-12)
    assert (AUROC.higher_is_better, FPRAtRecall.higher_is_better) == (True, False)


def test_binned_says_how_coarse_it_is() -> None:
    maps, masks = square(6, count=4, side=64)
    fine, coarse = (pixel_metrics(maps, masks, mode="binned", bins=bins) for bins in (65536, 64))
    assert (fine["shift"], coarse["shift"] > 20, coarse["bins"] <= 64) == (0, True, True)
    values = pixel_metrics(maps, masks, mode="binned", category=list("aabb"))
    assert values["mean/pixel_ap/lower"] == pytest.approx((values["a/pixel_ap/lower"] + values["b/pixel_ap/lower"]) / 2)
    assert "mean_count/pixel_ap" in values and "mean_count/pixel_ap/lower" not in values


@pytest.mark.parametrize("module", [functional, image, pixel, single], ids=lambda module: module.__name__)
def test_examples_in_docstrings(module: ModuleType) -> None:
    found = doctest.testmod(module)
    assert found.attempted and not found.failed
