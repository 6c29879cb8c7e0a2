"""Curves and histograms of an evaluation as tables in the run's folder: written, and read again for pages and loggers."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from anomaly_vlm.errors import UserError
from anomaly_vlm.files import whole_file
from anomaly_vlm.names import csv_cell

CURVES, HISTOGRAMS = "curves.csv", "histograms.csv"  # in the run's folder
POOLED = "pooled"  # the category of all images as one
BINS = 30
CURVE_COLUMNS = ("category", "level", "curve", "x", "y")
HISTOGRAM_COLUMNS = ("category", "low", "high", "normal", "anomalous")

Curves = Mapping[
    tuple[str, str], Mapping[str, Any]
]  # by category and level: `roc`, `pr`, `pro` as pairs (x, y) of `[K]`


class Histogram(NamedTuple):
    """How many images of a category have which score.

    Attributes:
        edges: `[n + 1]` ascending scores.
        normal: `[n]` normal (or unlabelled) images between two edges.
        anomalous: `[n]` anomalous ones.
    """

    edges: np.ndarray
    normal: np.ndarray
    anomalous: np.ndarray


class ScoredImage(Protocol):
    """What a histogram needs of an image."""

    @property
    def category(self) -> str:
        """Category of the image."""

    @property
    def label(self) -> int:
        """1 for an anomalous image, 0 for a normal one, -1 where nobody knows."""

    @property
    def score(self) -> float:
        """Image score."""


def score_edges(scores: np.ndarray, bins: int) -> np.ndarray:
    """Edges `[bins + 1]` of a histogram of scores: evenly spaced, or evenly in their logarithms.

    The logarithms of positive scores are taken where an even bin would hold more than half of all: probabilities of which
    most are tiny.
    """
    low, high = float(scores.min()), float(scores.max())
    edges = np.linspace(low, high if high > low else low + 1.0, bins + 1)
    if low > 0 and high > low and 2 * np.histogram(scores, edges)[0].max() > len(scores):
        edges = np.geomspace(low, high, bins + 1)
    return edges


def is_logarithmic(edges: np.ndarray) -> bool:
    """Whether edges are evenly spaced in their logarithms."""
    return bool(edges[0] > 0 and not np.isclose(edges[1] - edges[0], edges[-1] - edges[-2]))


def score_histograms(rows: Sequence[ScoredImage], *, bins: int = BINS) -> dict[str, Histogram]:
    """A histogram of the image scores of each category."""
    found: dict[str, Histogram] = {}
    for category in dict.fromkeys(row.category for row in rows):
        members = [row for row in rows if row.category == category]
        scores, anomalous = (np.array([getattr(row, key) for row in members]) for key in ("score", "label"))
        edges = score_edges(scores, bins)
        counts = [np.histogram(scores[(anomalous == 1) == wanted], edges)[0] for wanted in (False, True)]
        found[category] = Histogram(edges, *counts)
    return found


def write_curves(path: Path, curves: Curves) -> None:
    """Writes a row for each vertex: category (`pooled`: all images as one), level (`image`, `pixel`), curve, x, y."""
    rows = (
        (csv_cell(category), level, name, f"{x:.6g}", f"{y:.6g}")
        for (category, level), of_level in curves.items()
        for name, (xs, ys) in of_level.items()
        for x, y in zip(xs.tolist(), ys.tolist(), strict=True)
    )
    _write(path, CURVE_COLUMNS, rows)


def read_curves(path: Path) -> dict[tuple[str, str], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """What `write_curves` has written: by category and level the curves, each as x and y `[K]`; empty without a file.

    Raises:
        UserError: The file cannot be read, or is no table of curves.
    """
    points: dict[tuple[str, str], dict[str, list[tuple[float, float]]]] = {}
    for row in _read(path, CURVE_COLUMNS):
        of_level = points.setdefault((row["category"], row["level"]), {})
        of_level.setdefault(row["curve"], []).append((_number(path, row["x"]), _number(path, row["y"])))
    return {
        key: {name: (np.array(vertices)[:, 0], np.array(vertices)[:, 1]) for name, vertices in of_level.items()}
        for key, of_level in points.items()
    }


def write_histograms(path: Path, histograms: Mapping[str, Histogram]) -> None:
    """Writes a row for each bin: category, its two ends, normal and anomalous images between them."""
    rows = (
        (csv_cell(category), f"{low:.6g}", f"{high:.6g}", int(normal), int(anomalous))
        for category, one in histograms.items()
        for low, high, normal, anomalous in zip(one.edges, one.edges[1:], one.normal, one.anomalous, strict=False)
    )
    _write(path, HISTOGRAM_COLUMNS, rows)


def read_histograms(path: Path) -> dict[str, Histogram]:
    """What `write_histograms` has written, by category; empty without a file.

    Raises:
        UserError: The file cannot be read, or is no table of histograms.
    """
    rows: dict[str, list[list[float]]] = {}
    for row in _read(path, HISTOGRAM_COLUMNS):
        rows.setdefault(row["category"], []).append([_number(path, row[key]) for key in HISTOGRAM_COLUMNS[1:]])
    found = {}
    for category, bins in rows.items():
        low, high, normal, anomalous = np.array(bins).T
        found[category] = Histogram(np.append(low, high[-1]), normal.astype(int), anomalous.astype(int))
    return found


def _write(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with whole_file(path) as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


def _read(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = [{key: value or "" for key, value in row.items() if key} for row in reader]
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"'{path}' cannot be read ({error}): run the evaluation again") from error
    if tuple(reader.fieldnames or ()) != tuple(columns) or any(len(row) != len(columns) for row in rows):
        raise UserError(f"'{path}' is no table of {', '.join(columns)}: run the evaluation again")
    return rows


def _number(path: Path, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"'{path}' has '{text[:40]}' where a number belongs: run the evaluation again") from None
