"""`anomaly-vlm train`: fit, evaluate, write what the run leaves."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from anomaly_vlm.errors import UserError
from anomaly_vlm.runs.checks import check_values, writable_folder
from anomaly_vlm.runs.compose import compose, describe_choices, merge_overrides

if TYPE_CHECKING:
    from omegaconf import DictConfig

HELP = """usage: anomaly-vlm train method=NAME [dataset=NAME] [backbone=NAME] [key=value ...]
       anomaly-vlm train resume=RUN_FOLDER     goes on exactly where that run stopped

data: dataset=NAME names a test set (trained on procedural images) or a pair (visa_to_mvtec);
      source@dataset.train=NAME, source@dataset.test=NAME choose either side,
      dataset.train.root=FOLDER, dataset.test.root=FOLDER say where they lie
"""
FOLDER_VARIABLE = "ANOMALY_VLM_RUN_FOLDER"  # tells the other processes of a DDP run where the first one writes


def run(arguments: Sequence[str]) -> int:
    if any(word in ("-h", "--help") for word in arguments):
        import sys

        sys.stdout.write(f"{HELP}\n{describe_choices()}\n")
        return 0
    resume, rest = pop_key(arguments, "resume")
    if resume is not None:
        cfg, folder = resumed(Path(resume), rest)
    else:
        cfg = compose(rest)
        check_values(cfg)
        folder = run_folder(cfg)
    execute(cfg, folder)
    return 0


def run_folder(cfg: DictConfig) -> Path:
    """Makes the run's folder and names it in the configuration; the processes of a DDP run share the first one's."""
    folder = writable_folder(os.environ.get(FOLDER_VARIABLE, cfg.output_dir))
    cfg.output_dir = str(folder)
    return folder


@contextmanager
def shared_with_children(folder: Path) -> Iterator[None]:
    """Processes that are started meanwhile write into the same folder."""
    os.environ[FOLDER_VARIABLE] = str(folder)
    try:
        yield
    finally:
        os.environ.pop(FOLDER_VARIABLE, None)


def pop_key(arguments: Sequence[str], key: str) -> tuple[str | None, list[str]]:
    """The value of the last `key=value`, and the other arguments."""
    value, rest = None, []
    for word in arguments:
        if word.startswith(f"{key}="):
            value = word.partition("=")[2] or None
        else:
            rest.append(word)
    return value, rest


def resumed(folder: Path, overrides: Sequence[str]) -> tuple[DictConfig, Path]:
    """A run's own configuration with overrides on top, such as more epochs; method, backbone, data and loss stay."""
    from omegaconf import DictConfig, OmegaConf

    from anomaly_vlm.runs.checks import check_targets, shipped_targets
    from anomaly_vlm.runs.compose import conf_dir

    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(f"resume={folder}: no config.yaml in there: give the folder of a run that 'train' started")
    stored = OmegaConf.load(path)
    if not isinstance(stored, DictConfig):
        raise UserError(f"'{path}' is no configuration of a run: give the folder of a run that 'train' started")
    check_targets(OmegaConf.to_container(stored, resolve=False), shipped_targets(conf_dir()), f"'{path}'")
    cfg = merge_overrides(stored, overrides, fixed=("method", "backbone", "dataset", "loss"))
    check_values(cfg)
    cfg.output_dir = str(writable_folder(folder))
    return cfg, folder


def execute(cfg: DictConfig, folder: Path) -> float:
    """One training run, or one for each of `seeds`; returns the selection metric's mean on the test set."""
    from anomaly_vlm.runs.fit import fit  # torch and Lightning are read only now

    with shared_with_children(folder):
        return over_seeds(cfg, folder, fit) if repeated(cfg) else fit(cfg, folder)


def repeated(cfg: DictConfig) -> bool:
    """Whether `seeds` asks for several runs: zero-shot without training, every seed says the same."""
    return cfg.seeds is not None and (cfg.train_on != "nothing" or cfg.shots > 0)


def over_seeds(cfg: DictConfig, folder: Path, one_run: Callable[[DictConfig, Path], object]) -> float:
    """`one_run(configuration, folder)` for each seed in a folder of its own; runs of this very configuration that are
    finished stay. Then one table over all of them."""
    from omegaconf import OmegaConf

    from anomaly_vlm.reporting.collect import collect_runs
    from anomaly_vlm.reporting.console import is_first_process, say, show
    from anomaly_vlm.reporting.seeds import seeds_table

    if is_first_process():
        OmegaConf.save(cfg, folder / "config.yaml")
    for seed in cfg.seeds:
        own = folder / f"seed_{seed}"
        one = cfg.copy()
        one.seed, one.seeds, one.output_dir = seed, None, str(own)
        if _finished(one, own):
            say(f"seed {seed}: finished before, kept")
            continue
        if is_first_process():
            (own / "metrics.json").unlink(missing_ok=True)  # of another configuration
        one_run(one, writable_folder(own))
    rows = [row for row in collect_runs(folder) if row["run"] in {f"seed_{seed}" for seed in cfg.seeds}]
    if is_first_process():
        show(seeds_table(rows, csv_path=folder / "seeds.csv", json_path=folder / "seeds.json"))
        say(f"over seeds: {folder / 'seeds.csv'}")
    means = [row["means"].get(cfg.selection_metric) for row in rows]
    known = [value for value in means if value is not None]
    return sum(known) / len(known) if known else float("nan")


def _finished(cfg: DictConfig, folder: Path) -> bool:
    """Whether a run of this configuration has ended in `folder` (which may have been moved since)."""
    from omegaconf import OmegaConf

    if not ((folder / "metrics.json").is_file() and (folder / "config.yaml").is_file()):
        return False
    stored, own = (OmegaConf.to_container(c) for c in (OmegaConf.load(folder / "config.yaml"), cfg))
    return {**stored, "output_dir": None} == {**own, "output_dir": None}  # type: ignore[dict-item]
