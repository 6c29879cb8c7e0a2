"""`anomaly-vlm nano`: trains an embedded CLIP from pictures and sentences that the project makes itself."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anomaly_vlm.errors import UserError

CONFIGS = {"vit": "nano", "convnext": "nano_convnext"}
# What may differ when an interrupted run resumes.
FREE = ("output_dir", "weights", "pool", "threads", "every", "validate_every", "val_count", "image.steps")
HELP = """usage: anomaly-vlm nano [key=value ...]                  train the nano CLIP (a ViT); conf/nano.yaml lists the keys
       anomaly-vlm nano model=convnext [key=value ...]   train nano_convnext; conf/nano_convnext.yaml lists the keys

An interrupted run resumes: call it again with the same output_dir.
"""


def run(arguments: Sequence[str]) -> int:
    """Runs `anomaly-vlm nano` with its arguments; returns the exit status."""
    if any(word in ("-h", "--help") for word in arguments):
        sys.stdout.write(HELP)
        return 0
    from omegaconf import OmegaConf

    from anomaly_vlm.errors import unknown_choice
    from anomaly_vlm.runs.checks import writable_folder
    from anomaly_vlm.runs.compose import compose

    model = next((word.removeprefix("model=") for word in arguments if word.startswith("model=")), "vit")
    if model not in CONFIGS:
        raise unknown_choice("model", model, CONFIGS)
    cfg = compose(arguments, config=CONFIGS[model])
    folder = writable_folder(Path(cfg.output_dir))
    options = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(options, dict)
    check_same_run(cfg, folder)
    import torch

    from anomaly_vlm.nano.train import train_nano
    from anomaly_vlm.nano.train_convnext import train_convnext
    from anomaly_vlm.reporting.console import say
    from anomaly_vlm.runs.devices import flush_denormals

    flush_denormals()
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    OmegaConf.save(cfg, folder / "config.yaml")
    train = train_convnext if model == "convnext" else train_nano
    path = train({str(key): value for key, value in options.items()}, folder, say)
    if cfg.weights:
        shutil.copyfile(path, cfg.weights)
        say(f"copied to {cfg.weights}")
    return 0


def check_same_run(cfg: Any, folder: Path) -> None:
    """Raises a `UserError` where `folder` holds a run with other settings than `cfg`, which cannot resume with these."""
    from omegaconf import OmegaConf

    path = folder / "config.yaml"
    if not path.is_file():
        return
    before = OmegaConf.load(path)
    for key in _leaves(cfg):
        kept = OmegaConf.select(before, key)
        if key not in FREE and kept is not None and kept != OmegaConf.select(cfg, key):
            raise UserError(f"{folder} holds a run with {key}={kept}: give that, or another output_dir")


def _leaves(cfg: Any, above: str = "") -> list[str]:
    """The dotted keys of all values."""
    from omegaconf import DictConfig

    return [
        key
        for name in cfg
        for key in (_leaves(cfg[name], f"{above}{name}.") if isinstance(cfg[name], DictConfig) else [f"{above}{name}"])
    ]
