"""Results as a table for people (percent) and as CSV for programs."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from anomaly_vlm.files import whole_file
from anomaly_vlm.names import category_and_metric, csv_cell, shown

COLUMNS = {
    "image_auroc": "image AUROC",
    "image_ap": "image AP",
    "image_f1_max": "image max-F1",
    "pixel_auroc": "pixel AUROC",
    "pixel_aupro": "pixel AUPRO",
    "pixel_ap": "pixel AP",
    "pixel_f1_max": "pixel max-F1",
}
ROAD = {  # of methods that score road scenes: rows are scores of the same masks
    "pixel_ap": "AP",
    "pixel_fpr95": "FPR95",
    "pixel_auroc": "AUROC",
    "siou": "sIoU",
    "ppv": "PPV",
    "component_f1": "F1*",
    "known_accuracy": "known-class accuracy",
}
ASKED_FOR = {  # by the configuration
    "pixel_aupro_legacy": "AUPRO, 200 steps",
    "pixel_aupimo": "AUPIMO",
    "pixel_seg_f1": "SegF1",
    "pixel_mean_f1": "mean F1",
    "image_calibration_error": "calibration error",
}
COSTS = {  # smaller is better; not in percent
    "cost/trainable_parameters": "trainable parameters",
    "cost/gflops": "GFLOPs an image",
    "cost/ms_per_image": "ms an image",
    "cost/peak_memory_mb": "peak memory, MB",
    "cost/training_seconds": "training, s",
}
POOLED = {f"pooled/{key}": f"{title}, pooled" for key, title in COLUMNS.items()}
WIDEST = 48  # characters of a cell; the files hold all of it
SELECTION_NOTE = {
    "last": "weights of the last epoch",
    "best_val": "epoch chosen on the validation set",
    "best_test": "epoch chosen ON THE TEST SET, as several papers did",
}


def plain(text: object) -> str:
    """A text for a cell, in which nothing is read as markup, and which leaves room for the numbers beside it."""
    ready = shown(text)
    return escape(ready if len(ready) <= WIDEST else ready[: WIDEST - 1] + "…")


def empty_table(head: Sequence[str]) -> Table:
    """A table with lines above it, and no columns yet."""
    title = "\n".join(escape(shown(line)) for line in head) or None
    return Table(title=title, title_justify="left", title_style="bold", pad_edge=False)


def percent(value: float | None) -> str:
    """`0.5123` as `51.2`; undefined values as `-`."""
    return "-" if value is None or not math.isfinite(value) else f"{100 * value:.1f}"


def categories(results: Mapping[str, float]) -> list[str]:
    """Category names in the order of the results."""
    names = dict.fromkeys(category_and_metric(key)[0] for key in results)
    return [name for name in names if name not in ("mean", "mean_count", "pooled", "")]


def is_road(results: Mapping[str, float]) -> bool:
    """Whether these are results of road scenes."""
    return "mean/component_f1" in results


def shown_columns(results: Mapping[str, float]) -> dict[str, str]:
    """The table's columns: those of road scenes where there are components; and those that were asked for."""
    if is_road(results):
        return ROAD
    extra = {key: title for key, title in ASKED_FOR.items() if f"mean/{key}" in results}
    limits = {key: f"AUPRO at {key.rpartition('limit')[2]}" for key in _aupro_limits(results)}
    return {**COLUMNS, **limits, **extra}


def smaller_is_better(metric: str) -> bool:
    """Whether the smallest value of a metric is the best: costs, errors, and false-positive rates at a recall."""
    return metric in COSTS or re.search(r"_(fpr\d+|error)(/|$)", metric) is not None


def _aupro_limits(results: Mapping[str, float]) -> list[str]:
    """Names of the AUPRO values at limits of the false-positive rate other than 0.3."""
    names = (key.removeprefix("mean/") for key in results if key.startswith("mean/pixel_aupro_limit"))
    return [name for name in names if "/" not in name]


def results_table(results: Mapping[str, float], *, head: Sequence[str]) -> Table:
    """One row a category and the mean, in percent; of road scenes one row a score, the method's own first.

    Args:
        results: `CATEGORY/NAME` and `mean/NAME` -> value in [0, 1] or NaN.
        head: Lines above the table: method and backbone, data, how the weights were chosen.
    """
    table = empty_table(head)
    road = is_road(results)
    table.add_column("score" if road else "category", no_wrap=True)
    columns = shown_columns(results)
    for title in columns.values():
        table.add_column(title, justify="right")
    names = categories(results)
    for i, name in enumerate(names):
        cells = (percent(results.get(f"{name}/{key}")) for key in columns)
        table.add_row(plain(name), *cells, end_section=i == len(names) - 1, style="bold" if road and i == 0 else None)
    if not road:
        table.add_row("mean", *(percent(results.get(f"mean/{key}")) for key in columns), style="bold")
    return table


def write_csv(path: Path, results: Mapping[str, float], facts: Mapping[str, Any]) -> None:
    """One row a category, the mean and the pooled values, every metric unrounded, with what they belong to.

    Columns: method, backbone, data, seed, category, then the metrics' names. Undefined values are empty.
    """
    rows = [*categories(results), "mean", "pooled"]
    names = list(dict.fromkeys(category_and_metric(key)[1] for key in results))
    with whole_file(path) as file:
        writer = csv.writer(file)
        writer.writerow(["method", "backbone", "data", "seed", "category", *names])
        for row in rows:
            values = [results.get(f"{row}/{name}", math.nan) for name in names]
            cells = [repr(float(value)) if math.isfinite(value) else "" for value in values]
            named = [csv_cell(facts[key]) for key in ("method", "backbone", "data", "seed")]
            writer.writerow([*named, csv_cell(row), *cells])
