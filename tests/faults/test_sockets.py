"""The main commands reach no network: where each of them tries to, it is told."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from anomaly_vlm.cli import main
from tests.faults.conftest import TINY, TRAIN, Server
from tests.faults.test_kills import COMMANDS, command, images

__all__ = ["images"]  # a fixture of another module


@pytest.fixture
def blocked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every try to look up a name or to connect to another machine; none of them succeeds."""
    tried: list[str] = []

    def refuse(name: str) -> Any:
        def call(*arguments: Any, **_: Any) -> Any:
            tried.append(f"{name}{arguments}")
            raise OSError("the network is blocked")

        return call

    monkeypatch.setattr(socket, "getaddrinfo", refuse("getaddrinfo"))
    monkeypatch.setattr(socket, "create_connection", refuse("create_connection"))
    monkeypatch.setattr(socket.socket, "connect", refuse("connect"))
    return tried


def test_train_evaluate_predict_and_fit_reach_no_network(
    blocked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*TRAIN, "train_limit=2", "eval_limit=4", "epochs=1", "output_dir=run"]) == 0
    checkpoint = "ckpt=run/checkpoints/last.ckpt"
    assert main(["evaluate", checkpoint, "eval_limit=4", "trainer=cpu", "output_dir=evaluated"]) == 0
    images = next((tmp_path / "run" / "pictures").glob("*"))
    assert main(["predict", checkpoint, f"images={images}", "trainer=cpu", "output_dir=predicted"]) == 0
    winclip = ["method=winclip", *TINY[1:6], "trainer=cpu", "shots=1"]
    assert main(["fit", *winclip, f"good={images.parent}", "output_dir=fitted"]) == 0
    assert not blocked


@pytest.mark.faults
def test_commands_use_no_network(
    server: Server, whole: Path, images: Path, tmp_path: Path, counted: Callable[..., None]
) -> None:
    """Any look-up of a name and any connection raises an error in these, see `server.forbid_sockets`."""
    for kind in COMMANDS:
        outcome = server(command(kind, whole, images), tmp_path, offline=True)
        assert outcome.status == 0, outcome.err
        counted("no network")
        shutil.rmtree(tmp_path / "run")
    (tmp_path / "runs").mkdir()
    shutil.copytree(whole, tmp_path / "runs" / "one")
    for words in (
        [*TRAIN, "train_limit=2", "epochs=1", "output_dir=run"],
        ["fit", "method=winclip", *TINY[1:6], "shots=1", f"good={images}", "output_dir=fitted"],
        ["report", "runs=runs"],
        ["report", "run=runs/one"],
        ["data", "dataset=procedural", "sheet=sheet.png"],
    ):
        outcome = server(words, tmp_path, offline=True)
        assert outcome.status == 0, (words, outcome.err)
        counted("no network")


def test_weights_that_are_not_here_are_reported(
    blocked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert main(["evaluate", "method=winclip", "backbone=vit_b16_plus_240", "output_dir=run"]) == 2
    said = capfd.readouterr().err
    assert "not in the local cache" in said and said.count("\n") == 1
    assert blocked  # the hub was asked
