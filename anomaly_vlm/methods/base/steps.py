"""`TrainerSteps`: what a Lightning trainer asks of a method in training, validation and tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from anomaly_vlm.data.types import Batch
from anomaly_vlm.errors import UserError
from anomaly_vlm.methods.base.module import Module
from anomaly_vlm.methods.base.prediction import Prediction
from anomaly_vlm.methods.base.step_losses import StepLosses
from anomaly_vlm.names import category_and_metric

if TYPE_CHECKING:
    from anomaly_vlm.methods.base.evaluation import Evaluation


class TrainerSteps(Module):
    """Logs the losses of every step, and collects the evaluation of each pass.

    Attributes:
        evaluation: Collects metrics and image rows of a pass; its `result` is that of the last one.
    """

    evaluation: Evaluation

    def predict(self, batch: Batch) -> Prediction:
        """Computes scores and maps of a batch, without gradient."""
        raise NotImplementedError(f"{type(self).__name__} defines no predict")

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Computes the terms of the loss as unweighted scalars."""
        raise NotImplementedError(f"{type(self).__name__} defines no losses")

    def total_loss(self, values: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of unweighted terms."""
        raise NotImplementedError(f"{type(self).__name__} weighs no losses")

    def invalidate_caches(self) -> None:
        """Drops what was computed from learned values; it is called whenever these may have changed."""

    def on_train_start(self) -> None:
        self._step_losses = StepLosses()

    def on_train_epoch_start(self) -> None:
        self.invalidate_caches()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Computes the weighted sum of the losses of a batch; its terms are logged."""
        values = self.losses(batch)
        total = self.total_loss(values)
        self._log_losses({**values, "loss": total.detach()}, len(batch), batch_idx)
        if not torch.isfinite(total):
            terms = ", ".join(f"{name} {value.item():g}" for name, value in values.items())
            raise UserError(
                f"the loss is not finite at epoch {self.current_epoch}, step {self.global_step} ({terms}, image"
                f" '{batch.path[0]}'): lower the learning rate or use trainer.precision=32-true; the last checkpoint is kept"
            )
        return total

    def _log_losses(self, values: Mapping[str, Tensor], images: int, batch_idx: int) -> None:
        """Logs the losses of the first and the last step of an epoch and of every `log_every_n_steps`-th one."""
        self._step_losses.add(values, images)
        trainer: Any = self.trainer  # which sets `log_every_n_steps` without declaring it
        every = trainer.log_every_n_steps
        chosen = batch_idx == 0 or batch_idx + 1 == trainer.num_training_batches
        if chosen or (every and (self.global_step + 1) % every == 0):
            for name, value in values.items():
                self.log(f"train/{name}_step", value.detach(), on_step=True, on_epoch=False, prog_bar=True)

    def on_train_epoch_end(self) -> None:
        """Logs the mean of each loss over the images of the epoch."""
        for name, mean in self._step_losses.means().items():
            self.log(f"train/{name}_epoch", mean)
            self.log(f"train/{name}", mean, logger=False)  # for callbacks that watch it

    def on_test_epoch_start(self) -> None:
        self._start()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds a batch to the evaluation."""
        self.evaluation.update(self, batch)

    def on_test_epoch_end(self) -> None:
        self._finish("test")

    def on_validation_epoch_start(self) -> None:
        self._start()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds a batch to the evaluation."""
        self.evaluation.update(self, batch)

    def on_validation_epoch_end(self) -> None:
        self._finish("val")

    def predict_step(self, batch: Batch, batch_idx: int) -> Prediction:
        """The checked prediction of a batch."""
        return self.predict(batch).checked(batch)

    def on_predict_epoch_start(self) -> None:
        self.invalidate_caches()

    def _start(self) -> None:
        self.invalidate_caches()
        self.evaluation.start(self)

    def _finish(self, stage: str) -> None:
        """Ends the pass, and logs the means that are numbers."""
        for key, value in self.evaluation.finish(self, testing=stage == "test").values.items():
            row, name = category_and_metric(key)
            if row in ("mean", "") and value == value:
                self.log(f"{stage}/{name}", value, rank_zero_only=False, sync_dist=False)
