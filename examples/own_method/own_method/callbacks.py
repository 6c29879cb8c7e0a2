"""A callback of one's own: any of Lightning's hooks."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback


class GradientLog(Callback):
    """Logs the norm of each parameter's gradient as `gradients/NAME`.

    Args:
        every: Steps between two values.
    """

    def __init__(self, every: int = 10) -> None:
        self.every = every

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Logs what the optimiser is about to see."""
        if trainer.global_step % self.every == 0:
            for name, parameter in pl_module.named_parameters():
                if parameter.grad is not None:
                    pl_module.log(f"gradients/{name}", parameter.grad.norm())
