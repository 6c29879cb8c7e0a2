"""`anomaly-vlm predict`: scores, decisions and heat maps of images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from anomaly_vlm.cli.arguments import asks_for_help, pop_key
from anomaly_vlm.cli.evaluate import configured
from anomaly_vlm.errors import UserError
from anomaly_vlm.runs import stopping
from anomaly_vlm.runs.configs import run_folder

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from anomaly_vlm.runs.checkpoints import Checkpoint

DEFAULT = "package:adaclip"
HELP = """usage: anomaly-vlm predict images=FOLDER [ckpt=FILE] [category=WORD] [key=value ...]

Writes scores.csv and heat maps into the output folder; with a checkpoint of 'fit' also a decision for each image.
images: a folder (sub-folders included), a file, a pattern such as 'parts/*.png', a .txt file of paths, or [a.png,b.png]
ckpt: what 'fit' or 'train' wrote (default: package:adaclip, which the suite ships: nano CLIP, trained on drawn pictures)
category: what the images show, for the text prompts (default: the one that the checkpoint knows, else object)
pictures: all (default), worst (the 20 images with the highest scores), or false
Files that cannot be read are listed in unreadable.csv; the others are scored, and the exit status is then 3.
"""
SOME_UNREADABLE = 3  # exit status


def run(arguments: Sequence[str]) -> int:
    """Runs `anomaly-vlm predict` with its arguments; returns the exit status."""
    if asks_for_help(arguments, HELP):
        return 0
    spec, rest = pop_key(arguments, "ckpt")
    images, rest = pop_key(rest, "images")
    category, rest = pop_key(rest, "category")
    pictures, overrides = pop_key(rest, "pictures")
    if images is None:
        raise UserError("no images given: add images=FOLDER, a folder with the images to score")
    check_images(images)
    if spec is None and not any(word.startswith("method=") for word in overrides):
        spec = DEFAULT
    cfg, checkpoint = configured(spec, overrides, "predict")
    check_references(cfg, checkpoint)
    known = category or "object" if checkpoint is None else checkpoint.category(category)
    from anomaly_vlm.runs.predict import predict
    from anomaly_vlm.runs.writer import pictures_wanted

    wanted = pictures_wanted(pictures)
    folder = run_folder(cfg, overrides)
    with stopping.resume_command(*stopping.same_command("predict", arguments, output_dir=folder)):
        unreadable = predict(cfg, images, folder, category=known, checkpoint=checkpoint, pictures=wanted)
    return SOME_UNREADABLE if unreadable else 0


def check_images(images: str) -> None:
    """Raises a `UserError` where there are no images, before anything else is read."""
    from anomaly_vlm.data.own_images import image_files

    image_files(images, quiet=True)


def check_references(cfg: DictConfig, checkpoint: Checkpoint | None) -> None:
    """Raises a `UserError` where a method is to compare with references that only a checkpoint could hold, and none does."""
    if cfg.shots and (checkpoint is None or checkpoint.memory_images(cfg) is None):
        raise UserError(
            f"method={cfg.name} with shots={cfg.shots} has no reference images at prediction: give ckpt=FILE, a .ckpt that"
            " 'fit' or 'train' wrote with them"
        )
