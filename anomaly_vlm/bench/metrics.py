"""Exact and binned pixel metrics against the official routine and public libraries, side by side in one run.

Every contender runs in a child process of its own on one thread; work below ten CPU seconds counts as the best of three
runs. Ratios are of CPU time. Deviations are from a float64 reference that sorts all pixels with their indices.
"""

from __future__ import annotations

import csv
import importlib.util
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from anomaly_vlm.bench._limits import Limit, StreamResult, at_most, judge, judge_stream
from anomaly_vlm.bench._measure import Measured, measure
from anomaly_vlm.bench._metric_data import write_set
from anomaly_vlm.errors import UserError
from anomaly_vlm.reporting.console import say, show

SEED = 20240
SETS = ((83, 518), (200, 518), (200, 256))  # images and side; the first is the one that the limits speak of
QUICK_SETS = ((12, 256),)
STREAM = (2000, 518)
VALUES = ("auroc", "ap", "f1_max", "fpr95", "aupro")
HERE = "anomaly_vlm.bench._contenders"


@dataclass(frozen=True)
class Contender:
    """One row of the table: a function of `_contenders`, its options, and the packages that it needs."""

    name: str
    function: str
    options: dict[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    half: bool = False  # compared with the reference on maps rounded to float16


CONTENDERS = (
    Contender("official routine", "published", needs=("skimage", "sklearn")),
    Contender("torchmetrics exact", "torchmetrics_exact"),
    Contender("anomalib", "anomalib", needs=("anomalib",)),
    Contender("ADEval arrays", "adeval_arrays", needs=("adeval",)),
    Contender("ADEval accumulator", "adeval_accumulator", needs=("adeval",)),
    Contender("ours exact", "ours"),
    Contender("ours exact, legacy too", "ours", {"legacy": True}),
    Contender("ours float16", "ours", {"half": True}, half=True),
    Contender("ours binned", "ours", {"mode": "binned"}),
)


def run(folder: Path, *, quick: bool) -> None:
    """Prints tables of ratios and of the limits met, and writes `metrics.csv` and `metrics.png` into `folder`.

    `quick`: one small set and no streaming; the limits are then shown for orientation only.

    Raises:
        UserError: Matplotlib is missing, or a contender failed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("the metrics benchmark draws a plot: install matplotlib (pip install 'anomaly-vlm[bench]')")
    rows: list[dict[str, Any]] = []
    limits: list[Limit] = []
    for number, (count, side) in enumerate(QUICK_SETS if quick else SETS):
        results, references = measure_set(count, side)
        title = f"{count} x {side} x {side}"
        rows += show_set(title, results, references)
        limits += judge(title, count * side * side, results, references, main=number == 0, small=side < 512)
    if not quick:
        limits += stream_check() + aupimo_check()
    show_limits(limits, quick)
    write(folder, rows)
    say(f"written: {folder / 'metrics.csv'}, {folder / 'metrics.png'}")


def measure_set(count: int, side: int) -> tuple[dict[str, Measured], dict[bool, dict[str, float]]]:
    """Results by contender (those whose packages are installed), and the reference values (for float16 maps: True)."""
    with tempfile.TemporaryDirectory() as place:
        data = Path(place) / "set"
        share = write_set(data, SEED, count, side)
        say(f"{count} maps of {side} x {side}, {100 * share:.1f} % anomalous pixels, float32; measuring ...")
        references = {
            half: measure(f"{HERE}:reference", {"folder": str(data), "half": half}).facts for half in (False, True)
        }
        results = {}
        for contender in CONTENDERS:
            if all(importlib.util.find_spec(package) for package in contender.needs):
                target = f"{HERE}:{contender.function}"
                results[contender.name] = measure(target, {"folder": str(data), **contender.options})
        rounded = measure(f"{HERE}:ours", {"folder": str(data), "mode": "binned", "half_maps": True})
        references[False]["binned_half_width"] = largest_width(rounded.facts)
    return results, references


def largest_width(values: dict[str, float]) -> float:
    """Widest interval of binned values."""
    return max(values[f"{name}/upper"] - values[f"{name}/lower"] for name in VALUES)


def show_set(
    title: str, results: dict[str, Measured], references: dict[bool, dict[str, float]]
) -> list[dict[str, Any]]:
    """Prints the table of one set and gives its rows for the CSV."""
    table = Table(title=f"{title}, one thread", title_justify="left", pad_edge=False)
    columns = ("contender", "CPU s", "of exact", "wall s", "runs", "memory MB", *(f"d {name}" for name in VALUES))
    for column in columns:
        table.add_column(column, justify="left" if column == "contender" else "right")
    exact = results["ours exact"].cpu
    rows = []
    for contender in CONTENDERS:
        if contender.name not in results:
            table.add_row(contender.name, "not installed", *[""] * (len(columns) - 2))
            continue
        one, reference = results[contender.name], references[contender.half]
        off = {name: abs(one.facts[name] - reference[name]) for name in VALUES if name in one.facts}
        rows.append(
            {
                "set": title,
                "contender": contender.name,
                "cpu_s": one.cpu,
                "cpu_of_exact": one.cpu / exact,
                "wall_s": one.wall,
                "runs": one.runs,
                "memory_mb": one.memory,
                **{f"deviation_{name}": off.get(name) for name in VALUES},
            }
        )
        numbers = (f"{one.cpu:.3f}", f"{one.cpu / exact:.2f}", f"{one.wall:.3f}", str(one.runs), f"{one.memory:.0f}")
        table.add_row(contender.name, *numbers, *(f"{off[name]:.0e}" if name in off else "-" for name in VALUES))
    show(table)
    return rows


def stream_check() -> list[Limit]:
    """2,000 images one by one in constant memory."""
    count, side = STREAM
    arguments = {"seed": SEED, "side": side, "count": count}
    kinds: dict[str, dict[str, Any]] = {"float16": {"half": True}, "binned": {"half": False, "mode": "binned"}}
    limits = []
    for kind, options in kinds.items():
        say(f"streaming {count} images of {side} x {side}, {kind} ...")
        done = measure(f"{HERE}:stream", {**arguments, **options})
        quarter, end = done.facts["peaks_mb"]
        limits += judge_stream(StreamResult(kind, count, done.memory, end - quarter, done.cpu))
    return limits


def aupimo_check() -> list[Limit]:
    """AUPIMO of single images beside anomalib's, where it is installed; the finer its thresholds, the closer it comes."""
    if importlib.util.find_spec("anomalib") is None:
        say("AUPIMO is not compared: anomalib is not installed")
        return []
    say("AUPIMO of single images beside anomalib's, with a million thresholds ...")
    found = measure(f"{HERE}:aupimo_of", {"count": 8, "side": 500, "seed": SEED, "thresholds": 1_000_000}).facts
    what = f"AUPIMO of {found['images']} images ({found['lowest']:.2f} and more), largest difference from anomalib's"
    return [at_most(what, found["difference"], 1e-6)]


def show_limits(limits: list[Limit], quick: bool) -> None:
    """Prints which limits are met; quick sets are too small for ratios to mean much, and say so."""
    title = "limits" + (" (for orientation: the quick set is too small to judge)" if quick else "")
    table = Table(title=title, title_justify="left", pad_edge=False)
    for column in ("what", "limit", "measured", ""):
        table.add_column(column, justify="right" if column in ("limit", "measured") else "left")
    for limit in limits:
        table.add_row(limit.what, limit.bound, limit.measured, "met" if limit.met else "NOT MET")
    show(table)
    missed = sum(not limit.met for limit in limits)
    say(f"{len(limits) - missed} of {len(limits)} limits met")


def write(folder: Path, rows: list[dict[str, Any]]) -> None:
    """The CSV, and a plot of CPU time and memory by contender."""
    with (folder / "metrics.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    from matplotlib.figure import Figure

    titles = list(dict.fromkeys(row["set"] for row in rows))
    names = list(dict.fromkeys(row["contender"] for row in rows))
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    for ax, key, label in zip(
        figure.subplots(1, 2), ("cpu_s", "memory_mb"), ("CPU seconds", "memory growth, MB"), strict=True
    ):
        height = 0.8 / len(titles)
        for i, title in enumerate(titles):
            found = {row["contender"]: row[key] for row in rows if row["set"] == title}
            places = [names.index(name) + (i - (len(titles) - 1) / 2) * height for name in found]
            ax.barh(places, [max(value, 1e-3) for value in found.values()], height, label=title)
        ax.set(xscale="log", xlabel=label, yticks=range(len(names)), yticklabels=names)
        ax.invert_yaxis()
    figure.axes[0].legend()
    figure.savefig(folder / "metrics.png", dpi=150)
