"""A search over options with Optuna: trials are jobs of a sweep, and the study lies beside them, so that it can resume."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from anomaly_vlm.errors import UserError
from anomaly_vlm.options import check_value
from anomaly_vlm.reporting.collect import collect_runs
from anomaly_vlm.reporting.console import say
from anomaly_vlm.reporting.tables import smaller_is_better
from anomaly_vlm.runs.compose import parse
from anomaly_vlm.runs.sweeps import Job, Launcher, plan, run_jobs

STUDY = "optuna.log"  # Optuna's journal, in the folder of the sweep


class OptunaSearch:
    """Lets Optuna choose the values of each trial.

    Args:
        sampler: One of `optuna.samplers`.
        direction: `maximize`, `minimize`, or `auto` for the one in which the metric gets better.
        metric: Mean over the categories of the test set that is searched by, such as `pixel_f1_max`.
        n_trials: Number of trials, those of the study before it was interrupted included.
        n_jobs: Trials that are chosen together.
        params: What is searched, key to values in Hydra's grammar; the command line may add to it.
    """

    def __init__(
        self,
        *,
        sampler: Any,
        direction: Literal["auto", "maximize", "minimize"] = "auto",
        metric: str = "pixel_f1_max",
        n_trials: int = 20,
        n_jobs: int = 1,
        params: dict[str, Any] | None = None,
    ) -> None:
        for name, value in (("n_trials", n_trials), ("n_jobs", n_jobs)):
            if check_value(f"hydra.sweeper.{name}", value, int) < 1:
                raise UserError(f"hydra.sweeper.{name} is {value}: give a whole number of at least 1")
        better: Literal["minimize", "maximize"] = "minimize" if smaller_is_better(metric) else "maximize"
        if direction not in ("auto", better):
            raise UserError(
                f"hydra.sweeper.direction is {direction}, and for {metric} it can only be {better}: give auto"
            )
        self.sampler, self.direction, self.metric = sampler, better, metric
        self.n_trials, self.n_jobs, self.params = n_trials, n_jobs, params or {}

    def run(self, words: Sequence[str], root: Path, launcher: Launcher) -> list[Job]:
        """Searches, or resumes the search whose study lies in `root`.

        Args:
            words: The command line: what is fixed, and what is searched.
            root: Folder of the sweep.
            launcher: What runs the trials.

        Returns:
            The jobs of all trials.
        """
        from optuna.trial import TrialState

        fixed, space = self.space(words)
        study = self._study(root)
        finished = study.get_trials(states=(TrialState.COMPLETE,))
        jobs = [
            job for t in finished for job in run_jobs(plan([_asked(fixed, t.params)], first=t.number), root, launcher)
        ]
        missing = self.n_trials - len(finished)
        while missing > 0:
            trials = [study.ask(space) for _ in range(min(self.n_jobs, missing))]
            missing -= len(trials)
            planned = plan([_asked(fixed, trial.params) for trial in trials], first=trials[0].number)
            run = run_jobs(planned, root, launcher)
            jobs += run
            for trial, job in zip(trials, run, strict=True):
                value = mean_of(job, self.metric)
                study.tell(trial, *((value,) if math.isfinite(value) else (None, TrialState.FAIL)))
        if study.get_trials(states=(TrialState.COMPLETE,)):
            best = study.best_trial
            words = [f"{key}={value}" for key, value in best.params.items()]
            say(f"best of {len(jobs)} trials: number {best.number}, {self.metric} {best.value:.4f}: {' '.join(words)}")
        return jobs

    def _study(self, root: Path) -> Any:
        """The study in a folder; trials that were running when it was interrupted are asked for first."""
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage = JournalStorage(JournalFileBackend(str(root / STUDY)))
        study = optuna.create_study(
            storage=storage, sampler=self.sampler, study_name="sweep", direction=self.direction, load_if_exists=True
        )
        for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
            study.enqueue_trial(trial.params)
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        return study

    def space(self, words: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
        """What is fixed, and the distribution of every key that is searched.

        Raises:
            UserError: Nothing is searched, or a value is no number or text.
        """
        given = parse(words, sweep=True)
        keys = {override.key_or_group for override in given}
        shipped = parse([f"{key}={value}" for key, value in self.params.items() if key not in keys], sweep=True)
        searched = [override for override in (*shipped, *given) if override.is_sweep_override()]
        if not searched:
            raise UserError(
                "nothing is searched: give hydra.sweeper.params, or values such as optimizer.lr='interval(1e-4,1e-2)'"
            )
        fixed = [str(o.input_line) for o in (*shipped, *given) if not o.is_sweep_override()]
        return fixed, {o.get_key_element(): distribution(o) for o in searched}


def distribution(override: Override) -> Any:
    """Hydra's `interval`, `range` and lists as Optuna's distributions; the tag `log` makes an interval logarithmic."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = override.value()
    log = "log" in getattr(value, "tags", ())
    if isinstance(value, IntervalSweep):
        low, high = value.start, value.end
        if isinstance(low, int) and isinstance(high, int):
            return IntDistribution(low, high, log=log)
        return FloatDistribution(float(low or 0.0), float(high or 0.0), log=log)
    if isinstance(value, RangeSweep) and value.start is not None and value.stop is not None:
        if all(isinstance(number, int) for number in (value.start, value.stop, value.step)):
            return IntDistribution(int(value.start), int(value.stop) - 1, step=int(value.step), log=log)
        return FloatDistribution(float(value.start), float(value.stop), step=float(value.step))
    return CategoricalDistribution(list(override.sweep_string_iterator()))


def mean_of(job: Job, metric: str) -> float:
    """A mean of a finished job, over its seeds where it has several; NaN where there is none."""
    values = [row["means"].get(metric) for row in collect_runs(job.folder)] if job.state == "finished" else []
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else math.nan


def _asked(fixed: Sequence[str], params: dict[str, Any]) -> list[str]:
    return [*fixed, *(f"{key}={value}" for key, value in params.items())]
