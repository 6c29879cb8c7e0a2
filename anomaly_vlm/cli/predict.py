"""`anomaly-vlm predict`: scores and heat maps of a folder of images."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomaly_vlm.cli.evaluate import configured, memory_paths
from anomaly_vlm.cli.train import pop_key
from anomaly_vlm.errors import UserError
from anomaly_vlm.runs.checks import writable_folder

if TYPE_CHECKING:
    from omegaconf import DictConfig

HELP = """usage: anomaly-vlm predict ckpt=FILE images=FOLDER [category=WORD] [key=value ...]

Writes scores.csv (path, score) and a heat map beside each image into the output folder.
category: what the images show, for the text prompts (default: object)
"""


def run(arguments: Sequence[str]) -> int:
    if any(word in ("-h", "--help") for word in arguments):
        sys.stdout.write(HELP)
        return 0
    ckpt, rest = pop_key(arguments, "ckpt")
    images, rest = pop_key(rest, "images")
    category, rest = pop_key(rest, "category")
    if images is None:
        raise UserError("no images given: add images=FOLDER, a folder with the images to score")
    if not Path(images).is_dir():
        raise UserError(f"images={images}: no such folder: give a folder with the images to score")
    if ckpt is None and not any(word.startswith("method=") for word in rest):
        raise UserError("no checkpoint given: add ckpt=FILE, a .ckpt that 'train' wrote")
    cfg, spec = configured(ckpt, rest, "predict")
    if cfg.shots and memory_paths(spec, cfg) is None:
        raise UserError(
            f"method={cfg.name} with shots={cfg.shots} has no reference images at prediction: give ckpt=FILE, a .ckpt that"
            " 'train' wrote with them"
        )
    execute(cfg, spec, Path(images), category or "object", writable_folder(cfg.output_dir))
    return 0


def execute(cfg: DictConfig, spec: str | None, images: Path, category: str, folder: Path) -> None:
    """Predicts image by image; a row and a picture are written as soon as they are there."""
    from anomaly_vlm.data import folder_source
    from anomaly_vlm.reporting.console import say
    from anomaly_vlm.runs.build import build, build_trainer, load_any
    from anomaly_vlm.runs.detect import precompute_detections

    cfg.dataset.test = folder_source(images, category)
    parts = build(cfg, sides=("test",))
    if spec:
        load_any(parts.method, spec)
    say(f"{parts.facts['method']} on {parts.facts['backbone']}: {parts.data.describe('test')}")
    precompute_detections(parts, "test")
    writer = _writer(parts, folder)
    trainer = build_trainer(cfg, callbacks=[writer])
    trainer.predict(parts.method, datamodule=parts.data, return_predictions=False)
    say(f"scores: {folder / 'scores.csv'}, heat maps: {folder / 'pictures'}")


def _writer(parts: Any, folder: Path) -> Any:
    from anomaly_vlm.runs.writer import PredictionWriter

    return PredictionWriter(parts, folder)
