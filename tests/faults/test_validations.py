"""Stopped or killed in a validation inside a training: no step is lost, and the validation is not left out."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.faults.conftest import TRAIN, Server, same_run, unbroken
from tests.faults.test_kills import SEED, spread
from tests.faults.test_signals import STATUS

pytestmark = pytest.mark.faults
STEP = "anomaly_vlm.methods.base.steps:TrainerSteps.validation_step"
CHOSEN = [  # two validations an epoch, of two batches each; 3 and 6 are steps after which the state is saved anyway
    *[word for word in TRAIN if not word.startswith(("checkpoint", "pictures"))],
    *("checkpoint.every_steps=5", "pictures.per_category=0", "trainer.val_check_interval=3", "callbacks=ema"),
    *("selection=best_val", "source@dataset.val=procedural", "dataset.val.size=64", "eval_batch_size=6"),
]


@pytest.fixture(scope="module")
def chosen(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the unbroken training."""
    return unbroken(server, CHOSEN, tmp_path_factory.mktemp("chosen"))


def steps_of(folder: Path, name: str = "last") -> int:
    return int(torch.load(folder / "run" / "checkpoints" / f"{name}.ckpt", weights_only=True)["global_step"])


def same_choice(folder: Path, chosen: Path) -> bool:
    """Whether two trainings ended in the same last and the same best weights, and the same numbers, bit by bit."""
    one, other = (torch.load(f / "checkpoints" / "best.ckpt", weights_only=True) for f in (folder / "run", chosen))
    same = all(torch.equal(one["state_dict"][key], value) for key, value in other["state_dict"].items())
    return same and one["global_step"] == other["global_step"] and same_run(folder / "run", chosen)


def stop_in_validation(server: Server, chosen: Path, folder: Path, action: str, at: int) -> None:
    """Stops at a batch of a validation and resumes."""
    outcome = server([*CHOSEN, "output_dir=run"], folder, action=action, call={"of": STEP, "at": at})
    assert outcome.status == STATUS.get(action, -9), outcome.err
    assert steps_of(folder) == 3 * -(-at // 2)
    again = server(outcome.resume_words if action in STATUS else ["train", "resume=run"], folder)
    assert again.status == 0, again.err
    assert same_choice(folder, chosen)


@pytest.mark.parametrize("action", [*STATUS, "SIGKILL"])
def test_every_validation(
    action: str, server: Server, chosen: Path, tmp_path: Path, counted: Callable[..., None]
) -> None:
    for at in (1, 2, 5, 8) if action == "SIGTERM" else (4, 7):
        folder = tmp_path / str(at)
        folder.mkdir()
        stop_in_validation(server, chosen, folder, action, at)
        counted("stopped or killed in a validation")
        shutil.rmtree(folder)


def test_trainings_with_validations_broken_anywhere(
    server: Server, chosen: Path, tmp_path: Path, counted: Callable[..., None]
) -> None:
    total, seconds = (float((chosen.parent / name).read_text()) for name in ("operations", "seconds"))
    moments = random.Random(SEED)
    breaks = [{"at": at, "action": "SIGKILL"} for at in spread(int(total), 7)]
    breaks += [
        {"after": moments.uniform(0.1, seconds), "action": action} for action in ("SIGKILL", "SIGTERM", "SIGINT")
    ]
    for number, broken in enumerate(breaks):
        folder = tmp_path / str(number)
        folder.mkdir()
        outcome = server([*CHOSEN, "output_dir=run"], folder, watch=str(folder / "run"), **broken)
        begun = (folder / "run" / "config.yaml").is_file()
        again = server(["train", "resume=run"] if begun else [*CHOSEN, "output_dir=run"], folder)
        assert again.status == 0, (broken, outcome.err, again.err)
        assert same_choice(folder, chosen), broken
        counted("stopped or killed in a validation")
        shutil.rmtree(folder)
