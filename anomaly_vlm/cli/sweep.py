"""`anomaly-vlm sweep`: Hydra multirun of `train`; every run writes its own folder, one table at the end."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.experimental.callback import Callback
from omegaconf import open_dict

from anomaly_vlm.errors import UserError
from anomaly_vlm.files import unique_folder, write_text
from anomaly_vlm.runs import stopping
from anomaly_vlm.runs.checks import check_values, not_writable, writable_folder
from anomaly_vlm.runs.compose import addable, completed, compose, conf_dir, describe_choices, parse, sweeper_params
from anomaly_vlm.runs.configs import timestamp
from anomaly_vlm.runs.same_run import is_finished

if TYPE_CHECKING:
    from omegaconf import DictConfig

FAILED = "failed.txt"
FOLDER_KEY = "hydra.sweep.dir="
HELP = """usage: anomaly-vlm sweep experiment=NAME [key=value1,value2 ...]
       anomaly-vlm sweep method=adaclip seed=0,1,2 method.prompts.depth=2,4

Hydra multirun: lists of values, range(1,4), hydra/launcher=joblib (extra `sweep`) for runs side by side.
"""


def run(arguments: Sequence[str]) -> int:
    """Runs `anomaly-vlm sweep` with its arguments; returns the exit status."""
    if any(word in ("-h", "--help") for word in arguments):
        sys.stdout.write(f"{HELP}\n{describe_choices()}\n")
        return 0
    trials = [compose(overrides) for overrides in trial_runs(arguments)]
    for cfg in trials:  # a mistake in any value ends the command here, before the first run
        check_values(cfg)
    folder = sweep_folder(arguments, [cfg.name for cfg in trials])
    given = [word for word in swept(arguments) if not word.startswith(FOLDER_KEY)]
    argv, sys.argv = sys.argv, [sys.argv[0], "--multirun", *given, f"{FOLDER_KEY}{quoted(folder)}"]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come up to the command line, which words them
    kept = [word for word in arguments if not word.startswith(FOLDER_KEY)]
    try:
        with stopping.goes_on_with("sweep", *kept, f"{FOLDER_KEY}{folder}"):
            hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")(job)()
    finally:
        sys.argv = argv
    if SweepTable.root is not None:
        check_failures(SweepTable.root)
    return 0


def sweep_folder(arguments: Sequence[str], methods: Sequence[str]) -> Path:
    """The folder of a sweep: the one that the user names, or a new one named after all methods that are swept over."""
    named = [word.removeprefix(FOLDER_KEY) for word in arguments if word.startswith(FOLDER_KEY)]
    if named:
        return writable_folder(named[-1].strip("'\""))
    path = Path("outputs") / "sweeps" / "_".join(dict.fromkeys(methods)) / timestamp()
    try:
        return writable_folder(unique_folder(path))
    except OSError as error:
        raise not_writable(path, error) from error


def quoted(folder: Path) -> str:
    """A folder as Hydra's grammar takes it, whatever its name holds."""
    text = str(folder).replace("'", "\\'")
    return f"'{text}'"


def swept(arguments: Sequence[str]) -> list[str]:
    """The arguments as Hydra gets them: behind what the experiment sweeps over, with options of the method addable."""
    first = [_values(o)[0] for o in parse(arguments) if _values(o)]
    params = sweeper_params(first)
    return [*map(addable, [*params, *arguments]), *(["hydra.sweeper.params=null"] if params else [])]


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
    """One run of a sweep, in the folder that Hydra gives it. Wrong input ends this run alone: `failed.txt` says why.

    What an interrupted sweep has finished is kept, and the run that it was in goes on.
    """
    from anomaly_vlm.cli.train import execute

    runtime = HydraConfig.get()
    folder = writable_folder(runtime.runtime.output_dir)
    with open_dict(cfg):
        chosen = runtime.runtime.choices.items()
        completed(cfg, {group: name for group, name in chosen if name is not None and not group.startswith("hydra")})
        cfg.output_dir = str(folder)
        cfg.sweep_overrides = [word.removeprefix("++") for word in runtime.overrides.task]
    try:
        if str(cfg.trainer.get("strategy", "auto")).startswith("ddp"):
            raise UserError(
                "a sweep runs each job in one process: choose trainer=cpu or gpu, or train one run with ddp"
            )
        check_values(cfg)
        (folder / FAILED).unlink(missing_ok=True)
        if is_finished(cfg, folder):
            from anomaly_vlm.reporting.collect import collect_runs
            from anomaly_vlm.reporting.console import say

            say(f"{folder}: finished before, kept")
            rows = collect_runs(folder)
            return float((rows[0]["means"].get(cfg.selection_metric) if rows else None) or math.nan)
        return execute(cfg, folder)
    except UserError as error:
        write_text(folder / FAILED, f"{error}\n")
        return math.nan


class SweepTable(Callback):
    """Hydra callback: collects the runs' `metrics.json` into one table and `sweep.csv` when a sweep ends."""

    root: ClassVar[Path | None] = None  # of the last sweep in this process

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Collects the runs of the sweep into one table, prints it and writes it to `sweep.csv`."""
        from anomaly_vlm.reporting.collect import collect_runs, sweep_table
        from anomaly_vlm.reporting.console import say, show

        SweepTable.root = root = Path(config.hydra.sweep.dir)
        rows = collect_runs(root)
        if rows:
            show(sweep_table(rows, csv_path=root / "sweep.csv"))
            say(f"table: {root / 'sweep.csv'}")


def check_failures(root: Path) -> None:
    """Raises a `UserError` where runs below `root` ended with wrong input."""
    failed = sorted(root.rglob(FAILED))
    if failed:
        raise UserError(
            f"{len(failed)} of the sweep's runs failed; the first ({failed[0].parent}): {failed[0].read_text()}"
        )
