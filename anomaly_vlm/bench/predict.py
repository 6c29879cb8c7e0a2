"""What `predict` costs end to end (reading, towers, map, table, picture) beside the bare towers, in one run.

The checkpoints are those that ship, on photographs of 640 x 480 pixels that no token cache knows: AdaCLIP, which `predict`
takes by default, passes the image tower's blocks twice and the text tower once an image; UniADet passes the image tower
once. The bare towers are those passes on pixels that are ready. Seconds an image of `predict` are the difference between
many images and few, so that the start counts on neither side. Where the library anomalib is installed, WinCLIP's `predict`
is measured beside its `Engine.predict`, on the same random weights of ViT-B/16+ at 240 px.
"""

from __future__ import annotations

import csv
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import open_clip
import torch
from PIL import Image
from rich.table import Table

from anomaly_vlm import load_checkpoint
from anomaly_vlm.bench._limits import Limit, at_least
from anomaly_vlm.data.types import Batch
from anomaly_vlm.methods.adaclip import AdaCLIP
from anomaly_vlm.methods.base.images import preprocess_of
from anomaly_vlm.reporting.console import say, show
from anomaly_vlm.runs.checkpoints import Checkpoint
from anomaly_vlm.runs.compose import compose
from anomaly_vlm.runs.configs import checked, from_checkpoint
from anomaly_vlm.runs.predict import predict
from anomaly_vlm.runs.writer import Pictures

SHIPPED, BATCH = ("package:adaclip", "package:uniadet"), 8
QUIET = ["trainer=cpu", "callbacks.progress=none", "cache.tokens=off"]


def run(folder: Path, *, quick: bool) -> None:
    """Prints seconds an image and ratios, writes `predict.csv` into `folder`; `quick` measures fewer images, once."""
    few, many, repeats = (8, 16, 1) if quick else (16, 80, 3)
    rows: list[Limit] = []
    with tempfile.TemporaryDirectory() as name:
        images = Path(name)
        photographs(images / "few", few)
        photographs(images / "many", many)
        for checkpoint in SHIPPED:
            rows += measured(checkpoint, images, repeats)
        rows += beside_anomalib(images / "winclip")
    table = Table(title="predict, CPU", title_justify="left", pad_edge=False)
    for column in ("what", "limit", "measured", "met"):
        table.add_column(column)
    for row in rows:
        table.add_row(row.what, row.bound, row.measured, "yes" if row.met else "NO")
    show(table)
    with (folder / "predict.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("what", "limit", "measured", "met"), *rows])
    say(f"{torch.get_num_threads()} threads; written: {folder / 'predict.csv'}")


def measured(checkpoint: str, images: Path, repeats: int) -> list[Limit]:
    """Seconds an image of a checkpoint's towers and of `predict`, without pictures and with all, and their ratios.

    All of them take turns, so that a machine that is slowed for a while slows each.
    """
    few, many = (len(list((images / name).iterdir())) for name in ("few", "many"))
    works = {**bare_towers(checkpoint, many), **calls(partial(shipped, checkpoint, "false"), images, "no pictures")}
    spent = fewest({**works, **calls(partial(shipped, checkpoint, "all"), images, "all pictures")}, repeats)
    seconds = {what: spent[what] / many for what in ("image tower once", "its towers")}
    seconds |= {
        what: (spent[f"{what}, many"] - spent[f"{what}, few"]) / (many - few)
        for what in ("no pictures", "all pictures")
    }
    title, towers = checkpoint.removeprefix("package:"), seconds["its towers"]
    return [
        *(Limit(f"{title}: seconds an image, {what}", "-", f"{value:.4f}", True) for what, value in seconds.items()),
        at_least(f"{title}: images/s without pictures, of the bare towers'", towers / seconds["no pictures"], 0.7),
        at_least(f"{title}: images/s with pictures, of the bare towers'", towers / seconds["all pictures"], 0.5),
    ]


def photographs(folder: Path, count: int) -> None:
    """Writes JPEGs of 640 x 480 pixels: blots of light with the grain of a camera, about 70 kB each."""
    folder.mkdir()
    for i in range(count):
        rng = np.random.default_rng(i)
        blots = Image.fromarray(rng.integers(40, 216, (12, 16, 3), dtype=np.uint8)).resize(
            (640, 480), Image.Resampling.BICUBIC
        )
        pixels = (np.asarray(blots) + rng.normal(0, 5, (480, 640, 3))).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.jpg", quality=90)


def fewest(works: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """The fewest seconds of each work, once more than `repeats` in turns, of which the first warms up."""
    spent: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats + 1):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            spent[name].append(time.perf_counter() - started)
    return {name: min(seconds[1:]) for name, seconds in spent.items()}


def bare_towers(checkpoint: str, count: int) -> dict[str, Callable[[], object]]:
    """One pass of the image tower over `count` images, and all that a method asks of its towers, on ready pixels."""
    model: Any = load_checkpoint(checkpoint)
    tower, side = model.backbone, preprocess_of(model).size
    pixels, numbers = torch.randn(BATCH, 3, side, side), torch.arange(BATCH)
    words, unknown = [str(number) for number in range(BATCH)], torch.full((BATCH,), -1)
    batch = Batch(pixels, unknown, None, ["object"] * BATCH, words, numbers, [None] * BATCH)

    def once() -> object:
        return tower.encode_patches(pixels, layers=tower.layers)

    def towers() -> object:
        return model.features(batch) if isinstance(model, AdaCLIP) else model.frozen_tokens(batch)

    def batches(work: Callable[[], object]) -> None:
        with torch.inference_mode():
            for _ in range(count // BATCH):
                work()

    return {"image tower once": partial(batches, once), "its towers": partial(batches, towers)}


def calls(predicted: Callable[[Path, Path], object], images: Path, title: str) -> dict[str, Callable[[], object]]:
    """Calls that predict the folders `few` and `many`, each into an empty folder."""

    def call(name: str) -> None:
        with tempfile.TemporaryDirectory() as out:
            predicted(images / name, Path(out))

    return {f"{title}, {name}": partial(call, name) for name in ("few", "many")}


def marginal(predicted: Callable[[Path, Path], object], images: Path, repeats: int) -> float:
    """Seconds that one more image takes a call that predicts the images of a folder into another one."""
    spent = fewest(calls(predicted, images, "call"), repeats)
    few, many = (len(list((images / name).iterdir())) for name in ("few", "many"))
    return (spent["call, many"] - spent["call, few"]) / (many - few)


def shipped(name: str, pictures: Pictures, images: Path, out: Path) -> None:
    """Predicts with a checkpoint that ships."""
    checkpoint = Checkpoint.read(name)
    words = [*QUIET, f"eval_batch_size={BATCH}", f"output_dir={out}"]
    cfg = from_checkpoint(checkpoint.config, words, "predict", has_memory=False)
    predict(cfg, str(images), out, checkpoint=checkpoint, pictures=pictures)


def winclip(pictures: Pictures, images: Path, out: Path) -> None:
    """Predicts with WinCLIP, zero-shot, on random weights of its tower."""
    tower = ["backbone=vit_b16_plus_240", "backbone.pretrained=null", "backbone.random_seed=0"]
    words = ["method=winclip", *tower, *QUIET, f"output_dir={out}"]
    cfg = checked(compose(words))
    predict(cfg, str(images), out, pictures=pictures)


def beside_anomalib(images: Path) -> list[Limit]:
    """Our WinCLIP's images a second against anomalib's, without and with pictures; none where it is not installed.

    Images are written into `images`. Its normalisation and thresholds need a validation set, which a folder of images is
    not: they are left out. Its model is made once for all measurements, as its texts take it long.
    """
    try:
        from anomalib.engine import Engine
        from anomalib.models import WinClip
    except ImportError:
        say("anomalib is not installed: not compared")
        return []
    tower = open_clip.create_model("ViT-B-16-plus-240").eval()
    images.mkdir()
    photographs(images / "few", 1)  # each takes seconds
    photographs(images / "many", 5)

    def theirs(model: WinClip, folder: Path, out: Path) -> None:
        engine = Engine(logger=False, accelerator="cpu", default_root_dir=out, enable_progress_bar=False)
        with mock.patch.object(engine, "_should_run_validation", lambda *_: False):
            engine.predict(model=model, data_path=folder)

    limits = []
    cases: list[tuple[str, Pictures, bool]] = [("without", "false", False), ("with", "all", True)]
    for what, pictures, drawn in cases:
        ours = marginal(partial(winclip, pictures), images, 2)
        with mock.patch("open_clip.create_model_and_transforms", lambda *_, **__: (tower, None, None)):
            model = WinClip(class_name="object", post_processor=False, visualizer=drawn)
            model.setup("predict")
        taken = marginal(partial(theirs, model), images, 2)
        limits.append(at_least(f"WinCLIP {what} pictures, images/s of anomalib's ({taken:.3f} s)", taken / ours, 1.0))
    return limits
