"""Curves for drawing: their areas, the error of thinning, and what matplotlib makes of them."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from anomaly_vlm.metrics import AUROC, AnomalyMetrics, ImageMetrics, PixelMetrics
from anomaly_vlm.metrics._engine.curves import _thin_function, _thin_rising
from anomaly_vlm.metrics._engine.group import Group
from tests.metrics.cases import random_case


@pytest.fixture(autouse=True)
def no_window() -> None:
    import matplotlib

    matplotlib.use("Agg")


def metric(mode: str = "exact") -> PixelMetrics:
    case, out = random_case(50), PixelMetrics(mode=mode, aupro_limits=(0.3, 1.0))
    out.update(case.maps, case.masks, category=case.category)
    return out


@pytest.mark.parametrize("category", [None, "screw"])
def test_areas_are_the_values(category: str | None) -> None:
    measured, prefix = metric(), f"{category or 'pooled'}/"
    curves, values = measured.curves(category), measured.compute()
    roc, pr, pro = (curves[name] for name in ("roc", "pr", "pro"))
    assert float(torch.trapezoid(roc.y, roc.x)) == pytest.approx(float(values[f"{prefix}pixel_auroc"]), abs=1e-3)
    assert float(torch.trapezoid(pro.y, pro.x)) == pytest.approx(float(values[f"{prefix}pixel_aupro_limit1"]), abs=1e-3)
    f1 = 2 * pr.x * pr.y / (pr.x + pr.y)
    assert float(f1.max()) == pytest.approx(float(values[f"{prefix}pixel_f1_max"]), abs=2e-3)
    for curve in curves.values():
        assert float(curve.x[0]) == 0 and float(curve.x[-1]) == 1 and bool((curve.x.diff() >= 0).all())
        assert bool(((curve.y >= 0) & (curve.y <= 1 + 1e-12)).all())


@pytest.mark.parametrize("points", [1, 7, 50, 1000])
def test_error_of_thinning(points: int) -> None:
    for name, (x, y) in metric().engines["pixel"].polygons(Group(), None).items():
        kept = _thin_function(x, y, 1 / points) if name == "pr" else _thin_rising(y, points)
        assert kept[0] == 0 and kept[-1] == x.size - 1
        # where the curve rises at one x, any height between is on it: look at other vertices
        single = np.flatnonzero(np.concatenate([[True], np.diff(x) > 0]) & np.concatenate([np.diff(x) > 0, [True]]))
        error = np.abs(np.interp(x[single], x[kept], y[kept]) - y[single])
        assert error.max() < 1 / points, name
        assert kept.size < x.size or points == 1000


def test_binned_curves_are_close() -> None:
    exact, binned = metric().curves(), metric("binned").curves()
    at = np.linspace(0.01, 0.99, 99)
    for name in ("roc", "pro"):
        heights = [np.interp(at, curves[name].x.numpy(), curves[name].y.numpy()) for curves in (exact, binned)]
        assert np.abs(heights[0] - heights[1]).max() < 5e-3


def test_image_curves_and_levels() -> None:
    case, both, image = random_case(51), AnomalyMetrics(), ImageMetrics()
    both.update(case.scores, case.maps, case.labels, case.masks)
    image.update(case.scores, case.labels)
    assert list(image.curves()) == ["roc", "pr"]
    assert all(
        bool((a.y == b.y).all())
        for a, b in zip(image.curves().values(), both.curves(level="image").values(), strict=True)
    )
    assert list(both.curves()) == ["roc", "pr", "pro"]
    with pytest.raises(ValueError, match="choose one of pixel, image"):
        both.curves(level="region")
    with pytest.raises(ValueError, match="no image of category 'bolt'"):
        both.curves("bolt")
    with pytest.raises(ValueError, match="points is 0"):
        both.curves(points=0)


@pytest.mark.parametrize("mode", ["exact", "binned"])
def test_undefined_curves_are_empty(mode: str) -> None:
    out = PixelMetrics(mode=mode)
    out.update(torch.rand(4, 4), torch.zeros(4, 4))
    assert all(curve.x.numel() == 0 for curve in out.curves().values())


def test_plots() -> None:
    from matplotlib import pyplot

    measured = metric()
    figure, axes = measured.plot()
    assert [ax.get_title() for ax in axes] == ["ROC", "PR", "PRO"]
    assert "AUROC 0." in axes[0].get_legend().get_texts()[0].get_text()
    figure.canvas.draw()
    pyplot.close(figure)
    figure, ax = pyplot.subplots()
    assert measured.plot(ax=ax, curve="pro", category="cable") == (None, ax)
    assert ax.get_ylabel() == "mean region overlap"
    pyplot.close(figure)
    single = AUROC()
    single.update([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
    pyplot.close(single.plot()[0])
    pyplot.close(measured.plot(measured.compute())[0])
    with pytest.raises(ValueError, match="choose one of roc, pr, pro"):
        measured.plot(curve="det")
    with pytest.raises(ValueError, match="one ax for 3 curves"):
        measured.plot(ax=ax)


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'anomaly-vlm\[plot\]'"):
        metric().plot()
