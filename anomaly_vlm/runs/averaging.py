"""An average of the learned weights over the steps, in place of the last ones."""

from __future__ import annotations

from typing import Annotated, Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from anomaly_vlm.methods.base.method import AnomalyMethod
from anomaly_vlm.options import Range, check_arguments

AHEAD = "weights_ahead_of_average"  # in a checkpoint: what the next step starts from


class WeightAverage(Callback):
    """Exponential moving average of what a method learns; the frozen towers are not touched.

    Validation, test and checkpoints use the average. A resumed training continues from the raw weights.

    Args:
        decay: Weight of the previous average at each optimiser step, in (0, 1).
    """

    def __init__(self, decay: Annotated[float, Range(low=0, high=1, open_low=True, open_high=True)] = 0.999) -> None:
        check_arguments(type(self).__init__, {"decay": decay}, owner="callbacks.ema")
        self.decay = decay
        self.average: dict[str, Tensor] = {}
        self.raw: dict[str, Tensor] = {}  # the last weights, while the method has the average
        self._step = 0  # of the optimiser, that the average holds

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the average from the current weights, unless training is resumed."""
        if not self.average:
            self.average = _copy(pl_module)
        self._step = trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any) -> None:
        """Takes the weights in, once a step of the optimiser."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        for name, weight in _method(pl_module).learnable().items():
            self.average[name].lerp_(weight.detach(), 1 - self.decay)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Gives the method the average."""
        if self.average and not self.raw:
            self.raw = _copy(pl_module)
            _put(pl_module, self.average)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The training continues with the raw weights."""
        if self.raw and trainer.state.fn == "fit":
            _put(pl_module, self.raw)
            self.raw = {}

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leaves the average in the method."""
        self.on_validation_start(trainer, pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leaves the average in the method where a resumed training had no step left, so that no `on_train_end` came."""
        self.on_validation_start(trainer, pl_module)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Puts the average where a checkpoint's weights are, and the last weights beside it."""
        if self.average:
            checkpoint[AHEAD] = dict(self.raw or _copy(pl_module))
            checkpoint["state_dict"] = {**checkpoint["state_dict"], **self.average}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Takes both from the checkpoint of a resumed training; one without an average starts it."""
        if AHEAD in checkpoint:
            own = _method(pl_module).learnable()
            self.average = {name: checkpoint["state_dict"][name].to(own[name], copy=True) for name in own}
            _put(pl_module, checkpoint[AHEAD])


def _method(module: L.LightningModule) -> AnomalyMethod:
    assert isinstance(module, AnomalyMethod)
    return module


def _copy(module: L.LightningModule) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in _method(module).learnable().items()}


@torch.no_grad()
def _put(module: L.LightningModule, weights: dict[str, Tensor]) -> None:
    for name, weight in _method(module).learnable().items():
        weight.copy_(weights[name])
    _method(module).invalidate_caches()
