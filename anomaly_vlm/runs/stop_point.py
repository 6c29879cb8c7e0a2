"""The places in Lightning's loops where a run that is asked to stop does so, and where its state is saved for that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from anomaly_vlm.runs import stopping


class StopPoint(Callback):
    """Stops training after the current step when a signal arrives, and saves the state; other loops stop at once.

    The state is also saved before every validation and at the end of training, so that a run stopped or killed there loses
    no step. If a validation is due after the saved step, resuming starts with that validation.

    With several processes all stop after the same step, whichever received the signal. The callback must be last, so that
    the saved state includes the other callbacks' work.

    Args:
        last: The state to resume from; None where nothing is trained.
    """

    def __init__(self, last: Path | None = None) -> None:
        self.last = last
        self._saved: tuple[int, int] | None = None  # the step of the newest state, see `_step`
        self._validation_begins = False

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
            self._save(trainer)
            raise stopping.stop()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A validation learns nothing: a signal ends it at once, and the steps before it are saved here."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._validation_begins = True
            self._save(trainer)
            self._validation_begins = False
        stopping.install()
        stopping.wait_for_safe_place(False)
        stopping.check()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The training continues."""
        stopping.check()
        stopping.wait_for_safe_place(trainer.state.fn == "fit")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The last step is over; what follows, such as a calibration, may be long."""
        self._save(trainer)
        stopping.wait_for_safe_place(False)
        stopping.check()

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Notes that there is a state of this step, and whether resuming starts with a validation."""
        if trainer.state.fn != "fit":
            return
        self._saved = _step(trainer)
        if self._validation_begins or _validation_follows(trainer):
            _begin_with_validation(checkpoint["loops"]["fit_loop"])

    def _save(self, trainer: L.Trainer) -> None:
        if self.last is not None and self._saved != _step(trainer):
            trainer.save_checkpoint(self.last, weights_only=False)

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


def _step(trainer: L.Trainer) -> tuple[int, int]:
    """Steps of the optimiser, and batches, which several may make one step."""
    return trainer.global_step, trainer.fit_loop.epoch_loop.batch_progress.total.ready


def _validation_follows(trainer: L.Trainer) -> bool:
    """Whether a batch of the training is about to end, and a validation comes after it.

    Lightning has no public question for it, and takes the validation as done where a state was saved at this place.
    """
    loop, fetcher = trainer.fit_loop.epoch_loop, trainer.fit_loop._data_fetcher
    batches: Any = loop.batch_progress.current
    ends = trainer.training and batches.completed < batches.processed
    return ends and trainer.enable_validation and fetcher is not None and loop._should_check_val_fx(fetcher)


def _begin_with_validation(loops: dict[str, Any]) -> None:
    """Turns the progress of a training's loops into that of one whose validation has begun and has no batch behind it.

    This is how Lightning knows a state that was saved in the middle of a validation: it goes back there.
    """
    batch = loops["epoch_loop.batch_progress"]
    for count in (batch["total"], batch["current"]):
        count["completed"] = count["processed"]
    validation = loops["epoch_loop.val_loop.batch_progress"]
    validation["is_last_batch"] = False
    for count, before in ((validation["total"], validation["total"]["completed"]), (validation["current"], 0)):
        count.update(ready=before + 1, started=before + 1, processed=before, completed=before)
