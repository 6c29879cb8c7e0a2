"""Bayes-PFL's two stages of training, and their rates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import nn

from anomaly_vlm.errors import UserError
from anomaly_vlm.methods.shared.stages import first_stage_epochs
from anomaly_vlm.options import AtLeast, Fraction, PositiveFloat, PositiveInt


@dataclass(frozen=True)
class StageOptions:
    """What is trained when, and how fast.

    The published program ends both stages by a validation on labelled test categories. Here they have fixed lengths.

    Args:
        epochs: Epochs of the run; None where it is not known. A run shorter than both stages keeps their proportion.
        first: Epochs of stage 1, which trains all but the image head of stage 2.
        second: Epochs of stage 2, which trains that head alone, at a constant rate.
        planned: Epochs over which the rates of stage 1 fall as a cosine.
        warmup: Share of the planned steps over which they rise first.
        lr_prompts: Learning rate of the prompts.
        lr_temperatures: Learning rate of both temperatures.
        lr_flows: Learning rate of the flows' parameters and of the states.
        lr_rest: Learning rate of everything else.

    Raises:
        UserError: Both stages have no epoch.
    """

    epochs: PositiveInt | None = None
    first: Annotated[int, AtLeast(0)] = 20
    second: Annotated[int, AtLeast(0)] = 5
    planned: PositiveInt = 30
    warmup: Fraction = 0.1
    lr_prompts: PositiveFloat = 1e-3
    lr_temperatures: PositiveFloat = 1e-2
    lr_flows: PositiveFloat = 1e-3
    lr_rest: PositiveFloat = 1e-4

    def __post_init__(self) -> None:
        if self.first + self.second == 0:
            raise UserError("method.stages.first and method.stages.second are both 0: give epochs to one of them")

    @property
    def first_in_run(self) -> int:
        """Epochs of stage 1 in this run, see `first_stage_epochs`."""
        return first_stage_epochs(self.first, self.second, self.epochs)

    def rate(self, name: str) -> float:
        """Learning rate of a parameter by its name."""
        if name.startswith("prompt_"):
            return self.lr_prompts
        if name.startswith("temperature_"):
            return self.lr_temperatures
        return self.lr_flows if name.startswith("flow_") else self.lr_rest

    def groups(self, learnable: Mapping[str, nn.Parameter]) -> list[dict[str, Any]]:
        """Parameters by their rates, as an optimiser takes them."""
        found: dict[float, list[nn.Parameter]] = {}
        for name, parameter in learnable.items():
            found.setdefault(self.rate(name), []).append(parameter)
        return [{"params": members, "lr": rate} for rate, members in found.items()]


def schedule_of(optimizer: torch.optim.Optimizer, stages: StageOptions, trainer: Any) -> Any:
    """Factors of all rates by step: warm-up and cosine in stage 1, 1 in stage 2."""
    per_epoch = max(1, int(trainer.estimated_stepping_batches) // max(1, trainer.max_epochs))
    last, planned = stages.first_in_run * per_epoch, stages.planned * per_epoch
    warm = round(stages.warmup * planned)

    def factor(step: int) -> float:
        if step >= last:
            return 1.0
        if step < warm:
            return float(step / warm)
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, planned - warm)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
