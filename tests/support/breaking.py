"""Callbacks that break a training on purpose, for sweeps whose jobs fail in every way."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from lightning.pytorch.callbacks import Callback


class Break(Callback):
    """Breaks at the first step, unless the file `mended` is there."""

    def __init__(self, how: str, mended: str = "mended") -> None:
        self.how, self.mended = how, Path(mended)

    def on_train_batch_start(self, *args: object) -> None:
        if self.mended.exists():
            return
        if self.how == "crash":
            raise RuntimeError("the callback broke")
        if self.how == "memory":
            raise MemoryError
        if self.how == "exit":
            sys.exit(3)
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
