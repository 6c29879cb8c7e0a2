"""Ctrl-C and SIGTERM: a status, one line, and a command that resumes."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.conftest import TRAIN, Server, check_whole, results, same_run
from tests.faults.test_kills import answer, command, images, operations, spread

__all__ = ["images"]  # a fixture of another module
STATUS = {"SIGTERM": 143, "SIGINT": 130}
KIND = {"SIGTERM": "SIGTERM", "SIGINT": "Ctrl-C"}


def stop_training(server: Server, whole: Path, folder: Path, action: str, **when: object) -> bool:
    """Stops a training and resumes as the line says; whether it was stopped before its end."""
    outcome = server([*TRAIN, "output_dir=run"], folder, watch=str(folder / "run"), action=action, **when)
    if outcome.status == 0:
        return False
    assert outcome.status == STATUS[action], outcome.err
    assert outcome.line.startswith("stopped by")
    if (folder / "run").is_dir():
        check_whole(folder / "run")
    again = server(outcome.resume_words, folder)
    assert again.status == 0, again.err
    assert same_run(folder / "run", whole)
    return True


@pytest.mark.parametrize("action", STATUS)
def test_a_training_that_is_stopped_goes_on(action: str, server: Server, whole: Path, tmp_path: Path) -> None:
    for at in spread(operations(whole), 3)[1:2]:
        (tmp_path / str(at)).mkdir()
        assert stop_training(server, whole, tmp_path / str(at), action, at=at)


@pytest.mark.faults
@pytest.mark.parametrize("action", STATUS)
def test_a_training_stopped_at_any_moment(
    action: str, server: Server, whole: Path, tmp_path: Path, counted: Callable[..., None]
) -> None:
    seconds, moments = float((whole.parent / "seconds").read_text()), random.Random(action)
    for number in range(5):
        folder = tmp_path / str(number)
        folder.mkdir()
        stop_training(server, whole, folder, action, after=moments.uniform(0.02, seconds))
        counted(KIND[action])
        shutil.rmtree(folder)
    for at in spread(operations(whole), 5):
        folder = tmp_path / f"at_{at}"
        folder.mkdir()
        stop_training(server, whole, folder, action, at=at)
        counted(KIND[action])
        shutil.rmtree(folder)


@pytest.mark.faults
@pytest.mark.parametrize("kind", ["evaluation", "prediction", "sweep", "seeds"])
@pytest.mark.parametrize("action", STATUS)
def test_other_commands_stopped(
    action: str, kind: str, server: Server, whole: Path, images: Path, tmp_path: Path, counted: Callable[..., None]
) -> None:
    words = command(kind, whole, images)
    (tmp_path / "unbroken").mkdir()
    unbroken = server(words, tmp_path / "unbroken", watch=str(tmp_path / "unbroken" / "run"))
    assert unbroken.status == 0, unbroken.err
    expected, stopped = answer(kind, tmp_path / "unbroken"), 0
    for at in spread(unbroken.operations, 4):
        folder = tmp_path / str(at)
        folder.mkdir()
        outcome = server(words, folder, watch=str(folder / "run"), action=action, at=at)
        if outcome.status != 0:
            stopped += 1
            assert outcome.status == STATUS[action], outcome.err
            assert server(outcome.resume_words, folder).status == 0
        assert answer(kind, folder) == expected
        counted(KIND[action])
        shutil.rmtree(folder)
    assert stopped > 1


def test_a_stopped_evaluation_says_so(server: Server, whole: Path, tmp_path: Path) -> None:
    words = ["evaluate", f"ckpt={whole / 'checkpoints' / 'last.ckpt'}", "eval_limit=12", "output_dir=run"]
    outcome = server(words, tmp_path, watch=str(tmp_path / "run"), action="SIGTERM", at=3)
    assert outcome.status == 143, outcome.err
    assert not (tmp_path / "run" / "metrics.json").exists()
    assert server(outcome.resume_words, tmp_path).status == 0
    assert results(tmp_path / "run") == results(whole)
