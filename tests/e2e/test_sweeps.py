"""Sweeps from the command line: the table at the end, jobs that fail in every way, resuming."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from anomaly_vlm.cli import main
from tests.e2e.conftest import QUICK, SMALL_PICTURES

pytestmark = pytest.mark.e2e

SHORT = [*QUICK, *SMALL_PICTURES, "epochs=1", "train_limit=2", "eval_limit=8", "pictures.per_category=0"]
SHORT += ["compare_untrained=false", "hydra.sweep.dir=sweep"]
IN_PROCESS = "hydra.launcher.own_process=false"
BREAKS = "{_target_: tests.support.breaking.Break, how: %s}"


def rows(path: str) -> list[dict[str, str]]:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_sweep_ends_in_one_table(capsys: pytest.CaptureFixture) -> None:
    assert (
        main(["sweep", *SHORT, IN_PROCESS, "seed=0,1", "method.projection=linear,clip", "base=projection=linear"]) == 0
    )
    out = capsys.readouterr().out
    written = rows("sweep/sweep.csv")
    assert [(row["seed"], row["method.projection"]) for row in written] == [
        ("0", "linear"),
        ("0", "clip"),
        ("1", "linear"),
        ("1", "clip"),
    ]
    assert "projection" in out and "±" in out and "4 of 4 finished, 0 failed, 0 missing" in out
    assert "difference to projection=linear" in out
    assert [row["projection"] for row in rows("sweep/table.csv")] == ["linear", "clip"]
    assert r"\toprule" in Path("sweep/table.tex").read_text() and "| projection |" in Path("sweep/table.md").read_text()
    assert main(["report", "runs=sweep", "where=seed=0", "columns=pixel_auroc", "format=markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "| projection | pixel AUROC |" in lines and len([line for line in lines if line.startswith("| ")]) == 4


def test_a_failed_job_costs_only_itself_and_is_tried_again(capfd: pytest.CaptureFixture) -> None:
    breaking = f"callbacks.extra=[],[{BREAKS % 'exit'}],[{BREAKS % 'memory'}]"
    assert main(["sweep", *SHORT, IN_PROCESS, "trust=[tests]", breaking]) == 2
    said = capfd.readouterr()
    assert "1 of 3 finished, 2 failed, 0 missing" in said.err and said.err.count("\n") == 1
    assert "out of memory: lower batch_size" in Path("sweep/2/failed.txt").read_text()
    assert "sys.exit(3)" in Path("sweep/1/failed.txt").read_text()
    assert "failed: sweep/1: SystemExit: 3" in said.out and len(rows("sweep/sweep.csv")) == 1
    Path("mended").touch()
    before = Path("sweep/0/metrics.json").stat().st_mtime_ns
    assert main(["sweep", "resume=sweep"]) == 0
    assert "3 of 3 finished" in capfd.readouterr().out and not list(Path("sweep").rglob("failed.txt"))
    assert Path("sweep/0/metrics.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_killed_job_costs_only_itself(capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each job in a process of its own, side by side; what is killed in the middle resumes from its state."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    breaking = f"callbacks.extra=[],[{BREAKS % 'kill'}],[{BREAKS % 'crash'}]"
    words = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "trust=[tests]", breaking]
    assert main(["sweep", *SHORT, *words]) == 2
    said = capfd.readouterr()
    assert "1 of 3 finished, 2 failed, 0 missing" in said.err
    assert "SIGKILL" in Path("sweep/1/failed.txt").read_text()
    assert "RuntimeError: the callback broke" in Path("sweep/2/failed.txt").read_text()
    Path("mended").touch()
    assert main(["sweep", "resume=sweep", "hydra.launcher.n_jobs=1"]) == 0
    assert "3 of 3 finished" in capfd.readouterr().out


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*experimental.*")
def test_a_search_from_the_command_line(capfd: pytest.CaptureFixture) -> None:
    pytest.importorskip("optuna")
    words = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "optimizer.lr=tag(log,interval(1e-4,1e-2))"]
    assert main(["sweep", *SHORT, IN_PROCESS, *words]) == 0
    out = capfd.readouterr().out
    assert "best of 2 trials" in out and "2 of 2 finished" in out
    assert main(["sweep", "resume=sweep", "hydra.sweeper.n_trials=3"]) == 0
    assert "3 of 3 finished" in capfd.readouterr().out


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_jobs_through_submitit(capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    words = ["hydra/launcher=submitit_slurm", "hydra.launcher.cluster=local", "hydra.launcher.gpus_per_node=0"]
    assert main(["sweep", *SHORT, *words, "seed=0,1"]) == 0
    assert "2 of 2 finished" in capfd.readouterr().out
