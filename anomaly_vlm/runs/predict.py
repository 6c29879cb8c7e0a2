"""Scores and heat maps of images without labels."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from anomaly_vlm.data import folder_source
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
    cfg: DictConfig, images: Path, folder: Path, *, category: str = "object", checkpoint: Checkpoint | None = None
) -> Path:
    """Predicts image by image; a row and a picture are written as soon as they are there.

    Args:
        cfg: The composed configuration.
        images: Folder of images, sub-folders included.
        folder: Existing folder for `scores.csv` and `pictures/`.
        category: What the images show, for the text prompts.
        checkpoint: Learned weights; None for a method that needs no training.

    Returns:
        The file of scores.
    """
    run = build(cfg, sides=("test",), test=folder_source(images, category))
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
    trainer = build_trainer(cfg, callbacks=[PredictionWriter(run, folder)])
    fit_test_images(run, trainer)
    trainer.predict(run.method, datamodule=run.data, return_predictions=False)
    say(f"scores: {folder / 'scores.csv'}, heat maps: {folder / 'pictures'}")
    return folder / "scores.csv"
