"""`TrainLoader`: the loader of a training, whose order a checkpoint can resume."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader

from anomaly_vlm.data.dataset import Item
from anomaly_vlm.errors import UserError


class TrainLoader(DataLoader[Item]):
    """A loader that a checkpoint can resume: its order is a function of (seed, epoch), and its state says which order."""

    def __init__(self, *args: Any, order: dict[str, int], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.order = order

    def state_dict(self) -> dict[str, int]:
        """The order of this loader, for the checkpoint."""
        return dict(self.order)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Raises a `UserError` where the checkpoint's run drew its batches in another order."""
        for key, value in self.order.items():
            if state.get(key) != value:
                raise UserError(
                    f"the checkpoint was made with {key}={state.get(key)}, this run has {key}={value}: resume with the same"
                    " data and options"
                )
