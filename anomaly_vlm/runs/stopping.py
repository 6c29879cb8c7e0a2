"""Being stopped: Ctrl-C and SIGTERM end a run at a place that it can resume from, with a line that says how.

A signal raises `Stopped` where it arrives, but in a training, where a step is finished and its state saved first. The
command line shows one line and ends with 128 + the signal's number, as a shell expects: 130 after Ctrl-C, 143 after SIGTERM.
"""

from __future__ import annotations

import os
import shlex
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
PATIENCE = 3.0  # seconds after which a second signal is not left waiting for the end of a step


class Stopped(BaseException):
    """The run was asked to stop.

    Attributes:
        signum: The signal.
        command: What resumes from what is saved, once it is known.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum, self.command = signum, ""

    @property
    def status(self) -> int:
        """Exit status, as of a program that the signal ended."""
        return 128 + self.signum

    @property
    def line(self) -> str:
        """What to say."""
        name = "Ctrl-C" if self.signum == signal.SIGINT else signal.Signals(self.signum).name
        return f"stopped by {name}" + (f"; resume with: {self.command}" if self.command else "")


class _Signals:
    """What has arrived, and whether it may interrupt at once."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self.since = 0.0
        self.waiting = False
        self.process = 0

    def handle(self, signum: int, _: FrameType | None) -> None:
        if os.getpid() != self.process:  # a process that loads images: the one that started it is told, too
            if signum != signal.SIGINT:
                signal.signal(signum, signal.SIG_DFL)
                os.kill(os.getpid(), signum)
            return
        again = self.signum is not None and time.monotonic() - self.since > PATIENCE
        if self.signum is None:
            self.signum, self.since = signum, time.monotonic()
        if again or not self.waiting:
            raise Stopped(self.signum)


_signals = _Signals()


@contextmanager
def stoppable() -> Iterator[None]:
    """Ctrl-C and SIGTERM raise `Stopped` inside, see the module."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    _signals.__init__()  # type: ignore[misc]
    _signals.process = os.getpid()
    install()
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
        _signals.process = 0


def install() -> None:
    """Puts the handlers (back) in place: Lightning sets its own when it starts a loop."""
    if _signals.process == os.getpid() and threading.current_thread() is threading.main_thread():
        for signum in SIGNALS:
            signal.signal(signum, _signals.handle)


def wait_for_safe_place(waiting: bool) -> None:
    """Whether a signal waits until `check` is called, in place of interrupting at once."""
    _signals.waiting = waiting


def requested() -> bool:
    """Whether a signal has arrived."""
    return _signals.signum is not None


def check() -> None:
    """Raises `Stopped` where a signal has arrived."""
    if _signals.signum is not None:
        raise Stopped(_signals.signum)


def stop() -> Stopped:
    """`Stopped` by the signal that has arrived here, or by that which another process of the run was sent."""
    return Stopped(_signals.signum or signal.SIGTERM)


@contextmanager
def resume_command(*words: str, folder: Path | None = None, whole: bool = False) -> Iterator[None]:
    """Names the command that resumes what is stopped in this block; of nested blocks the innermost counts.

    Args:
        words: The command and its arguments.
        folder: Of a run: without a configuration in it there is nothing to resume yet, and the outer block's command
            counts.
        whole: The blocks inside are parts of this one, which resumes all of them: its command counts.
    """
    try:
        yield
    except Stopped as error:
        if (whole or not error.command) and (folder is None or (folder / "config.yaml").is_file()):
            error.command = shlex.join(["anomaly-vlm", *words])
        raise


def same_command(command: str, arguments: Any, **keys: object) -> list[str]:
    """The words of a command again, with `key=value` put in or exchanged."""
    kept = [word for word in arguments if not any(word.startswith(f"{key}=") for key in keys)]
    return [command, *kept, *(f"{key}={value}" for key, value in keys.items())]
