"""`LightningMethod`: a method as the module that a Lightning trainer trains, validates and tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor

from anomaly_vlm.data.types import Batch
from anomaly_vlm.errors import UserError
from anomaly_vlm.methods.base.method import AnomalyMethod


class LightningMethod(L.LightningModule):
    """Hands a trainer's steps to a method: it logs the losses, and collects the evaluation of each pass.

    Its state is that of the method, under the same names.

    Args:
        method: What is trained or evaluated.
    """

    def __init__(self, method: AnomalyMethod) -> None:
        super().__init__()
        self.method = method

    # ---- state -------------------------------------------------------------------------------------------------------

    @property  # type: ignore[misc]  # Lightning's has a setter, which nothing here needs
    def strict_loading(self) -> bool:
        """False: Lightning's check would miss the frozen towers; `check_learned` checks everything else."""
        return False

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """The method's state."""
        return self.method.state_dict(*args, **kwargs)

    def load_state_dict(self, state: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Loads the method's state."""
        return self.method.load_state_dict(state, *args, **kwargs)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.method.on_save_checkpoint(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.method.on_load_checkpoint(checkpoint)

    def setup(self, stage: str) -> None:
        self.method.check_processes(self.trainer.world_size)

    # ---- learning ----------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        """The method's optimiser and schedule."""
        return self.method.configure_optimizers(self.trainer)

    def on_train_epoch_start(self) -> None:
        self.method.invalidate_caches()

    def on_train_epoch_end(self) -> None:
        if self.method.has_learned_all():
            self.trainer.should_stop = True

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Computes the weighted sum of the losses of a batch, and logs every term."""
        self.method.current_epoch = self.current_epoch  # here, as an epoch that is resumed in its middle has no start
        values = self.method.losses(batch)
        total = self.method.total_loss(values)
        for name, value in {**values, "loss": total}.items():
            self.log(f"train/{name}", value.detach(), on_step=True, on_epoch=True, prog_bar=True, batch_size=len(batch))
        if not torch.isfinite(total):
            terms = ", ".join(f"{name} {value.item():g}" for name, value in values.items())
            raise UserError(
                f"the loss is not finite at epoch {self.current_epoch}, step {self.global_step} ({terms}, image"
                f" '{batch.path[0]}'): lower the learning rate or use trainer.precision=32-true; the last checkpoint is kept"
            )
        return total

    # ---- evaluation --------------------------------------------------------------------------------------------------

    def on_test_epoch_start(self) -> None:
        self._start()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds a batch to the evaluation."""
        self.method.evaluation.update(self.method, batch)

    def on_test_epoch_end(self) -> None:
        self._finish("test")

    def on_validation_epoch_start(self) -> None:
        self._start()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds a batch to the evaluation."""
        self.method.evaluation.update(self.method, batch)

    def on_validation_epoch_end(self) -> None:
        self._finish("val")

    def _start(self) -> None:
        self.method.invalidate_caches()
        self.method.evaluation.start(self.method)

    def _finish(self, stage: str) -> None:
        """Ends the pass, and logs the means that are numbers."""
        for key, value in self.method.evaluation.finish(self.method, testing=stage == "test").values.items():
            row, _, name = key.rpartition("/")
            if row in ("mean", "") and value == value:
                self.log(f"{stage}/{name}", value, rank_zero_only=False, sync_dist=False)
