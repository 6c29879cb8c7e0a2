"""`anomaly-vlm nano`: trains the embedded CLIP from pictures and sentences that the project makes itself."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

HELP = """usage: anomaly-vlm nano [key=value ...]       train the nano CLIP; conf/nano.yaml lists the keys

An interrupted run goes on: call it again with the same output_dir.
"""


def run(arguments: Sequence[str]) -> int:
    if any(word in ("-h", "--help") for word in arguments):
        sys.stdout.write(HELP)
        return 0
    from omegaconf import OmegaConf

    from anomaly_vlm.cli.checks import writable_folder
    from anomaly_vlm.cli.compose import compose

    cfg = compose(arguments, config="nano")
    folder = writable_folder(Path(cfg.output_dir))
    options = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(options, dict)
    import torch

    from anomaly_vlm.nano.train import train_nano
    from anomaly_vlm.reporting.console import say

    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    OmegaConf.save(cfg, folder / "config.yaml")
    path = train_nano({str(key): value for key, value in options.items()}, folder, say)
    if cfg.weights:
        shutil.copyfile(path, cfg.weights)
        say(f"copied to {cfg.weights}")
    return 0
