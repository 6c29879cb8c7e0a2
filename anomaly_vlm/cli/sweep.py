"""`anomaly-vlm sweep`: Hydra multirun of `train`; every run writes its own folder, one table at the end."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.experimental.callback import Callback
from omegaconf import open_dict

from anomaly_vlm.cli.checks import check_values, writable_folder
from anomaly_vlm.cli.compose import compose, conf_dir, describe_choices, parse, sweeper_params

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
    for overrides in trial_runs(arguments):  # a mistake in any value ends the command here, before the first run
        check_values(compose(overrides))
    argv, sys.argv = sys.argv, [sys.argv[0], "--multirun", *arguments]
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")(job)()
    finally:
        sys.argv = argv
    return 0


def trial_runs(arguments: Sequence[str]) -> list[list[str]]:
    """Overrides that try every value of every swept key once, the other keys at their first value.

    Values that only a search can name (`interval(0, 1)` of another sweeper than Hydra's basic one) are left out.
    """
    given = parse(arguments)
    first = [_values(o)[0] for o in given if _values(o)]
    swept = {o.key_or_group: o for o in given}
    for line in sweeper_params(first):
        override = parse([line])[0]
        swept.setdefault(override.key_or_group, override)  # the command line wins, as in Hydra
    tried = {key: _values(o) for key, o in swept.items() if _values(o)}
    base = {key: values[0] for key, values in tried.items()}
    runs = [list(base.values())]
    for key, values in tried.items():
        runs += [list({**base, key: value}.values()) for value in values[1:]]
    return runs


def _values(override: Override) -> list[str]:
    """`seed=0,1` -> `["seed=0", "seed=1"]`."""
    if not override.is_sweep_override():
        return [str(override.input_line)]
    if not (override.is_discrete_sweep()):
        return []
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]


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
        from anomaly_vlm.reporting.collect import collect_runs, sweep_table
        from anomaly_vlm.reporting.console import show

        root = Path(config.hydra.sweep.dir)
        show(sweep_table(collect_runs(root), csv_path=root / "sweep.csv"))
