"""AA-CLIP's two stages of training: matrices of the text tower first, then those of the image tower."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch

from anomaly_vlm.errors import UserError
from anomaly_vlm.methods.shared.stages import first_stage_epochs
from anomaly_vlm.options import AtLeast, PositiveFloat, PositiveInt


@dataclass(frozen=True)
class StageOptions:
    """What is trained when, and how fast.

    Args:
        epochs: Epochs of the run; None where it is not known. A run shorter than both stages keeps their proportion.
        text: Epochs of stage 1.
        image: Epochs of stage 2.
        text_lr: Learning rate of the text matrices.
        image_lr: Learning rate of the image matrices.
        milestones: Steps of stage 2 after which the image rate is halved.

    Raises:
        UserError: Both stages have no epoch.
    """

    epochs: PositiveInt | None = None
    text: Annotated[int, AtLeast(0)] = 5
    image: Annotated[int, AtLeast(0)] = 15
    text_lr: PositiveFloat = 1e-5
    image_lr: PositiveFloat = 5e-4
    milestones: Sequence[PositiveInt] = (16000, 32000)

    def __post_init__(self) -> None:
        if self.text + self.image == 0:
            raise UserError("method.stages.text and method.stages.image are both 0: give epochs to one of them")

    @property
    def first_in_run(self) -> int:
        """Epochs of stage 1 in this run, see `first_stage_epochs`."""
        return first_stage_epochs(self.text, self.image, self.epochs)


def halving(
    optimizer: torch.optim.Optimizer, stages: StageOptions, trainer: Any, *, adapt_text: bool
) -> torch.optim.lr_scheduler.LambdaLR:
    """The schedule of the rates, stepped after every step: that of the images, the last group, is halved at the milestones.

    Args:
        optimizer: Its groups: texts, where they are adapted, then images.
        stages: The milestones, and how long stage 1 is.
        trainer: Lightning's, which knows how many steps an epoch has.
        adapt_text: Whether there is a stage 1.
    """
    per_epoch = int(trainer.estimated_stepping_batches) // max(1, trainer.max_epochs)
    start = stages.first_in_run * per_epoch if adapt_text else 0
    factors: list[Any] = [lambda step: 1.0] * (len(optimizer.param_groups) - 1)
    factors.append(lambda step: 0.5 ** bisect_right(sorted(stages.milestones), step - start))
    return torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
