"""FiLo's two stages of training: heads and prompts first, then the adapter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from anomaly_vlm.errors import UserError
from anomaly_vlm.methods.shared.stages import first_stage_epochs
from anomaly_vlm.options import AtLeast, PositiveInt


@dataclass(frozen=True)
class StageOptions:
    """What is trained when, and how fast.

    Args:
        schedule: `published`: stage 1 trains heads and prompts, stage 2 the adapter. `paper`: one loss trains all in every
            epoch.
        epochs: Epochs of the run; None where it is not known. A run shorter than both stages keeps their proportion.
        first: Epochs of stage 1.
        second: Epochs of stage 2.
        lr_heads: Learning rate of the heads.
        lr_prompts: Learning rate of the contexts and their meta nets.
        lr_adapter: Learning rate of the adapter.

    Raises:
        UserError: Both stages have no epoch.
    """

    schedule: Literal["published", "paper"] = "published"
    epochs: PositiveInt | None = None
    first: Annotated[int, AtLeast(0)] = 15
    second: Annotated[int, AtLeast(0)] = 5
    lr_heads: Annotated[float, AtLeast(0)] = 1e-4
    lr_prompts: Annotated[float, AtLeast(0)] = 1e-3
    lr_adapter: Annotated[float, AtLeast(0)] = 1e-5

    def __post_init__(self) -> None:
        if self.first + self.second == 0:
            raise UserError("method.stages.first and method.stages.second are both 0: give epochs to one of them")

    @property
    def first_in_run(self) -> int:
        """Epochs of stage 1 in this run, see `first_stage_epochs`."""
        return first_stage_epochs(self.first, self.second, self.epochs)

    @property
    def rates(self) -> dict[str, float]:
        """Learning rates by what they train."""
        return {"heads": self.lr_heads, "prompts": self.lr_prompts, "adapter": self.lr_adapter}
