"""Small runs of the command line: drawn images, the tiny backbone, seconds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from anomaly_vlm.cli import main

QUICK = [
    "method=adaclip",
    "backbone=tiny_random",
    "backbone.architecture.vision_cfg.layers=4",
    "backbone.layers=[1,2,3,4]",
    "image_size=64",
    "train_limit=12",
    "eval_limit=13",
    "epochs=2",
    "pictures.per_category=1",
    "callbacks.progress=none",
    "trainer=cpu",
    "method.hsf.k=4",
]


LIMIT = "eval_limit=13"  # of QUICK, which an evaluation of its checkpoint does not inherit
SMALL_PICTURES = ["dataset.train.size=64", "dataset.test.size=64"]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands write to `outputs/` of the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("ANOMALY_VLM_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one finished quick run, shared by the tests that only read it."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", *QUICK, *SMALL_PICTURES, f"output_dir={folder}"]) == 0
    return folder


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())["results"]


@pytest.fixture
def refused(capfd: pytest.CaptureFixture) -> Callable[[list[str]], str]:
    """Runs a command that must end with status 2 and exactly one line on standard error, which it returns."""

    def run(words: list[str]) -> str:
        capfd.readouterr()
        status = main(words)
        err = capfd.readouterr().err
        assert status == 2, f"{words}: status {status}"
        assert err.count("\n") == 1 and err.startswith("anomaly-vlm: "), f"{words}: {err!r}"
        return err.removeprefix("anomaly-vlm: ").rstrip("\n")

    return run
