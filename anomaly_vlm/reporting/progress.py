"""Progress of a Lightning trainer: a rich bar on a terminal, a line every few percent elsewhere (a piped bar is silent)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar

from anomaly_vlm.reporting.console import console, say


def progress_bar(kind: str) -> ProgressBar | None:
    """The callback for `callbacks.progress`: `auto` is `rich` on a terminal and `log` elsewhere; `none` gives None."""
    if kind == "auto":
        kind = "rich" if console.is_terminal else "log"
    if kind == "none":
        return None
    return RichProgressBar() if kind == "rich" else LogProgress()


class LogProgress(ProgressBar):
    """One line every `percent` of an epoch or an evaluation, at most one every `seconds`, with loss terms and time left."""

    def __init__(self, percent: int = 10, seconds: float = 2.0) -> None:
        super().__init__()
        self.percent, self.seconds = percent, seconds
        self._started = self._last = 0.0
        self._first = self._next = 0

    def disable(self) -> None:
        """Lightning silences the bars of all processes but the first; `say` does so already."""

    def enable(self) -> None:
        """See `disable`."""

    def _start(self, done: int = 0) -> None:
        self._started = self._last = time.monotonic()
        self._first = self._next = done

    def _step(self, stage: str, done: int, total: Any, values: Callable[[], dict[str, Any]] = dict) -> None:
        now = time.monotonic()
        whole = isinstance(total, int) and total > 0
        last = whole and done >= total
        if not last and (done < self._next or now - self._last < self.seconds):
            return
        share = max(1, total * self.percent // 100) if whole else 50
        self._next, self._last = done + share, now
        text = f"{stage} {done}/{total}" if whole else f"{stage} {done}"
        for name, value in values().items():
            text += f"  {name} {float(value):.4g}"
        if whole and done > self._first:
            left = (now - self._started) / (done - self._first) * (total - done)
            text += f"  {int(left) // 60}:{int(left) % 60:02d} left"
        say(text)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the line of a training epoch, which a resumed run enters in the middle."""
        # of a resumed epoch, or still of the one before
        done = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        self._start(done if done < self.total_train_batches else 0)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Shows the step and its losses."""

        def losses() -> dict[str, Any]:
            return {
                name.removeprefix("train/").removesuffix("_step"): value
                for name, value in self.get_metrics(trainer, pl_module).items()
                if name.startswith("train/") and not name.endswith("_epoch")
            }

        stage = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        self._step(stage, batch_idx + 1, self.total_train_batches, losses)

    def on_test_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the line of an evaluation."""
        self._start()

    def on_test_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any) -> None:
        """Shows the batch of an evaluation."""
        self._step("evaluating", _index(args, kwargs) + 1, _total(trainer.num_test_batches))

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the line of a validation."""
        self._start()

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Shows the batch of a validation."""
        self._step("validating", _index(args, kwargs) + 1, _total(trainer.num_val_batches))


def _index(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    index: int = kwargs["batch_idx"] if "batch_idx" in kwargs else args[2]  # outputs, batch, batch_idx, dataloader_idx
    return index


def _total(counts: Any) -> Any:
    return sum(counts) if isinstance(counts, list) else counts
