"""Curves drawn with matplotlib, which is imported here and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from anomaly_vlm.metrics._curves import AXES, Curve


def draw_curves(curves: Mapping[str, Curve], values: Mapping[str, str], curve: str | None, ax: Any) -> tuple[Any, Any]:
    """Draws one curve on `ax`, or all side by side.

    Args:
        curves: by name, `roc`, `pr`, `pro`.
        values: text of each curve's legend.
        curve: which one; None for all.
        ax: matplotlib axes of one curve; None makes a figure.

    Returns:
        Figure (None where `ax` was given) and axes: one, or an array of them.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        ValueError: unknown `curve`, or `ax` for several curves.
    """
    if curve is not None and curve not in curves:
        raise ValueError(f"curve is {curve!r}: choose one of {', '.join(curves)}, or None for all")
    names = list(curves) if curve is None else [curve]
    if ax is not None and len(names) > 1:
        raise ValueError(f"one ax for {len(names)} curves: choose a curve ({', '.join(curves)}), or leave ax out")
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ModuleNotFoundError(
            "curves are drawn with matplotlib, which is not installed: pip install 'anomaly-vlm[plot]'"
        ) from error
    figure, axes = None, [ax]
    if ax is None:
        size = (4.2 * len(names), 4.0)
        figure, grid = pyplot.subplots(1, len(names), squeeze=False, figsize=size, layout="constrained")
        axes = list(grid[0])
    for name, one in zip(names, axes, strict=True):
        x, y = (part.numpy() for part in curves[name])
        one.plot(x, y, label=values[name])
        one.set(xlabel=AXES[name][0], ylabel=AXES[name][1], title=name.upper(), xlim=(0, 1), ylim=(0, 1.01))
        one.legend(loc="lower left" if name == "pr" else "lower right")
    return figure, axes[0] if len(axes) == 1 else np.array(axes, dtype=object)
