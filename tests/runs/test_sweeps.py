"""Sweeps: what their jobs are, what is told before the first one, and what becomes of those that fail."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from anomaly_vlm.cli import main
from anomaly_vlm.errors import UserError
from anomaly_vlm.reporting.record import write_metrics
from anomaly_vlm.runs import launchers
from anomaly_vlm.runs.compose import compose_job
from anomaly_vlm.runs.jobs import run_job
from anomaly_vlm.runs.launchers import LocalLauncher, SubmititLauncher
from anomaly_vlm.runs.search import OptunaSearch
from anomaly_vlm.runs.stopping import Stopped
from anomaly_vlm.runs.sweeps import FAILED, Job, expand, first_values, plan, run_jobs

TINY = ["method=linear_heads", "backbone=tiny_random", "trainer=cpu"]
SUBMITIT_WARNINGS = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


def overrides_of(words: list[str]) -> list[list[str]]:
    return expand(words, compose_job(first_values(words))[1]["sweeper"])


def test_a_sweep_has_all_combinations() -> None:
    found = overrides_of([*TINY, "seed=0,1", "epochs=range(1,3)"])
    assert [words[-2:] for words in found] == [
        ["seed=0", "epochs=1"],
        ["seed=0", "epochs=2"],
        ["seed=1", "epochs=1"],
        ["seed=1", "epochs=2"],
    ]


def test_the_command_line_wins_over_the_experiment() -> None:
    found = overrides_of(["experiment=few_shot/compare", "method=winclip", "shots=1,2"])
    assert [[word for word in words if not word.startswith("experiment")] for words in found] == [
        ["method=winclip", "shots=1"],
        ["method=winclip", "shots=2"],
    ]


def test_an_interval_needs_a_search() -> None:
    with pytest.raises(UserError, match="an interval is for a search"):
        overrides_of([*TINY, "optimizer.lr=interval(0,1)"])


def test_jobs_have_folders_and_labels() -> None:
    jobs = plan([[*TINY, "seed=0"], [*TINY, "seed=1"]])
    assert [(job.number, str(job.folder), job.label) for job in jobs] == [(0, "0", "seed=0"), (1, "1", "seed=1")]
    with pytest.raises(UserError, match="several jobs of the sweep write to one folder"):
        plan([[*TINY, f"seed={seed}", "hydra.sweep.subdir=one"] for seed in (0, 1)])


@pytest.mark.parametrize(
    "words, told",
    [
        (["epochs=0,1"], r"job 0 of the sweep \(epochs=0\): epochs is 0"),
        (["method.head=linear2,linear9"], r"\(method.head=linear9\): unknown method.head 'linear9'"),
        (["trainer.acumulate_grad_batches=1,2"], "unknown key of trainer"),
        (["logger=csv,wandb", "logger.wandb.offline=false"], "unknown key 'logger.wandb.offline'"),
        (
            ["source@dataset.test=procedural,magnetic_tile", "dataset.test.root=/nowhere"],
            "no folder '/nowhere'|unknown key",
        ),
        (["hydra/launcher=jobli", "seed=0,1"], "did you mean launcher/joblib"),
        (
            [
                "callbacks=early_stopping",
                "callbacks.early_stopping.monitor=val/pixel_fpr95",
                "source@dataset.val=procedural",
            ],
            r"job 0.*callbacks.early_stopping.mode is max, and a smaller val/pixel_fpr95 is better",
        ),
    ],
)
def test_what_can_be_known_is_reported_before_the_first_job(
    words: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", *TINY, *words]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    with pytest.raises(UserError, match=told):
        raise UserError(err)
    assert not list(tmp_path.rglob("config.yaml"))


def test_wandb_that_is_not_there_is_reported_before_the_first_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert main(["sweep", *TINY, "seed=0,1", "logger=wandb"]) == 2
    assert "logger=wandb needs the package wandb" in capsys.readouterr().err
    assert not list(tmp_path.rglob("config.yaml"))


# ---- jobs ------------------------------------------------------------------------------------------------------------


class Recorded:
    """A launcher that writes what it is given, and results for all jobs but some."""

    def __init__(self, *failing: int) -> None:
        self.failing, self.launched = failing, []

    def launch(self, jobs: list[Job], root: Path) -> None:
        self.launched.append([job.number for job in jobs])
        for job in jobs:
            if job.number in self.failing:
                (job.folder / FAILED).write_text("broken\n\ntraceback")
            else:
                write_metrics(
                    job.folder / "metrics.json", {"mean/pixel_f1_max": job.cfg.seed / 10}, {"overrides": job.overrides}
                )


def test_what_is_finished_is_kept_and_what_failed_is_tried_again(tmp_path: Path) -> None:
    jobs = plan([[*TINY, f"seed={seed}"] for seed in range(3)])
    launcher = Recorded(1)
    done = run_jobs(jobs, tmp_path, launcher)
    assert [job.state for job in done] == ["finished", "failed", "finished"] and done[1].reason == "broken"
    (tmp_path / "2" / "metrics.json").unlink()  # as if killed
    assert done[2].state == "missing"
    launcher.failing = ()
    done = run_jobs(jobs, tmp_path, launcher)
    assert [job.state for job in done] == ["finished"] * 3
    assert launcher.launched == [[0, 1, 2], [1, 2]]
    other = plan([[*TINY, f"seed={seed}", "epochs=7"] for seed in range(3)])
    with pytest.raises(UserError, match="holds another run"):
        run_jobs(other, tmp_path, launcher)


@pytest.mark.parametrize(
    "error", [RuntimeError("no"), MemoryError(), SystemExit(3), UserError("depth is 99"), AssertionError()]
)
def test_every_failure_leaves_its_reason_and_place(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> float:
        raise error

    monkeypatch.setattr("anomaly_vlm.runs.seeds.fit_all", fail)
    assert run_job(OmegaConf.create({}), tmp_path) == (2 if isinstance(error, UserError) else 1)
    first, _, rest = (tmp_path / FAILED).read_text().partition("\n\n")
    assert ("depth is 99" in first) if isinstance(error, UserError) else first
    assert "Traceback" in rest and "in fail" in rest


@pytest.mark.parametrize("error", [Stopped(15), KeyboardInterrupt()])
def test_a_stopped_job_has_not_failed(error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> float:
        raise error

    monkeypatch.setattr("anomaly_vlm.runs.seeds.fit_all", stop)
    with pytest.raises(type(error)):
        run_job(OmegaConf.create({}), tmp_path)
    assert not list(tmp_path.iterdir())


# ---- launchers: the jobs are small programs --------------------------------------------------------------------------

PROGRAM = """
import json, os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
how = folder.name
keep = {"gpu": os.environ.get("CUDA_VISIBLE_DEVICES"), "threads": os.environ.get("OMP_NUM_THREADS"), "start": time.time()}
if how == "1":
    os.kill(os.getpid(), signal.SIGKILL)
if how == "2":
    sys.exit(7)
time.sleep(0.5)
(folder / "did.json").write_text(json.dumps({**keep, "end": time.time()}))
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """Four prepared jobs, of which number 1 is killed and number 2 ends by itself."""
    monkeypatch.setattr(launchers, "command", lambda folder, trusted: [sys.executable, "-c", PROGRAM, str(folder)])
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    jobs = []
    for number in range(4):
        folder = tmp_path / str(number)
        folder.mkdir()
        cfg = OmegaConf.create({"trust": [], "trainer": {"accelerator": "auto"}})
        jobs.append(Job(number, [], cfg, folder, f"seed={number}"))
    return jobs


def check(jobs: list[Job], killed: str = "SIGKILL") -> list[dict[str, object]]:
    assert killed in (jobs[1].folder / FAILED).read_text()
    assert "status 7" in (jobs[2].folder / FAILED).read_text()
    return [json.loads((jobs[i].folder / "did.json").read_text()) for i in (0, 3)]


def test_one_job_after_another(programs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    first, last = check_after(LocalLauncher(n_jobs=1), programs, tmp_path)
    assert first["end"] <= last["start"]


def check_after(launcher: object, jobs: list[Job], root: Path) -> list[dict[str, object]]:
    launcher.launch(jobs, root)
    return check(jobs)


def test_jobs_side_by_side_have_a_gpu_each(
    programs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6,7,9")
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    first, last = check_after(LocalLauncher(n_jobs=-1), programs, tmp_path)
    assert (first["gpu"], last["gpu"]) == ("4", "9") and first["threads"] == "2"
    assert first["end"] > last["start"]


def test_more_jobs_than_gpus_wait(programs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    first, last = check_after(LocalLauncher(n_jobs=-1), programs, tmp_path)
    assert {first["gpu"], last["gpu"]} <= {"4", "6"}


def test_without_gpus_jobs_share_the_cores(
    programs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    for found in check_after(LocalLauncher(n_jobs=2), programs, tmp_path):
        assert found["threads"] == "2"


def test_a_stopped_sweep_ends_its_jobs(programs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = "import time; time.sleep(60)"
    monkeypatch.setattr(launchers, "command", lambda folder, trusted: [sys.executable, "-c", slow])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    sleep = time.sleep

    def stop(seconds: float) -> None:
        if seconds == launchers.PAUSE:
            raise Stopped(15)
        sleep(seconds)

    monkeypatch.setattr(launchers.time, "sleep", stop)
    started = time.monotonic()
    with pytest.raises(Stopped):
        LocalLauncher(n_jobs=2).launch(programs, tmp_path)
    assert time.monotonic() - started < 20 and not list(tmp_path.rglob(FAILED))


@SUBMITIT_WARNINGS
@pytest.mark.parametrize("name", ["submitit_local", "submitit_slurm"])
def test_submitit(name: str, programs: list[Job], tmp_path: Path) -> None:
    """The settings for SLURM, through submitit's local executor."""
    pytest.importorskip("submitit")
    words = [*TINY, f"hydra/launcher={name}", "hydra.launcher.cluster=local", "+hydra.launcher.partition=gpu"]
    node = compose_job(words)[1]["launcher"]
    assert node.pop("_target_").endswith("SubmititLauncher")
    SubmititLauncher(**node).launch(programs, tmp_path)
    check(programs)


def test_submitit_without_slurm_or_with_wrong_keys_is_rejected(programs: list[Job], tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    with pytest.raises(UserError, match=r"slurm|srun|sbatch"):
        SubmititLauncher("slurm").launch(programs, tmp_path)
    with pytest.raises(UserError, match="submitit does not take these keys"):
        SubmititLauncher("local", tasks="many").launch(programs, tmp_path)


# ---- search ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def search() -> OptunaSearch:
    optuna = pytest.importorskip("optuna")
    return OptunaSearch(sampler=optuna.samplers.RandomSampler(seed=0), n_trials=4, n_jobs=2)


SPACE = ["seed=range(0,10)", "optimizer.lr=tag(log,interval(1e-4,1e-1))", "method.head=linear2,prototypes"]


@pytest.mark.filterwarnings("ignore:.*experimental.*")
def test_a_search_goes_on(search: OptunaSearch, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    launcher = Recorded(1)
    jobs = search.run([*TINY, *SPACE], tmp_path, launcher)
    assert [job.state for job in jobs] == ["finished", "failed", "finished", "finished"]
    rates = [job.cfg.optimizer.lr for job in jobs]
    assert len(set(rates)) == 4 and all(1e-4 <= rate <= 1e-1 for rate in rates)
    assert {job.cfg.method.head for job in jobs} <= {"linear2", "prototypes"}
    best = max((job for job in jobs if job.state == "finished"), key=lambda job: job.cfg.seed)
    assert f"number {best.number}, pixel_f1_max {best.cfg.seed / 10:.4f}" in " ".join(capsys.readouterr().out.split())
    search.n_trials = 5
    launcher.failing = ()
    again = search.run([*TINY, *SPACE], tmp_path, launcher)
    assert [job.state for job in again] == ["finished"] * 5
    assert launcher.launched == [[0, 1], [2, 3], [4, 5]]


def test_a_search_needs_something_to_search(search: OptunaSearch, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing is searched"):
        search.run(TINY, tmp_path, Recorded())


@pytest.mark.parametrize(("metric", "direction"), [("pixel_f1_max", "maximize"), ("pixel_fpr95", "minimize")])
def test_the_direction_of_a_search_is_the_metrics_own(metric: str, direction: str) -> None:
    assert OptunaSearch(sampler=None, metric=metric).direction == direction
    wrong = "minimize" if direction == "maximize" else "maximize"
    with pytest.raises(UserError, match=f"for {metric} it can only be {direction}"):
        OptunaSearch(sampler=None, metric=metric, direction=wrong)


@pytest.mark.parametrize("name", ["adaclip", "linear_heads"])
def test_shipped_searches_compose(name: str) -> None:
    words = [f"hparams_search={name}"]
    cfg, settings = compose_job(words)
    settings["sweeper"].pop("_target_")
    found = OptunaSearch(**settings["sweeper"])
    assert found.metric == cfg.selection_metric
    pytest.importorskip("optuna")
    assert set(found.space(words)[1]) == set(found.params)
