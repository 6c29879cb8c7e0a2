"""A run killed at any moment resumes to the numbers of the unbroken one; two processes give those of one."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from anomaly_vlm.cli import main
from tests.e2e.conftest import LIMIT, QUICK, SMALL_PICTURES, results

pytestmark = pytest.mark.e2e
# 8 steps an epoch; mosaics and k-means++ draw random numbers in every step
WORDS = [
    *QUICK,
    *SMALL_PICTURES,
    "compare_untrained=false",
    "pictures.per_category=0",
    "checkpoint.every_steps=3",
    "train_limit=8",
    "eval_limit=12",
    "augment.mosaic=0.5",
    "augment.mosaic_on=[procedural]",
]


def program(*words: str) -> list[str]:
    return [sys.executable, "-m", "anomaly_vlm.cli", *words]


def learned(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def kill_at_step(folder: Path, step: int, words: list[str]) -> None:
    """Runs a training and kills it (-9) as soon as a checkpoint of at least `step` steps is there."""
    process = subprocess.Popen(
        program("train", *words, f"output_dir={folder}"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    last, limit = folder / "checkpoints" / "last.ckpt", time.monotonic() + 120
    try:
        while process.poll() is None and time.monotonic() < limit:
            if last.is_file() and torch.load(last, weights_only=True)["global_step"] >= step:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL, "the run ended before it could be killed"


@pytest.mark.parametrize("step", [pytest.param(3, marks=pytest.mark.slow), 9])  # in the first epoch, in the second
def test_killed_and_resumed_equals_unbroken(step: int, tmp_path: Path) -> None:
    words = [*WORDS, "epochs=2"]
    assert main(["train", *words, f"output_dir={tmp_path / 'whole'}"]) == 0
    kill_at_step(tmp_path / "broken", step, words)
    assert not (tmp_path / "broken" / "metrics.json").exists()
    assert main(["train", f"resume={tmp_path / 'broken'}"]) == 0
    whole, broken = learned(tmp_path / "whole"), learned(tmp_path / "broken")
    assert whole.keys() == broken.keys()
    assert all(torch.equal(whole[key], broken[key]) for key in whole)
    assert results(tmp_path / "whole") == results(tmp_path / "broken")


def test_a_finished_run_resumes_to_its_evaluation(trained: Path, tmp_path: Path) -> None:
    """Killed after training and before the table: the training is not repeated."""
    before = results(trained)
    (trained / "metrics.json").unlink()
    assert main(["train", f"resume={trained}"]) == 0
    assert results(trained) == before


def test_two_processes_evaluate_to_the_numbers_of_one(trained: Path, tmp_path: Path) -> None:
    ckpt = f"ckpt={trained / 'checkpoints' / 'last.ckpt'}"
    words = [ckpt, LIMIT, "eval_batch_size=1", "pictures.per_category=0"]
    assert main(["evaluate", *words, f"output_dir={tmp_path / 'one'}"]) == 0
    done = subprocess.run(
        program("evaluate", *words, "trainer=ddp_cpu"),
        capture_output=True, text=True, timeout=180, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "outputs" / "evaluate" / "adaclip").iterdir()  # one for both processes
    one, two = results(tmp_path / "one"), results(folder)
    assert one.keys() == two.keys()
    for key, value in one.items():
        assert (value is None and two[key] is None) or two[key] == pytest.approx(value, abs=1e-6), key
    assert (
        (tmp_path / "one" / "images.csv").read_text().count("\n")
        == (folder / "images.csv").read_text().count("\n")
        == 14
    )
    assert done.stdout.count("pixel AUROC") == 1  # one table, from the first process


def test_two_processes_train(tmp_path: Path) -> None:
    """Training under DDP multiplies the effective batch; here it only has to run, and to leave what a run leaves."""
    words = [*WORDS, "epochs=1", "trainer=ddp_cpu", f"output_dir={tmp_path / 'run'}"]
    done = subprocess.run(program("train", *words), capture_output=True, text=True, timeout=180, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert results(tmp_path / "run")["mean/pixel_auroc"] is not None
    assert not (tmp_path / "outputs").exists()
