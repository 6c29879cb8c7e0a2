"""What `predict` costs end to end (reading, tower, map, table, picture) beside the bare image tower, in one run.

The checkpoint is the one that `predict` takes by default, on photographs of 640 x 480 pixels. Seconds an image are the
difference between many images and few, so that the start counts on neither side. (`bench winclip` compares with anomalib.)
"""

from __future__ import annotations

import csv
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.table import Table

from anomaly_vlm import load_checkpoint
from anomaly_vlm.bench._limits import Limit, at_least
from anomaly_vlm.methods.base.images import preprocess_of
from anomaly_vlm.reporting.console import say, show
from anomaly_vlm.runs.checkpoints import Checkpoint
from anomaly_vlm.runs.configs import from_checkpoint
from anomaly_vlm.runs.predict import predict
from anomaly_vlm.runs.writer import Pictures

DEFAULT, BATCH = "package:adaclip", 8


def run(folder: Path, *, quick: bool) -> None:
    """Prints seconds an image and ratios, writes `predict.csv` into `folder`; `quick` measures fewer images, once."""
    few, many, repeats = (8, 16, 1) if quick else (16, 80, 3)
    with tempfile.TemporaryDirectory() as name:
        images = Path(name)
        photographs(images / "few", few)
        photographs(images / "many", many)
        tower = best(bare_tower, repeats)
        found = {
            pictures: best(partial(marginal, images, few, many, pictures), repeats) for pictures in ("false", "all")
        }
    limits = [
        at_least("images/s without pictures, of the bare tower's", tower / found["false"], 0.7),
        at_least("images/s with pictures, of the bare tower's", tower / found["all"], 0.5),
    ]
    table = Table(title=f"predict ckpt={DEFAULT}, CPU", title_justify="left", pad_edge=False)
    for column in ("what", "limit", "measured", "met"):
        table.add_column(column)
    rows = [Limit("seconds an image, bare tower", "-", f"{tower:.4f}", True)]
    rows += [Limit(f"seconds an image, pictures={key}", "-", f"{value:.4f}", True) for key, value in found.items()]
    for limit in (*rows, *limits):
        table.add_row(limit.what, limit.bound, limit.measured, "yes" if limit.met else "NO")
    show(table)
    with (folder / "predict.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("what", "limit", "measured", "met"), *rows, *limits])
    say(f"{torch.get_num_threads()} threads; written: {folder / 'predict.csv'}")


def photographs(folder: Path, count: int) -> None:
    """Writes noisy JPEGs of 640 x 480 pixels."""
    folder.mkdir()
    for i in range(count):
        pixels = np.random.default_rng(i).normal(128, 20, (480, 640, 3)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.jpg", quality=90)


def best(seconds: Callable[[], float], repeats: int) -> float:
    """The fewest seconds of some measurements, after one that warms up."""
    seconds()
    return min(seconds() for _ in range(repeats))


def bare_tower() -> float:
    """Seconds an image of the image tower alone, on pixels that are ready."""
    backbone = load_checkpoint(DEFAULT).backbone
    side = preprocess_of(load_checkpoint(DEFAULT)).size
    pixels = torch.randn(BATCH, 3, side, side)
    with torch.inference_mode():
        backbone.encode_image(pixels)
        started = time.perf_counter()
        for _ in range(4):
            backbone.encode_image(pixels)
    return (time.perf_counter() - started) / (4 * BATCH)


def marginal(images: Path, few: int, many: int, pictures: Pictures) -> float:
    """Seconds that one more image takes `predict`."""
    spent = {}
    for name in ("few", "many"):
        checkpoint = Checkpoint.read(DEFAULT)
        words = ["callbacks.progress=none", f"eval_batch_size={BATCH}", "trainer=cpu"]
        with tempfile.TemporaryDirectory() as out:
            cfg = from_checkpoint(checkpoint.config, [*words, f"output_dir={out}"], "predict", has_memory=False)
            started = time.perf_counter()
            predict(cfg, str(images / name), Path(out), checkpoint=checkpoint, pictures=pictures)
            spent[name] = time.perf_counter() - started
    return (spent["many"] - spent["few"]) / (many - few)
