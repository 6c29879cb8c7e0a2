"""Images a second of the loader at 518 px beside plain PIL and torchvision, in turns in one run; memory of 8,000 px images.

Plain is what the published codes write: `Image.open`, `Resize` (bicubic), `ToTensor`, `Normalize`, the mask likewise, and a
`DataLoader`: theirs reads in the main process, a careful one with a worker a core. Both are here. Ours decodes with the same
library and gives the same pixels, which is checked first; a draft does not, and its difference is shown.
"""

from __future__ import annotations

import csv
import os
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.table import Table
from torch.utils.data import DataLoader

from anomaly_vlm.bench._limits import Limit, at_least, at_most
from anomaly_vlm.bench._loaders import LARGE_SIDE, PIXELS, PlainDataset, large_file, write_set
from anomaly_vlm.bench._measure import measure
from anomaly_vlm.caching.tokens import TokenCache
from anomaly_vlm.data.dataset import AnomalyDataset
from anomaly_vlm.data.loaders import AheadLoader
from anomaly_vlm.data.pixels import PixelCache
from anomaly_vlm.data.types import Sample
from anomaly_vlm.reporting.console import say, show

SETS = {  # what it is like -> (suffix, width, height, number of files)
    "MVTec AD's, PNG 1024 x 1024": (".png", 1024, 1024, 48),
    "VisA's, JPEG 1500 x 1000": (".jpg", 1500, 1000, 64),
    "a camera's, JPEG 4000 x 3000": (".jpg", 4000, 3000, 16),
}
BATCH, ENOUGH = 4, 1.5
PLAIN, PLAIN_WORKERS = "plain, main process", "plain, a worker a core"
FIRST, FIRST_WORKERS = "ours, first time", "ours, first time, a worker a core"
DRAFT, STORED, MEMORY = "ours, pixels.decode=draft", "ours, cache.pixels=true, again", "ours, later epochs (memory)"
HERE = "anomaly_vlm.bench._loaders"


def run(folder: Path, *, quick: bool) -> None:
    """Prints tables of rates, memory and limits, writes `loader.csv` into `folder`; `quick` takes fewer images, once."""
    cores = min(2, os.cpu_count() or 1)
    rows: list[tuple[Any, ...]] = []
    limits: list[Limit] = []
    for title, (suffix, width, height, count) in SETS.items():
        with tempfile.TemporaryDirectory() as place:
            samples = write_set(Path(place) / "images", suffix, (width, height), count // (4 if quick else 1))
            worst, drafted = differences(samples)
            rates = in_turns(contenders(samples, Path(place), cores), len(samples), turns=1 if quick else 3)
        show_rates(f"{title}: {len(samples)} images, {cores} cores", rates)
        rows += [(title, name, *rate, rate.images_s / rates[PLAIN_WORKERS].images_s) for name, rate in rates.items()]
        limits += judge(title, rates, worst, drafted, is_large=min(width, height) > 4 * PIXELS.size)
    limits += memory()
    table = Table(title="limits", title_justify="left", pad_edge=False)
    for column in ("what", "limit", "measured", ""):
        table.add_column(column, justify="right" if column in ("limit", "measured") else "left")
    for limit in limits:
        table.add_row(limit.what, limit.bound, limit.measured, "met" if limit.met else "NOT MET")
    show(table)
    with (folder / "loader.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("set", "loader", "images_s", "cpu_ms", "of_plain_with_workers"), *rows])
    say(f"{sum(limit.met for limit in limits)} of {len(limits)} limits met; written: {folder / 'loader.csv'}")


def contenders(samples: list[Sample], place: Path, cores: int) -> dict[str, Callable[[], Any]]:
    """What is timed: each reads all images once, in batches."""
    drafts = replace(PIXELS, decode="draft")
    stored = TokenCache({"bench": "loader"}, folder=place / "cache")
    again = AnomalyDataset(samples, PIXELS, stored_pixels=stored)
    held = AnomalyDataset(samples, PIXELS, cache=PixelCache(10**9))
    for dataset in (again, held):
        read_all(dataset, 0)
    plain, ours = PlainDataset(samples), AnomalyDataset(samples, PIXELS)
    return {
        PLAIN: partial(read_all, plain, 0),
        PLAIN_WORKERS: partial(read_all, plain, cores),
        FIRST: partial(read_all, ours, 0),
        FIRST_WORKERS: partial(read_all, ours, cores),
        DRAFT: partial(read_all, AnomalyDataset(samples, drafts), 0),
        STORED: partial(read_all, again, 0),
        MEMORY: partial(read_all, held, 0),
    }


def read_all(dataset: Any, workers: int) -> None:
    """One pass over a data set, ours by the loader of a training."""
    loader: Any = AheadLoader if isinstance(dataset, AnomalyDataset) else DataLoader
    for _ in loader(dataset, batch_size=BATCH, num_workers=workers):
        pass


class Rate(NamedTuple):
    """Images a second by the clock, and milliseconds an image of all cores together."""

    images_s: float
    cpu_ms: float


def in_turns(work: dict[str, Callable[[], Any]], images: int, *, turns: int) -> dict[str, Rate]:
    """The best of some turns, in each of which all run one after another."""
    best: dict[str, Rate] = {}
    for _ in range(turns):
        for name, read in work.items():
            started, before = time.perf_counter(), cpu_seconds()
            read()
            found = Rate(images / (time.perf_counter() - started), 1e3 * (cpu_seconds() - before) / images)
            old = best.get(name, found)
            best[name] = Rate(max(found.images_s, old.images_s), min(found.cpu_ms, old.cpu_ms))
    return best


def cpu_seconds() -> float:
    """Of this process and of the workers that have ended."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def differences(samples: list[Sample]) -> tuple[float, float]:
    """Largest difference of our pixels and masks from plain ones, and the mean one of a draft, in grey values."""
    worst, drafted = 0.0, []
    plain, ours = PlainDataset(samples), AnomalyDataset(samples, PIXELS)
    drafts = AnomalyDataset(samples, replace(PIXELS, decode="draft"))
    scale = 255 * float(np.mean(PIXELS.std))
    for i in range(min(4, len(samples))):
        image, mask = plain[i]
        item = ours[i]
        worst = max(worst, scale * float((item.image - image).abs().max()))
        if item.mask is not None:
            worst = max(worst, 255 * float((item.mask != mask).float().max()))
        drafted.append(scale * float((drafts[i].image - item.image).abs().mean()))
    return worst, float(np.mean(drafted))


def judge(title: str, measured: dict[str, Rate], worst: float, drafted: float, *, is_large: bool) -> list[Limit]:
    """The limits of one set; drafts are judged where the files are large enough for one."""
    rates = {name: rate.images_s for name, rate in measured.items()}
    found = [
        at_most(f"{title}: largest difference from plain pixels, grey values", worst, 1e-3),
        at_least(f"{title}: first time, of plain in the main process", rates[FIRST] / rates[PLAIN], ENOUGH),
        at_least(f"{title}: first time, of plain with workers", rates[FIRST] / rates[PLAIN_WORKERS], 0.9),
        at_least(f"{title}: stored on disk, of plain with workers", rates[STORED] / rates[PLAIN_WORKERS], ENOUGH),
        at_least(f"{title}: in memory, of plain with workers", rates[MEMORY] / rates[PLAIN_WORKERS], ENOUGH),
    ]
    if is_large:
        found.append(at_least(f"{title}: drafts, of plain with workers", rates[DRAFT] / rates[PLAIN_WORKERS], ENOUGH))
        found.append(at_most(f"{title}: mean difference of a draft, grey values", drafted, 2))
    return found


def memory() -> list[Limit]:
    """Growth of the peak while a batch of 8,000 px images with masks is read."""
    megabytes = 4 * LARGE_SIDE**2 / 1e6  # of one decoded image, as PIL holds it
    with tempfile.TemporaryDirectory() as place:
        files = {suffix: large_file(Path(place), suffix) for suffix in (".jpg", ".png")}
        plain, ours, drafts = (
            {
                suffix: measure(f"{HERE}:{way}", {"image": image, "mask": mask, **options}).memory
                for suffix, (image, mask) in files.items()
            }
            for way, options in (("plain", {}), ("ours", {}), ("ours", {"decode": "draft"}))
        )
    found = []
    for suffix in files:
        say(f"{LARGE_SIDE} px, {suffix}: plain {plain[suffix]:.0f} MB, ours {ours[suffix]:.0f} MB")
        what = f"2 images of {LARGE_SIDE} px, {suffix}: peak of one decoded image's {megabytes:.0f} MB"
        found.append(at_most(what, ours[suffix] / megabytes, 1.3, "x"))
    found.append(
        at_most(f"2 images of {LARGE_SIDE} px, drafts (their masks are whole)", drafts[".jpg"] / megabytes, 0.85, "x")
    )
    return found


def show_rates(title: str, rates: dict[str, Rate]) -> None:
    """Prints images a second and ratios."""
    table = Table(title=title, title_justify="left", pad_edge=False)
    for column in ("loader", "images/s", "of plain", "of plain with workers", "CPU ms an image"):
        table.add_column(column, justify="left" if column == "loader" else "right")
    for name, rate in rates.items():
        ratios = (f"{rate.images_s / rates[base].images_s:.2f}" for base in (PLAIN, PLAIN_WORKERS))
        table.add_row(name, f"{rate.images_s:.1f}", *ratios, f"{rate.cpu_ms:.1f}")
    show(table)
    say(f"torch uses {torch.get_num_threads()} threads")
