"""A distributed run of which one process dies: the others end within a minute, one line says why, and the state is whole."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.conftest import REPOSITORY, TRAIN, check_whole

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="finds the processes in Linux's /proc"),
]
LONG = [word for word in TRAIN if not word.startswith(("trainer", "train_limit", "epochs", "checkpoint"))]
LONG += ["trainer=ddp_cpu", "train_limit=200", "epochs=50", "checkpoint.every_steps=2"]
START, MINUTE = 240.0, 60.0  # seconds; a loaded machine may take long to start


def children(process: int) -> list[int]:
    """The other processes of a run that the first one has started, but for those that have ended."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            fields = (place / "stat").read_text().rpartition(")")[2].split()
            ranked = b"LOCAL_RANK=1" in (place / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if int(fields[1]) == process and fields[0] != "Z" and ranked:
            found.append(int(place.name))
    return found


def wait_for(what: Callable[[], object], seconds: float) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if what():
            return True
        time.sleep(0.05)
    return False


def runs(process: int) -> bool:
    """Whether a process is there and has not ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(("dies", "when"), [("second", "start"), ("second", "training"), ("first", "training")])
def test_all_end(dies: str, when: str, tmp_path: Path, counted: Callable[..., None]) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    words = [sys.executable, "-m", "anomaly_vlm.cli", *LONG, "output_dir=run"]
    last, errors = tmp_path / "run" / "checkpoints" / "last.ckpt", tmp_path / "err"
    with errors.open("w") as err:
        first = subprocess.Popen(words, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=err)
    others: list[int] = []
    try:
        assert wait_for(lambda: children(first.pid), START), errors.read_text()
        if when == "training":
            assert wait_for(last.is_file, START), errors.read_text()
        (second,) = others = children(first.pid)
        os.kill(second if dies == "second" else first.pid, signal.SIGKILL)
        assert wait_for(lambda: first.poll() is not None and not runs(second), MINUTE), errors.read_text()
    finally:
        first.kill()
        first.wait()
        for process in filter(runs, others):
            os.kill(process, signal.SIGKILL)
    said = errors.read_text().splitlines()
    if dies == "second":
        assert first.returncode == 1
        assert said == [
            "anomaly-vlm: process 2 of this run was ended by SIGKILL: all others end too, and the last state is kept"
        ]
    else:
        assert said == ["anomaly-vlm: the first process of this run has ended: this one ends too"]
    check_whole(tmp_path / "run")
    assert last.is_file() == (when == "training")
    counted("a process of several dies")
