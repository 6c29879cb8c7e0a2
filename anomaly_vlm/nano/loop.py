"""What trainings share: a text tower's gate, and the loop of an image tower with its average, curve and saved state."""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from anomaly_vlm.errors import UserError


class Stage(Protocol):
    """What is trained: its parameters, the losses of a batch, a running average of the weights."""

    @property
    def parameters(self) -> list[nn.Parameter] | list[dict[str, Any]]:
        """For the optimiser; groups may have a `share` of the learning rate (1 where none is given)."""
        ...

    def losses(self, views: Any, generator: torch.Generator) -> dict[str, Tensor]:
        """Unweighted terms of a batch."""
        ...

    def total(self, values: dict[str, Tensor]) -> Tensor:
        """The weighted sum of the terms."""
        ...

    def follow(self, decay: float) -> None:
        """Moves the running average of the weights."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What an interrupted run resumes from."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes what `state_dict` gave."""
        ...


@dataclass(frozen=True)
class Plan:
    """One learning-rate cycle.

    Attributes:
        title: of the progress line. number: of the stage. steps, lr: of the cycle. images: of a step.
        every: steps between two lines and two states. validate_every: steps between two validations.
        kept: file of the state. curve: CSV file of losses and validation. columns: of it.
    """

    title: str
    number: int
    steps: int
    lr: float
    images: int
    every: int
    validate_every: int
    kept: Path
    curve: Path
    columns: Sequence[str]


def train_stage(
    stage: Stage,
    plan: Plan,
    draw: Callable[[int], Any],
    validate: Callable[[], dict[str, float]],
    tell: Callable[[str], None],
) -> None:
    """Trains in place, from the state that an interrupted run left.

    Args:
        stage: What is trained.
        plan: Steps, learning rate and files.
        draw: Gives the views of a batch as a function of its number alone.
        validate: Gives values in percent by name.
        tell: Takes a line of progress.
    """
    optimizer = _optimizer(stage, plan.lr)
    warm = min(40, plan.steps // 10 + 1)
    done = 0
    if plan.kept.is_file():
        state = torch.load(plan.kept, weights_only=True)
        stage.load_state_dict(state["stage"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["done"]
    started, first = time.monotonic(), done
    sums: dict[str, list[float]] = {}
    for step in range(done, plan.steps):
        lr = plan.lr * min(1.0, (step + 1) / warm) * _fallen(step / plan.steps)
        values = _take_step(stage, optimizer, draw, step, lr=lr, first=10_000_000 * (plan.number + 1))
        for name, value in values.items():
            sums.setdefault(name, []).append(value.item())
        last = step + 1 == plan.steps
        if (step + 1) % plan.every == 0 or last:
            speed = (step + 1 - first) * plan.images / (time.monotonic() - started)
            left = (plan.steps - step - 1) * plan.images / speed / 60
            means = {name: sum(each) / len(each) for name, each in sorted(sums.items())}
            tell(
                f"{plan.title}, step {step + 1}/{plan.steps}: "
                + ", ".join(f"{name} {value:.3f}" for name, value in means.items())
                + f"; {speed:.0f} images/s, {left:.0f} min left"
            )
            row = {"stage": plan.number, "step": step + 1, **{name: round(value, 4) for name, value in means.items()}}
            if (step + 1) % plan.validate_every == 0 or last:
                row |= {f"val_{name}": round(value, 2) for name, value in validate().items()}
                tell("validation: " + ", ".join(f"{k[4:]} {v}" for k, v in row.items() if k.startswith("val_")))
            append(plan.curve, row, plan.columns)
            sums = {}
            keep({"stage": stage.state_dict(), "optimizer": optimizer.state_dict(), "done": step + 1}, plan.kept)


class Budgeted:
    """A training that spends CPU seconds of the process, in as many turns as one likes.

    The learning rate rises over the first twentieth of the budget and falls as a cosine, as over the steps of a `Plan`.

    Args:
        stage: What is trained, in place.
        draw: Gives the views of a batch as a function of its number alone.
        lr: The highest learning rate.
        seconds: The budget.
    """

    def __init__(self, stage: Stage, draw: Callable[[int], Any], *, lr: float, seconds: float) -> None:
        self.stage, self.draw, self.lr, self.seconds = stage, draw, lr, seconds
        self.optimizer = _optimizer(stage, lr)
        self.steps, self.spent = 0, 0.0

    def spend(self, seconds: float) -> None:
        """Continues until `seconds` of the budget are spent in all."""
        while self.spent < seconds:
            started, progress = time.process_time(), min(1.0, self.spent / self.seconds)
            now = self.lr * min(1.0, 20 * progress + 0.05) * _fallen(progress)
            _take_step(self.stage, self.optimizer, self.draw, self.steps, lr=now, first=10_000_000)
            self.steps += 1
            self.spent += time.process_time() - started


def _optimizer(stage: Stage, lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(stage.parameters, lr=lr, betas=(0.9, 0.98), weight_decay=0.05)


def _fallen(progress: float) -> float:
    """Share of the learning rate that a cosine leaves after a share of the way."""
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))


def _take_step(
    stage: Stage, optimizer: torch.optim.Optimizer, draw: Callable[[int], Any], step: int, *, lr: float, first: int
) -> dict[str, Tensor]:
    """One step, on the batch of number `first + step`; returns its terms."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("share", 1.0)
    values = stage.losses(draw(first + step), torch.Generator().manual_seed(first + step))
    optimizer.zero_grad()
    stage.total(values).backward()
    torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    optimizer.step()
    stage.follow(min(0.999, (step + 1) / (step + 10)))
    return values


def pass_gate(facts: dict[str, float], folder: Path, tell: Callable[[str], None], *, accuracy: str) -> None:
    """Records what a text tower's gate found; a `UserError` where it is shut, with the fact `accuracy`."""
    (folder / "text_gate.json").write_text(json.dumps(facts, indent=1) + "\n")
    tell("text gate: " + ", ".join(f"{name} {value:.3f}" for name, value in facts.items()))
    if not facts["passed"]:
        shown = f"{accuracy.replace('_', ' ')} {facts[accuracy]:.2f}"
        raise UserError(f"the text tower did not pass its gate ({shown}): give text.steps more")


def keep(state: Any, path: Path) -> None:
    """Writes beside and renames, so that an interrupted write leaves the last state."""
    fresh = path.with_suffix(".tmp")
    torch.save(state, fresh)
    fresh.replace(path)


def append(path: Path, row: dict[str, Any], columns: Sequence[str]) -> None:
    """Adds a row to a CSV file, with a head where the file is new."""
    new = not path.is_file()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        if new:
            writer.writeheader()
        writer.writerow(row)
