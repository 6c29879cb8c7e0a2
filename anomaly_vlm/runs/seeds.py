"""One run for each of several seeds, and one table over them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from omegaconf import DictConfig

from anomaly_vlm.reporting.collect import collect_runs
from anomaly_vlm.reporting.console import is_first_process, say, show
from anomaly_vlm.reporting.seeds import seeds_table
from anomaly_vlm.runs.checks import writable_folder
from anomaly_vlm.runs.configs import shared_with_children, write_config
from anomaly_vlm.runs.run_names import group_run
from anomaly_vlm.runs.same_run import check_same_run, is_finished


def asks_for_several(cfg: DictConfig) -> bool:
    """Whether `seeds` asks for several runs; zero-shot without training, every seed says the same."""
    return cfg.seeds is not None and (cfg.train_on != "nothing" or cfg.shots > 0)


def fit_all(cfg: DictConfig, folder: Path, *, resume: bool = False) -> float:
    """One training run, or one for each of `seeds`; returns the selection metric's mean on the test set.

    Args:
        cfg: The composed configuration.
        folder: Existing folder of the run.
        resume: Whether the user has asked to resume what `folder` holds.
    """
    from anomaly_vlm.runs.fit import fit  # torch and Lightning are read only now

    with shared_with_children(folder):
        if asks_for_several(cfg):
            return over_seeds(cfg, folder, partial(fit, resume=resume), resume=resume)
        return fit(cfg, folder, resume=resume).means.get(cfg.selection_metric, float("nan"))


def runs_of(cfg: DictConfig, folder: Path) -> list[tuple[DictConfig, Path]]:
    """The runs that a configuration stands for, with their folders: itself, or one for each of its seeds."""
    if not asks_for_several(cfg):
        return [(cfg, folder)]
    return [(_of_seed(cfg, seed, folder / f"seed_{seed}"), folder / f"seed_{seed}") for seed in cfg.seeds]


def over_seeds(
    cfg: DictConfig, folder: Path, one_run: Callable[[DictConfig, Path], object], *, resume: bool = False
) -> float:
    """Runs each seed in a folder of its own; runs of this very configuration that are finished stay.

    Args:
        cfg: The composed configuration with its list `seeds`.
        folder: Existing folder of the study; `seed_N/` in it are the runs, `seeds.csv` and `seeds.json` the table.
        one_run: Runs one configuration in one folder.
        resume: Whether the user has asked to resume what `folder` holds, with whatever has been changed since.

    Returns:
        The mean over the seeds of `selection_metric`, NaN where none is defined.

    Raises:
        UserError: A seed's folder holds a run of another configuration; before the first run.
    """
    runs = runs_of(cfg, folder)
    if not resume:
        for one, subfolder in runs:
            check_same_run(one, subfolder)
    write_config(cfg, folder)
    for one, subfolder in runs:
        if is_finished(one, subfolder):
            say(f"seed {one.seed}: finished before, kept")
            continue
        if is_first_process():
            (subfolder / "metrics.json").unlink(missing_ok=True)  # of the run before its options were changed
        one_run(one, writable_folder(subfolder))
    rows = [row for row in collect_runs(folder) if row["run"] in {f"seed_{seed}" for seed in cfg.seeds}]
    if is_first_process():
        show(seeds_table(rows, csv_path=folder / "seeds.csv", json_path=folder / "seeds.json"))
        say(f"over seeds: {folder / 'seeds.csv'}")
    means = [row["means"].get(cfg.selection_metric) for row in rows]
    defined = [value for value in means if value is not None]
    return sum(defined) / len(defined) if defined else float("nan")


def _of_seed(cfg: DictConfig, seed: int, folder: Path) -> DictConfig:
    """The configuration of one seed's run."""
    one = cfg.copy()
    one.seed, one.seeds, one.output_dir = seed, None, str(folder)
    group_run(one, folder.parent.parent if cfg.get("sweep_overrides") else folder.parent)
    return one
