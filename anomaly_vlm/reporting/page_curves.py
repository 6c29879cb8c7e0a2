"""The curves of an HTML page as lines of SVG: ROC, precision over recall, region overlap; AUROC with its interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anomaly_vlm.metrics.decisions import bootstrap
from anomaly_vlm.reporting.curves import CURVES, POOLED, read_curves
from anomaly_vlm.reporting.plots import COLOURS, PANELS

MOST = len(COLOURS)  # lines of a panel; more would be told apart by nobody
DRAWS = 1000  # of a bootstrap
Rows = Sequence[Mapping[str, str]]  # of images: path, category, label, score


@dataclass(frozen=True)
class Line:
    """A line of a panel.

    Attributes:
        name: For the legend.
        points: `x,y` in the panel's coordinates, from (10, 210) for (0, 0) to (210, 10) for (1, 1).
        colour: CSS; empty for that of the text.
    """

    name: str
    points: str
    colour: str


@dataclass(frozen=True)
class Panel:
    """A plot of lines in the unit square.

    Attributes:
        title: What it shows.
        lines: At most `MOST`, and one for all images together.
        has_chance: Whether the diagonal is what chance gives.
        left_out: Number of lines that are not drawn.
    """

    title: str
    lines: list[Line]
    has_chance: bool = False
    left_out: int = 0


def curve_panels(folder: Path) -> list[Panel]:
    """The curves that an evaluation has left in its folder: one panel a kind, a line for each category."""
    curves = read_curves(folder / CURVES)
    names = list(dict.fromkeys(category for category, _ in curves))
    categories = [name for name in names if name != POOLED]
    drawn = [*categories[:MOST], *([POOLED] if POOLED in names and len(categories) > 1 else [])]
    panels = []
    for (level, kind), title in PANELS.items():
        lines = []
        for i, name in enumerate(drawn):
            vertices = curves.get((name, level), {}).get(kind)
            if vertices is not None:
                lines.append(line("all images" if name == POOLED else name, vertices, i, plain=name == POOLED))
        if lines:
            panels.append(Panel(title, lines, kind == "roc", max(0, len(categories) - MOST)))
    return panels


def defect_panel(rows: Rows) -> Panel | None:
    """The image ROC of each folder of defective images against all good ones; None with fewer than two such folders."""
    good = [float(row["score"]) for row in rows if row["label"] == "0"]
    folders = list(dict.fromkeys(Path(row["path"]).parent.name for row in rows if row["label"] == "1"))
    if not good or len(folders) < 2:
        return None
    lines = []
    for i, folder in enumerate(folders[:MOST]):
        of_folder = [row for row in rows if row["label"] == "1" and Path(row["path"]).parent.name == folder]
        bad = [float(row["score"]) for row in of_folder]
        lines.append(line(f"{folder}, AUROC {auroc(good, bad)}", roc(good, bad), i))
    return Panel("image ROC by folder of defects", lines, True, max(0, len(folders) - MOST))


def run_panel(runs: Mapping[str, Rows]) -> Panel | None:
    """The image ROC of several runs, all their images together; None with fewer than two labelled runs."""
    lines: list[Line] = []
    for name, rows in runs.items():
        good, bad = ([float(row["score"]) for row in rows if row["label"] == label] for label in "01")
        if good and bad:
            lines.append(line(f"{name}, AUROC {auroc(good, bad)}", roc(good, bad), len(lines) % MOST))
    return Panel("image ROC of the runs", lines[:MOST], True, max(0, len(lines) - MOST)) if len(lines) > 1 else None


def auroc(good: Sequence[float], bad: Sequence[float]) -> str:
    """`81.3 (74.0 to 88.1)`: percent, with the 95 % interval of a bootstrap over images; empty where a class is missing."""
    if not good or not bad:
        return ""
    found = bootstrap([*good, *bad], [0] * len(good) + [1] * len(bad), draws=DRAWS)
    return percent_with_interval(found.value, found.low, found.high)


def auroc_by_category(rows: Rows) -> str:
    """The mean image AUROC over the categories, as `auroc`; empty where no category has both classes."""
    labelled = [row for row in rows if row["label"] in ("0", "1")]
    if len({row["label"] for row in labelled}) < 2:
        return ""
    found = bootstrap(
        [float(row["score"]) for row in labelled],
        [int(row["label"]) for row in labelled],
        [row["category"] for row in labelled],
        draws=DRAWS,
    )
    return "" if math.isnan(found.value) else percent_with_interval(found.value, found.low, found.high)


def percent_with_interval(value: float, low: float, high: float) -> str:
    """Fractions as `81.3 (74.0 to 88.1)`."""
    return f"{100 * value:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def roc(good: Sequence[float], bad: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Shares of good and of defective images from each score on, the highest first."""
    of_good, of_bad = np.array(good), np.array(bad)
    steps = np.concatenate([[np.inf], np.unique(np.concatenate([of_good, of_bad]))[::-1]])
    return (of_good[None] >= steps[:, None]).mean(axis=1), (of_bad[None] >= steps[:, None]).mean(axis=1)


def line(name: str, vertices: tuple[Any, Any], number: int, *, plain: bool = False) -> Line:
    """A line through vertices in the unit square, in the colour of its number."""
    points = " ".join(f"{10 + 200 * x:.1f},{210 - 200 * y:.1f}" for x, y in zip(*vertices, strict=True))
    return Line(name, points, "" if plain else "rgb({}, {}, {})".format(*COLOURS[number % MOST]))
