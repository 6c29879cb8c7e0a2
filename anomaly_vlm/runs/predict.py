"""Scores, decisions and heat maps of images without labels."""

from __future__ import annotations

import csv
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from anomaly_vlm.data.own_images import image_files, readable, source_of
from anomaly_vlm.errors import UserError
from anomaly_vlm.files import whole_file, write_text
from anomaly_vlm.names import csv_cell
from anomaly_vlm.reporting.console import say
from anomaly_vlm.reporting.counting import with_progress
from anomaly_vlm.reporting.describe import describe_data
from anomaly_vlm.runs.build import build
from anomaly_vlm.runs.checkpoints import Checkpoint
from anomaly_vlm.runs.detect import precompute_detections
from anomaly_vlm.runs.devices import device_of
from anomaly_vlm.runs.scoring import predictions
from anomaly_vlm.runs.tracking import Tracking, tracked
from anomaly_vlm.runs.transductive import fit_test_images
from anomaly_vlm.runs.writer import Pictures, PredictionWriter

log = logging.getLogger("anomaly_vlm")
MOST_NAMED = 10  # unreadable files that are named on the console


def predict(
    cfg: DictConfig,
    images: str,
    folder: Path,
    *,
    category: str = "object",
    checkpoint: Checkpoint | None = None,
    pictures: Pictures = "all",
) -> list[tuple[Path, str]]:
    """Predicts image by image; a row and a picture are written as soon as they are there.

    Where the same prediction was stopped in this folder, it resumes with the images that are missing.

    Args:
        cfg: The composed configuration.
        images: A folder, a file, a pattern or a list, see `data.own_images`.
        folder: Existing folder for `scores.csv`, `regions.csv` and `pictures/`.
        category: What the images show, for the text prompts.
        checkpoint: Learned weights; None for a method that needs no training.
        pictures: Of which images pictures are written.

    Returns:
        Files that could not be read, each with the reason; they are in `unreadable.csv` too.
    """
    training = None if checkpoint is None else checkpoint.run_folder
    with tracked(cfg, folder, "predict", training=training) as tracking:
        return _predict(cfg, images, folder, category, checkpoint, pictures, tracking)


def _predict(
    cfg: DictConfig,
    images: str,
    folder: Path,
    category: str,
    checkpoint: Checkpoint | None,
    pictures: Pictures,
    tracking: Tracking,
) -> list[tuple[Path, str]]:
    """See `predict`."""
    started = time.monotonic()
    max_value = None if checkpoint is None else checkpoint.record.get("max_value")
    root, named = image_files(images)
    files, unreadable = readable(named, max_value)
    write_unreadable(folder / "unreadable.csv", unreadable, named=bool(files))  # where none can be, the error names one
    if not files:
        raise UserError(f"none of the {len(named)} images can be read: {unreadable[0][1]}")
    source = source_of(root, files, category, max_value=max_value)
    run = build(cfg, sides=("test",), test=source, with_trainer=False)
    if checkpoint is not None:
        checkpoint.load_into(run.method)
    elif run.method.learnable():
        raise UserError(
            f"{cfg.name} scores with what it has learned, and no checkpoint is given: add ckpt=FILE, a .ckpt that 'train'"
            " wrote, or ckpt=package:adaclip"
        )
    records = {name: threshold.to_record() for name, threshold in run.method.decision_thresholds.items()}
    (folder / "thresholds.json").unlink(missing_ok=True)
    if records:
        write_text(folder / "thresholds.json", json.dumps(records, indent=1) + "\n")
    learned_from = "" if checkpoint is None else f", {checkpoint.trained_on}"
    say(f"{run.facts['method']} on {run.facts['backbone']}{learned_from}: {describe_data(run.data).sides['test']}")
    tracking.start(run, folder, "predict")
    precompute_detections(run, "test")
    writer = PredictionWriter(run, folder, root, pictures)
    fit_test_images(run, device_of(cfg))
    ready, left = time.monotonic(), len(files) - len(writer.kept)
    with writer.background:
        batches = predictions(cfg, run.method, run.data.predict_dataloader(writer.kept))
        for batch, prediction in with_progress(
            batches, left, what="predicting", size=lambda pair: len(pair[0]), kind=cfg.callbacks.progress
        ):
            writer.write(batch, prediction)
        writer.finish()
    seconds = time.monotonic() - ready
    writer.journal.end()
    tracking.finish(writer.logged(f"predict/{folder.name}" if tracking.attached else "predict"))
    for line in writer.summary():
        say(line)
    if left:
        say(f"{seconds / left:.2g} s an image ({left:,} images), after {ready - started:.1f} s to start")
    shown = "" if pictures == "false" else f", pictures: {folder / 'pictures'}"
    say(f"scores: {folder / 'scores.csv'}{shown}")
    return unreadable


def write_unreadable(path: Path, unreadable: Sequence[tuple[Path, str]], *, named: bool) -> None:
    """Lists the files that could not be read, in a table and, where they are `named`, on the console.

    An earlier run's table is removed.
    """
    path.unlink(missing_ok=True)
    if not unreadable:
        return
    with whole_file(path) as file:
        writer = csv.writer(file)
        writer.writerow(["path", "reason"])
        writer.writerows([csv_cell(name), csv_cell(reason)] for name, reason in unreadable)
    if not named:
        return
    for _, reason in unreadable[:MOST_NAMED]:
        log.warning("%s", reason)
    if len(unreadable) > MOST_NAMED:
        log.warning("%d more files cannot be read: see '%s'", len(unreadable) - MOST_NAMED, path)
