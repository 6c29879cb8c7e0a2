"""ROC, PR and PRO curves as polygons, thinned for drawing, and drawn with matplotlib."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from anomaly_vlm.metrics._engine.counts import DistinctScores, NormalsAbove
from anomaly_vlm.metrics._engine.sketch import DescendingBins, Sketch
from anomaly_vlm.metrics._engine.values import pro_curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AXES = {
    "roc": ("false-positive rate", "true-positive rate"),
    "pr": ("recall", "precision"),
    "pro": ("false-positive rate", "mean region overlap"),
}


class Curve(NamedTuple):
    """The vertices of a curve; both axes `[K]` float64 in [0, 1], empty where the curve is undefined.

    Attributes:
        x: Ascending.
        y: The heights.
    """

    x: Tensor
    y: Tensor


Polygon = tuple[np.ndarray, np.ndarray]  # x ascending and y of all vertices, both [K] float64
EMPTY: Polygon = (np.empty(0), np.empty(0))


def exact_polygons(
    scores: DistinctScores, above: NormalsAbove, normals: int, regions: int | None
) -> dict[str, Polygon]:
    """Returns all vertices of the curves `roc`, `pr` and `pro`.

    Args:
        scores: The distinct anomalous scores.
        above: Normal items above each of them.
        normals: Number of normal items.
        regions: Number of regions of the first connectivity; None leaves PRO out.
    """
    hits = np.cumsum(scores.counts[::-1])
    total = int(hits[-1]) if hits.size else 0
    out = {"roc": EMPTY, "pr": EMPTY, **({} if regions is None else {"pro": EMPTY})}
    if total == 0 or normals == 0:
        return out
    # The true-positive rate is the overlap with one region that holds all anomalous items.
    as_one_region = DistinctScores(scores.values, scores.counts, scores.counts[None] / total)
    roc = pro_curve(as_one_region, above, normals, 1)
    assert roc is not None
    out["roc"] = (roc.fpr, roc.overlap)
    precision = hits / (hits + above.at_least[::-1])
    out["pr"] = (np.concatenate([[0.0], hits / total]), np.concatenate([precision[:1], precision]))
    if regions:
        pro = pro_curve(scores, above, normals, regions)
        assert pro is not None
        out["pro"] = (pro.fpr, pro.overlap)
    return out


def binned_polygons(sketch: Sketch) -> dict[str, Polygon]:
    """Returns the curves `roc`, `pr` and `pro` through the ends of the bins."""
    b = DescendingBins.of(sketch)
    out = {"roc": EMPTY, "pr": EMPTY, **({"pro": EMPTY} if sketch.regions.size else {})}
    if not b.tp.size or not b.tp[-1] or not b.fp[-1]:
        return out
    fpr, recall = b.fp / b.fp[-1], b.tp / b.tp[-1]
    has_anomalous = b.p > 0
    precision = (b.tp / (b.tp + b.fp))[has_anomalous]
    out["roc"] = (_from_zero(fpr), _from_zero(recall))
    out["pr"] = (_from_zero(recall[has_anomalous]), np.concatenate([precision[:1], precision]))
    if sketch.regions.size and sketch.regions[0]:
        overlap = np.cumsum(sketch.bins.weights[0][::-1]) / int(sketch.regions[0])
        out["pro"] = (_from_zero(fpr), _from_zero(overlap))
    return out


def _from_zero(values: np.ndarray) -> np.ndarray:
    return np.concatenate([[0.0], values])


def thin_curves(polygons: Mapping[str, Polygon], points: int) -> dict[str, Curve]:
    """Returns the curves with fewer vertices.

    Args:
        polygons: Curves by name.
        points: The vertical error stays below `1 / points` everywhere.

    Raises:
        ValueError: `points` is below 1.
    """
    if points < 1:
        raise ValueError(f"points is {points}: give at least 1; the error is below 1 / points")
    out = {}
    for name, (x, y) in polygons.items():
        kept = _thin_function(x, y, 1 / points) if name == "pr" else _thin_rising(y, points)
        out[name] = Curve(torch.from_numpy(x[kept].copy()), torch.from_numpy(y[kept].copy()))
    return out


def _thin_rising(y: np.ndarray, points: int) -> np.ndarray:
    """Returns the vertices to keep of a curve that rises.

    These are the first and the last vertex of each level `floor(points * y)`: within a level, y differs by less than
    `1 / points`.
    """
    level = np.floor(y * points)
    change = np.flatnonzero(level[1:] != level[:-1])
    return np.unique(np.concatenate([[0], change, change + 1, [y.size - 1]])) if y.size else np.empty(0, np.intp)


def _thin_function(x: np.ndarray, y: np.ndarray, error: float) -> np.ndarray:
    """Returns the vertices to keep of any curve over strictly ascending x.

    This is the Ramer-Douglas-Peucker algorithm with vertical distances; it takes O(K log K) on most curves.
    """
    if x.size < 3:
        return np.arange(x.size)
    keep = np.zeros(x.size, bool)
    keep[[0, -1]] = True
    spans = [(0, x.size - 1)]
    while spans:
        first, last = spans.pop()
        slope = (y[last] - y[first]) / (x[last] - x[first])
        inside = slice(first + 1, last)
        distance = np.abs(y[first] + slope * (x[inside] - x[first]) - y[inside])
        if distance.size and distance.max() >= error:
            middle = first + 1 + int(distance.argmax())
            keep[middle] = True
            spans += [(first, middle), (middle, last)]
    return np.flatnonzero(keep)


def draw_curves(
    curves: Mapping[str, Curve], labels: Mapping[str, str], curve: str | None, ax: Axes | None
) -> tuple[Figure | None, Axes | np.ndarray]:
    """Draws one curve on given axes, or all curves side by side.

    Args:
        curves: Curves by name: `roc`, `pr`, `pro`.
        labels: Text of each curve's legend.
        curve: Name of the one to draw; None draws all.
        ax: Matplotlib axes for one curve; None makes a figure.

    Returns:
        The figure (None if `ax` was given), and the axes: one, or an array of them.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        ValueError: There is no such curve, or one `ax` is given for several curves.
    """
    if curve is not None and curve not in curves:
        raise ValueError(f"curve is {curve!r}: choose one of {', '.join(curves)}, or None for all")
    names = list(curves) if curve is None else [curve]
    if ax is not None and len(names) > 1:
        raise ValueError(f"one ax for {len(names)} curves: choose a curve ({', '.join(curves)}), or leave ax out")
    try:
        from matplotlib import pyplot  # matplotlib is an extra: it is imported here and nowhere else
    except ImportError as error:
        raise ModuleNotFoundError(
            "curves are drawn with matplotlib, which is not installed: pip install 'anomaly-vlm[plot]'"
        ) from error
    figure: Figure | None = None
    if ax is not None:
        axes = [ax]
    else:
        size = (4.2 * len(names), 4.0)
        figure, grid = pyplot.subplots(1, len(names), squeeze=False, figsize=size, layout="constrained")
        axes = list(grid[0])
    for name, one in zip(names, axes, strict=True):
        x, y = (values.numpy() for values in curves[name])
        one.plot(x, y, label=labels[name])
        one.set(xlabel=AXES[name][0], ylabel=AXES[name][1], title=name.upper(), xlim=(0, 1), ylim=(0, 1.01))
        one.legend(loc="lower left" if name == "pr" else "lower right")
    return figure, axes[0] if len(axes) == 1 else np.array(axes, dtype=object)
