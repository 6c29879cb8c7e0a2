"""The places in Lightning's loops where a run that is asked to stop does so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from anomaly_vlm.runs import stopping


class StopPoint(Callback):
    """Ends a training after the step that a signal fell into, with its state saved; other loops end at once.

    With several processes all of them end after the same step, whichever was sent the signal.

    Args:
        last: The state to go on from; None where nothing is trained.
    """

    def __init__(self, last: Path | None = None) -> None:
        self.last = last

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """From now on a signal waits for the end of a step."""
        stopping.install()
        stopping.wait_for_safe_place(True)

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        """Stops here where a signal has arrived, with the state saved."""
        wanted = stopping.requested()
        if trainer.world_size > 1:
            wanted = trainer.strategy.reduce_boolean_decision(wanted, all=False)
        if wanted:
            if self.last is not None:
                trainer.save_checkpoint(self.last, weights_only=False)
            raise stopping.stop()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A validation learns nothing: a signal ends it at once."""
        stopping.install()
        stopping.wait_for_safe_place(False)
        stopping.check()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The training goes on."""
        stopping.check()
        stopping.wait_for_safe_place(trainer.state.fn == "fit")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The last step is over."""
        stopping.wait_for_safe_place(False)
        stopping.check()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Whatever ended the loop, nothing waits any more."""
        stopping.wait_for_safe_place(False)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lightning has just put its own handlers in place."""
        stopping.install()
        stopping.check()

    def on_test_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        """Stops where a signal was swallowed on its way."""
        stopping.check()

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """See `on_test_start`."""
        stopping.install()
        stopping.check()

    def on_predict_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        """See `on_test_batch_end`."""
        stopping.check()
