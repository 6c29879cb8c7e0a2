"""`anomaly-vlm sweep`: Hydra multirun of `train`; every run writes its own folder, one table at the end."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import open_dict

from anomaly_vlm.cli.checks import check_values, writable_folder
from anomaly_vlm.cli.compose import compose, conf_dir, describe_choices

if TYPE_CHECKING:
    from omegaconf import DictConfig

HELP = """usage: anomaly-vlm sweep experiment=NAME [key=value1,value2 ...]
       anomaly-vlm sweep method=adaclip seed=0,1,2 method.prompts.depth=2,4

Hydra multirun: lists of values, range(1,4), hydra/launcher=joblib (extra `sweep`) for runs side by side.
"""


def run(arguments: Sequence[str]) -> int:
    if any(word in ("-h", "--help") for word in arguments):
        sys.stdout.write(f"{HELP}\n{describe_choices()}\n")
        return 0
    compose([single(word) for word in arguments])  # a misspelt key ends the command here, before any run
    argv, sys.argv = sys.argv, [sys.argv[0], "--multirun", *arguments]
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")(job)()
    finally:
        sys.argv = argv
    return 0


def single(override: str) -> str:
    """The first value of a list of values, so that one run of the sweep can be composed and checked."""
    key, _, value = override.partition("=")
    if key.startswith("hydra") or value.startswith(("[", "{", "'", '"')):
        return override
    if value.startswith(("choice(", "range(", "glob(")):
        return f"{key}={value.partition('(')[2].split(',')[0].rstrip(')')}"
    return f"{key}={value.split(',')[0]}"


def job(cfg: DictConfig) -> float:
    """One run of a sweep, in the folder that Hydra gives it."""
    from anomaly_vlm.cli.train import execute

    runtime = HydraConfig.get()
    folder = writable_folder(runtime.runtime.output_dir)
    with open_dict(cfg):
        cfg.choices = {k: v for k, v in runtime.runtime.choices.items() if v is not None and not k.startswith("hydra")}
        cfg.output_dir = str(folder)
        cfg.sweep_overrides = list(runtime.overrides.task)
    check_values(cfg)
    return execute(cfg, folder)


class SweepTable(Callback):
    """Hydra callback: collects the runs' `metrics.json` into one table and `sweep.csv` when a sweep ends."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        from rich.console import Console

        from anomaly_vlm.reporting.collect import collect_runs, sweep_table

        root = Path(config.hydra.sweep.dir)
        Console(soft_wrap=True).print(sweep_table(collect_runs(root), csv_path=root / "sweep.csv"))
