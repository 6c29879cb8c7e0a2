"""The server of commands, the commands that are broken, and what must be the same afterwards."""

from __future__ import annotations

import csv
import itertools
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from anomaly_vlm.files import is_damaged
from tests.faults.table import TABLE, write_table

REPOSITORY = Path(__file__).parents[2]
COUNTED = "fault"  # name of a property of tests
TINY = [
    "method=adaclip",
    "backbone=tiny_random",
    "backbone.architecture.vision_cfg.layers=4",
    "backbone.layers=[1,2,3,4]",
    "image_size=64",
    "trainer=cpu",
    "callbacks.progress=none",
    "method.hsf.k=4",
    "dataset.train.size=64",
    "dataset.test.size=64",
    "eval_limit=12",
]
TRAIN = [
    "train",
    *TINY,
    "train_limit=6",
    "epochs=2",
    "compare_untrained=false",
    "augment.mosaic=0.5",
    "augment.mosaic_on=[procedural]",
    "checkpoint.every_steps=3",
    "pictures.per_category=1",
]


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    status: int | None
    out: str
    err: str
    operations: int
    seconds: float

    @property
    def line(self) -> str:
        """The one line on standard error, which must be there and be the only one."""
        assert self.err.count("\n") == 1 and self.err.startswith("anomaly-vlm: "), self.err
        return self.err.removeprefix("anomaly-vlm: ").rstrip("\n")

    @property
    def resume_words(self) -> list[str]:
        """The words of the command that the line names."""
        _, found, command = self.line.partition("resume with: ")
        assert found, self.line
        return shlex.split(command)[1:]


class Server:
    """Commands, each in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.numbers = folder, itertools.count()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "COLUMNS": "160"}
        environment["ANOMALY_VLM_CACHE"] = str(folder / "cache")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.server"],
            cwd=REPOSITORY, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None and self.process.stdout.readline() == "ready\n"

    def __call__(self, words: list[str], cwd: Path, **more: Any) -> Outcome:
        place = self.folder / f"command_{next(self.numbers)}"
        request = {"words": words, "cwd": str(cwd), "place": str(place), **more}
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        out, err = ((place / name).read_text(encoding="utf-8", errors="replace") for name in ("out", "err"))
        return Outcome(out=out, err=err, **answer)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    found = Server(tmp_path_factory.mktemp("server"))
    yield found
    assert found.process.stdin is not None and found.process.stdout is not None
    found.process.stdin.close()
    found.process.stdout.close()
    found.process.wait(timeout=60)


def unbroken(server: Server, words: list[str], folder: Path) -> Path:
    """Runs a command whole, notes its operations and seconds in `folder`, and returns the folder of its run."""
    outcome = server([*words, "output_dir=run"], folder, watch=str(folder / "run"))
    assert outcome.status == 0, outcome.err
    (folder / "operations").write_text(str(outcome.operations))
    (folder / "seconds").write_text(str(outcome.seconds))
    return folder / "run"


@pytest.fixture(scope="session")
def whole(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the unbroken training."""
    return unbroken(server, TRAIN, tmp_path_factory.mktemp("whole"))


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["results"]


def same_run(one: Path, other: Path) -> bool:
    """Whether two trainings ended in the same weights and numbers, bit by bit."""
    first, second = (torch.load(f / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for f in (one, other))
    same = first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    tables = [(f / "results.csv").read_text(encoding="utf-8") for f in (one, other)]
    images = [(f / "images.csv").read_text(encoding="utf-8") for f in (one, other)]
    return same and results(one) == results(other) and tables[0] == tables[1] and images[0] == images[1]


def check_whole(folder: Path) -> None:
    """Every file in a folder is one that can be read to its end."""
    for path in folder.rglob("*"):
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix in (".png", ".jpg"):
            with Image.open(path) as image:
                image.load()
        elif path.suffix == ".ckpt":
            assert not is_damaged(path)
            torch.load(path, weights_only=True)
        elif path.suffix == ".csv" and "logs" not in path.parts:
            rows = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
            assert rows and len({len(row) for row in rows}) == 1, path


@pytest.fixture
def counted(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Counts tries of a kind of fault that ended as they must, for the table."""

    def count(kind: str, tries: int = 1) -> None:
        request.node.user_properties.append((COUNTED, f"{int(tries)} {kind}"))

    return count


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Adds up what the tests have counted, here or in the processes of pytest-xdist."""
    if report.when == "call" and report.passed:
        for name, value in report.user_properties:
            if name == COUNTED:
                tries, _, kind = str(value).partition(" ")
                TABLE[kind] = TABLE.get(kind, 0) + int(tries)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Writes the table where no test has failed: a try that fails ends its test and is not counted."""
    target = os.environ.get("ANOMALY_VLM_RELIABILITY")
    if target and not session.testsfailed and not hasattr(session.config, "workerinput"):
        write_table(Path(target))
