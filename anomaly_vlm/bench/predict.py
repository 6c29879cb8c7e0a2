"""What `predict` costs end to end (reading, tower, map, table, picture) beside the bare image tower, in one run.

The checkpoint is the one that `predict` takes by default, on photographs of 640 x 480 pixels that no token cache knows.
Seconds an image are the difference between many images and few, so that the start counts on neither side. Where the library
anomalib is installed, WinCLIP's `predict` is measured beside its `Engine.predict`, on the same random weights of ViT-B/16+
at 240 px.
"""

from __future__ import annotations

import csv
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import open_clip
import torch
from PIL import Image
from rich.table import Table

from anomaly_vlm import load_checkpoint
from anomaly_vlm.bench._limits import Limit, at_least
from anomaly_vlm.methods.base.images import preprocess_of
from anomaly_vlm.reporting.console import say, show
from anomaly_vlm.runs.checkpoints import Checkpoint
from anomaly_vlm.runs.compose import compose
from anomaly_vlm.runs.configs import checked, from_checkpoint
from anomaly_vlm.runs.predict import predict
from anomaly_vlm.runs.writer import Pictures

DEFAULT, BATCH = "package:adaclip", 8
QUIET = ["trainer=cpu", "callbacks.progress=none", "cache.tokens=off"]


def run(folder: Path, *, quick: bool) -> None:
    """Prints seconds an image and ratios, writes `predict.csv` into `folder`; `quick` measures fewer images, once."""
    few, many, repeats = (8, 16, 1) if quick else (16, 80, 3)
    with tempfile.TemporaryDirectory() as name:
        images = Path(name)
        photographs(images / "few", few)
        photographs(images / "many", many)
        tower = bare_tower(repeats)
        found = {pictures: marginal(partial(shipped, pictures), images, repeats) for pictures in ("false", "all")}
        limits = [
            at_least("images/s without pictures, of the bare tower's", tower / found["false"], 0.7),
            at_least("images/s with pictures, of the bare tower's", tower / found["all"], 0.5),
            *beside_anomalib(images / "winclip"),
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


def fewest(work: Callable[[], object], repeats: int) -> float:
    """The fewest seconds of some repeats."""
    spent = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        spent.append(time.perf_counter() - started)
    return min(spent)


def bare_tower(repeats: int) -> float:
    """Seconds an image of the image tower alone, on pixels that are ready."""
    model = load_checkpoint(DEFAULT)
    side = preprocess_of(model).size
    pixels = torch.randn(BATCH, 3, side, side)
    with torch.inference_mode():
        model.backbone.encode_image(pixels)
        return fewest(lambda: model.backbone.encode_image(pixels), 4 * repeats) / BATCH


def marginal(predicted: Callable[[Path, Path], object], images: Path, repeats: int) -> float:
    """Seconds that one more image takes a call that predicts the images of a folder into another one."""

    def call(name: str) -> None:
        with tempfile.TemporaryDirectory() as out:
            predicted(images / name, Path(out))

    call("few")  # warms up
    few, many = (fewest(partial(call, name), repeats) for name in ("few", "many"))
    return (many - few) / (len(list((images / "many").iterdir())) - len(list((images / "few").iterdir())))


def shipped(pictures: Pictures, images: Path, out: Path) -> None:
    """Predicts with the checkpoint that is taken by default."""
    checkpoint = Checkpoint.read(DEFAULT)
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
