"""A sweep: its jobs, composed and checked before the first one runs, and what has become of each."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from anomaly_vlm.errors import UserError
from anomaly_vlm.files import clear_unfinished, write_text
from anomaly_vlm.runs.checks import check_values, sides_of, writable_folder
from anomaly_vlm.runs.compose import compose_job, parse
from anomaly_vlm.runs.same_run import check_same_run, is_finished

FAILED = "failed.txt"  # in a job's folder: why it failed, and where
JobState = Literal["finished", "failed", "missing"]


@dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Attributes:
        number: Its place in the sweep.
        overrides: Of this job, without those of Hydra itself.
        cfg: The composed configuration.
        folder: Where it writes; of a planned job, relative to the folder of the sweep.
        label: What tells it from the other jobs.
    """

    number: int
    overrides: list[str]
    cfg: DictConfig
    folder: Path
    label: str

    @property
    def state(self) -> JobState:
        """What has become of it, as its folder says."""
        if (self.folder / FAILED).is_file():
            return "failed"
        return "finished" if all(is_finished(cfg, folder) for cfg, folder in self._parts()) else "missing"

    @property
    def reason(self) -> str:
        """Why it failed, in one line; empty where it did not."""
        path = self.folder / FAILED
        return (path.read_text(encoding="utf-8").splitlines() or [""])[0] if path.is_file() else ""

    def _parts(self) -> list[tuple[DictConfig, Path]]:
        """The runs that it consists of: itself, or one for each of its seeds."""
        from anomaly_vlm.runs.seeds import runs_of

        return runs_of(self.cfg, self.folder)


class Launcher(Protocol):
    """Runs jobs, and returns when none of them runs any more."""

    def launch(self, jobs: Sequence[Job], root: Path) -> None:
        """Runs jobs whose folders hold their configurations; what becomes of each is left in its folder.

        Args:
            jobs: At least one.
            root: Folder of the sweep.

        Raises:
            Stopped: By a signal; the jobs have saved their states.
        """


def expand(words: Sequence[str], sweeper: dict[str, Any]) -> list[list[str]]:
    """The overrides of every job: all combinations of the values of the swept keys, the last key the fastest.

    Args:
        words: As on the command line.
        sweeper: Hydra's node; its `params` are swept over too, where the command line does not name the same key.
    """
    given = parse(words, sweep=True)
    keys = {override.key_or_group for override in given}
    shipped = parse(
        [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items() if key not in keys], sweep=True
    )
    axes = [values_of(override) for override in (*given, *shipped) if not override.is_sweep_override()]
    axes += [values_of(override) for override in (*shipped, *given) if override.is_sweep_override()]
    return [list(combination) for combination in itertools.product(*axes)]


def values_of(override: Override) -> list[str]:
    """`seed=0,1` as `["seed=0", "seed=1"]`.

    Raises:
        UserError: An interval, which only a search can choose from.
    """
    if not override.is_sweep_override():
        return [str(override.input_line)]
    if not override.is_discrete_sweep():
        raise UserError(f"{override.input_line}: an interval is for a search: add hydra/sweeper=optuna, or give a list")
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]


def first_values(words: Sequence[str]) -> list[str]:
    """The words with the first value of each list, and without intervals: enough to compose Hydra's own settings."""
    return [values_of(o)[0] for o in parse(words, sweep=True) if not o.is_sweep_override() or o.is_discrete_sweep()]


def plan(overrides: Sequence[Sequence[str]], *, first: int = 0) -> list[Job]:
    """Composes every job of a sweep.

    Args:
        overrides: One list a job.
        first: Number of the first job.

    Raises:
        UserError: A job does not compose.
    """
    jobs = []
    shared = set.intersection(*(set(words) for words in overrides)) if len(overrides) > 1 else set()
    for number, words in enumerate(overrides, first):
        cfg, settings = compose_job(words, number)
        task = [word for word in words if not word.startswith("hydra")]
        OmegaConf.update(cfg, "sweep_overrides", task, force_add=True)
        varying = [word for word in task if word not in shared]
        OmegaConf.update(cfg, "sweep_varying", varying, force_add=True)
        jobs.append(Job(number, task, cfg, Path(settings["subdir"]), " ".join(varying)))
    if len({job.folder for job in jobs}) < len(jobs):
        raise UserError(
            "several jobs of the sweep write to one folder: give hydra.sweep.subdir a name with hydra.job.num"
        )
    return jobs


def check_jobs(jobs: Sequence[Job]) -> None:
    """Finds what can be known before the first job runs: wrong values and options, missing packages, unreadable data.

    Raises:
        UserError: The first mistake, with the job that it is in.
    """
    for job in jobs:
        _check_job(job, check_values, job.cfg)
    from anomaly_vlm.runs.devices import check_gpu  # torch is read only now
    from anomaly_vlm.runs.fit import validated_side
    from anomaly_vlm.runs.instantiate import check_backbone_options, check_method_options
    from anomaly_vlm.runs.schedules import check_schedule
    from anomaly_vlm.runs.selection import watched_metrics
    from anomaly_vlm.runs.tracking import check_logger
    from anomaly_vlm.runs.trainer import check_keys

    of_method = (check_backbone_options, check_method_options, check_schedule)
    data_seen: set[str] = set()
    for job in jobs:
        cfg = job.cfg
        for check in (check_keys, check_gpu, *of_method, validated_side):
            _check_job(job, check, cfg)
        for node in cfg.logger.values():
            _check_job(job, check_logger, node)
        read = [cfg.dataset, cfg.shots_list, bool(cfg.shots), cfg.eval_limit, watched_metrics(cfg), validated_side(cfg)]
        data = OmegaConf.to_yaml(OmegaConf.create(read), resolve=True)
        if data not in data_seen:
            data_seen.add(data)
            _check_job(job, _check_data, cfg)


def _check_data(cfg: DictConfig) -> None:
    """Reads the lists of images of a job, and checks that what it watches after every epoch can be measured on them."""
    from anomaly_vlm.runs.build import build_data
    from anomaly_vlm.runs.fit import validated_side
    from anomaly_vlm.runs.selection import check_watched_data

    data = build_data(cfg, sides_of(cfg), with_trainer=False)
    data.check()
    data.selection_side = validated_side(cfg) if cfg.train_on != "nothing" else None
    check_watched_data(cfg, data)


def _check_job(job: Job, check: Any, value: Any) -> None:
    try:
        check(value)
    except UserError as error:
        raise UserError(f"job {job.number} of the sweep ({job.label}): {error}") from error


def run_jobs(jobs: Sequence[Job], root: Path, launcher: Launcher) -> list[Job]:
    """Runs what is not finished of planned jobs; returns all of them, in their places.

    Failed jobs are run again, from the state that they left.

    Args:
        jobs: Planned and checked.
        root: Folder of the sweep.
        launcher: What runs them.

    Raises:
        UserError: A folder cannot be written, or holds another run; before the first job.
        Stopped: By a signal; the jobs have saved their states.
    """
    from anomaly_vlm.runs.seeds import runs_of

    placed = [replace(job, folder=root / job.folder) for job in jobs]
    for job in placed:
        job.cfg.output_dir = str(job.folder)
        for cfg, folder in runs_of(job.cfg, job.folder):
            check_same_run(cfg, folder)
    waiting = [job for job in placed if job.state != "finished"]
    for job in waiting:
        writable_folder(job.folder)
        clear_unfinished(job.folder)
        (job.folder / FAILED).unlink(missing_ok=True)
        write_text(job.folder / "config.yaml", OmegaConf.to_yaml(job.cfg))
    if waiting:
        launcher.launch(waiting, root)
    return placed


def note_failure(folder: Path, reason: str, details: str = "") -> None:
    """Writes `failed.txt` into a job's folder: the reason in the first line, what explains it below."""
    first = " ".join(reason.split()) or "no reason given"
    write_text(folder / FAILED, f"{first}\n\n{details}" if details else f"{first}\n")
