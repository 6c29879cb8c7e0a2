"""Checks of a configuration that need nothing to be loaded."""

from __future__ import annotations

import math
import os
from pathlib import Path

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from anomaly_vlm.errors import UserError, unknown_choice
from anomaly_vlm.runs.config_types import check_types

WHOLE = {  # key -> smallest value
    "seed": 0,
    "epochs": 1,
    "batch_size": 1,
    "eval_batch_size": 1,
    "num_workers": 0,
    "image_size": 1,
    "pictures.per_category": 0,
    "checkpoint.every_steps": 1,
    "shots": 0,
}
LARGEST = {  # key -> largest value: more is a slip, and a machine that starts so many processes is lost
    "num_workers": max(64, 4 * (os.cpu_count() or 1)),
    "epochs": 1_000_000,
    "image_size": 16_384,
}
ANY_LARGEST = 2**31 - 1
WHOLE_OR_NULL = {"eval_limit": 1, "train_limit": 1, "pixels.mask_size": 1}
CHOICES = {  # the default first: what configurations of older checkpoints lack
    "trainer.precision": ("32-true", "bf16-mixed", "16-mixed"),
    "cache.tokens": ("disk", "memory", "off"),
    "selection": ("last", "best_val", "best_test"),
    "pixels.rgb": ("before", "after"),
    "pixels.mask_resize": ("bilinear", "nearest"),
    "pixels.fit": ("square", "short_side", "native"),
    "pixels.interpolation": ("bicubic", "bilinear"),
    "pixels.decode": ("full", "draft"),
    "train_on": ("dataset", "references", "nothing"),
    "rate": ("constant", "cosine"),
    "texts": ("as_written", "nameless", "swapped", "random"),
    "callbacks.progress": ("auto", "rich", "log", "none"),
}


def check_values(cfg: DictConfig) -> None:
    """Types and ranges of the top-level keys, and interpolations that do not resolve.

    Raises:
        UserError: One line naming the key, the value and what is expected.
    """
    try:
        OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(f"configuration: {str(error).splitlines()[0]}") from error
    check_types(cfg)
    for key, low in {**WHOLE, **WHOLE_OR_NULL}.items():
        value = OmegaConf.select(cfg, key)
        if value is None and key in WHOLE_OR_NULL:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise UserError(f"{key} is {value!r}: give a whole number of at least {low}")
        if value > LARGEST.get(key, ANY_LARGEST):
            raise UserError(f"{key} is {value}: give a whole number from {low} to {LARGEST.get(key, ANY_LARGEST)}")
    for key, allowed in CHOICES.items():
        if (value := OmegaConf.select(cfg, key, default=allowed[0])) not in allowed:
            raise unknown_choice(key, str(value), allowed)
    seeds = OmegaConf.select(cfg, "seeds")
    if seeds is not None:
        words = list(seeds) if isinstance(seeds, ListConfig) else []
        if not words or len(set(words)) < len(words) or any(type(word) is not int or word < 0 for word in words):
            raise UserError(f"seeds is {seeds}: give different whole numbers, such as seeds=[0,1,2]")
    if cfg.shots_list is not None and not cfg.shots:
        raise UserError(f"shots_list '{cfg.shots_list}' is not used with shots=0: set shots=1 or more")
    if cfg.pixels.mask_size is not None and "eval_size" not in cfg.method:
        raise UserError(f"pixels.mask_size is {cfg.pixels.mask_size}: {cfg.name} maps at image_size; set it to null")
    if cfg.train_on == "references" and not cfg.shots:
        raise UserError(f"{cfg.name} learns from reference images: set shots=1 or more (make: SHOTS=1)")
    rate = OmegaConf.select(cfg, "optimizer.lr", default=1.0)
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < math.inf:
        raise UserError(f"optimizer.lr is {rate!r}: give a number above 0")
    for key in ("cache.disk_gb", "cache.memory_gb"):
        size = OmegaConf.select(cfg, key)
        if isinstance(size, bool) or not isinstance(size, int | float) or not 0 <= size < math.inf:
            raise UserError(f"{key} is {size!r}: give a number of gigabytes, at least 0")
    for key in ("augment.mosaic", "augment.class_aware"):
        share = OmegaConf.select(cfg, key, default=0.0)
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
            raise UserError(f"{key} is {share!r}: give a probability from 0 to 1")
    if cfg.selection == "best_val" and cfg.dataset.val is None:
        raise UserError(
            "selection=best_val needs a validation set: add source@dataset.val=NAME, or choose selection=last"
        )


def sides_of(cfg: DictConfig) -> tuple[str, ...]:
    """The sides of the data that a training run reads."""
    used = {"train": cfg.train_on == "dataset", "test": True, "val": cfg.dataset.val is not None}
    return tuple(side for side, wanted in used.items() if wanted)


def writable_folder(path: str | Path) -> Path:
    """Makes an output folder, or says in one line why it cannot be written."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".write_test_{os.getpid()}"
        try:
            probe.write_bytes(bytes(4096))  # a full disk still takes empty files
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise not_writable(path, error) from error
    return path


def not_writable(path: str | Path, error: OSError) -> UserError:
    """The error of a folder that cannot be written."""
    return UserError(
        f"output folder '{path}' is not writable ({error.strerror or error}): give another with output_dir=FOLDER"
    )
