"""Scores, decisions and heat maps of images without labels."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from anomaly_vlm.data import own_images
from anomaly_vlm.errors import UserError
from anomaly_vlm.reporting.console import say
from anomaly_vlm.reporting.describe import describe_data
from anomaly_vlm.runs.build import build
from anomaly_vlm.runs.checkpoints import Checkpoint
from anomaly_vlm.runs.detect import precompute_detections
from anomaly_vlm.runs.trainer import build_trainer
from anomaly_vlm.runs.transductive import fit_test_images
from anomaly_vlm.runs.writer import PredictionWriter


def predict(
    cfg: DictConfig, images: str, folder: Path, *, category: str = "object", checkpoint: Checkpoint | None = None
) -> Path:
    """Predicts image by image; a row and a picture are written as soon as they are there.

    Args:
        cfg: The composed configuration.
        images: A folder, a file, a pattern or a list, see `data.own_images`.
        folder: Existing folder for `scores.csv`, `regions.csv` and `pictures/`.
        category: What the images show, for the text prompts.
        checkpoint: Learned weights; None for a method that needs no training.

    Returns:
        The file of scores.
    """
    max_value = None if checkpoint is None else checkpoint.record.get("max_value")
    run = build(cfg, sides=("test",), test=own_images(images, category, max_value=max_value))
    if checkpoint is not None:
        checkpoint.load_into(run.method)
    elif run.method.learnable():
        raise UserError(
            f"{cfg.name} scores with what it has learned, and no checkpoint is given: add ckpt=FILE, a .ckpt that 'train'"
            " wrote, or ckpt=package:adaclip"
        )
    learned_from = "" if checkpoint is None else f", {checkpoint.trained_on}"
    say(f"{run.facts['method']} on {run.facts['backbone']}{learned_from}: {describe_data(run.data).sides['test']}")
    precompute_detections(run, "test")
    writer = PredictionWriter(run, folder)
    trainer = build_trainer(cfg, callbacks=[writer])
    fit_test_images(run, trainer)
    trainer.predict(run.method, datamodule=run.data, return_predictions=False)
    for line in writer.summary():
        say(line)
    say(f"scores: {folder / 'scores.csv'}, heat maps: {folder / 'pictures'}")
    return folder / "scores.csv"
