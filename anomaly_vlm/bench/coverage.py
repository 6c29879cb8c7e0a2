"""Whether the promised rate of false alarms holds: thresholds from random draws of good parts, tried on the others.

Without a folder the good parts are drawn pictures of one family; with `good=FOLDER` they are one's own. Every draw is what
`fit` does: a memory of 20 parts, each scored by the others, and the threshold of the rule `false_alarms`.
"""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from rich.table import Table

from anomaly_vlm.data import Sample, own_images
from anomaly_vlm.data.drawn.products import ProceduralDrawing
from anomaly_vlm.errors import UserError
from anomaly_vlm.metrics.thresholds import from_good_parts
from anomaly_vlm.reporting.console import say, show
from anomaly_vlm.runs.build import Run, build
from anomaly_vlm.runs.compose import compose
from anomaly_vlm.runs.configs import checked
from anomaly_vlm.runs.good_part_scores import left_out, score_samples

PARTS, FALSE_ALARMS, DRAWS = 20, 0.05, 20
WORDS = ("method=winclip", "dataset=folder", "callbacks.progress=none", "cache.tokens=memory", "trainer=cpu", "seed=0")


def run(folder: Path, *, quick: bool, good: str | None = None) -> None:
    """Prints the rate of each draw and of all, writes `coverage.csv` into `folder`; `quick` makes fewer draws.

    Raises:
        UserError: Too few good parts to try a threshold on.
    """
    if good is not None:
        rates, tried = coverage(good, draws=3 if quick else DRAWS)
    else:
        with tempfile.TemporaryDirectory() as name:
            draw_parts(Path(name), 60 if quick else 120)
            rates, tried = coverage(name, draws=3 if quick else DRAWS)
    promise = from_good_parts(*[list(range(PARTS))] * 3, false_alarms=FALSE_ALARMS, left_out=True)
    for line in promise.explained():
        say(line)
    table = Table(
        title=f"good parts rejected, {len(rates)} draws of {PARTS}, {tried} others tried", title_justify="left"
    )
    high = promise.rate_interval()[1]  # 95 % of draws are to be below
    for column in ("mean", "smallest", "largest", f"draws below {100 * high:.1f} %"):
        table.add_column(column)
    inside = sum(rate <= high for rate in rates)
    shown = [f"{100 * value:.2f} %" for value in (np.mean(rates), min(rates), max(rates))]
    table.add_row(*shown, f"{inside} of {len(rates)}")
    show(table)
    with (folder / "coverage.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("draw", "rejected"), *enumerate(rates)])
    say(f"written: {folder / 'coverage.csv'}")


def coverage(good: str, *, draws: int) -> tuple[list[float], int]:
    """The share of the other good parts that each draw's threshold rejects, and their number."""
    source = own_images(good, "object", label=0, key="good", once=True)
    samples = source.samples("test")
    if len(samples) < 2 * PARTS:
        raise UserError(f"good={good}: {len(samples)} good parts, give at least {2 * PARTS}: {PARTS} to learn from")
    found = build(checked(compose([*WORDS, f"shots={PARTS}"])), sides=("test",), test=source, with_trainer=False)
    rates = []
    for draw in range(draws):
        order = np.random.default_rng(draw).permutation(len(samples))
        memory, others = ([samples[i] for i in part] for part in (order[:PARTS], order[PARTS:]))
        rates.append(rejected(found, memory, others))
    return rates, len(samples) - PARTS


def rejected(run: Run, memory: Sequence[Sample], others: Sequence[Sample]) -> float:
    """The share of other good parts that are rejected at the threshold of a memory of good parts."""
    parts = left_out(run, memory, memory)
    threshold = from_good_parts(
        [part.score for part in parts],
        [part.peak for part in parts],
        [part.usual for part in parts],
        false_alarms=FALSE_ALARMS,
        left_out=True,
    )
    return float(np.mean([part.score > threshold.score for part in score_samples(run, others)]))


def draw_parts(folder: Path, count: int) -> None:
    """Writes drawn pictures of good parts of one family."""
    for i in range(count):
        Image.fromarray(ProceduralDrawing(0, "train", "screw", i, "good", 128).draw().image).save(
            folder / f"{i:03d}.png"
        )
