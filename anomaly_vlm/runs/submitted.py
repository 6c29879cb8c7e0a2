"""What a submitit job runs. Imports nothing heavy: every job on a cluster reads this module first."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from typing import Any

GRACE = 60.0  # seconds that a stopped job gets to save its state


class SubmittedJob:
    """Runs the command of a job; one that is preempted or out of time resumes, in another job, from its last state."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None

    def __call__(self, words: Sequence[str]) -> int:
        """Runs a command; returns its exit status."""
        self.process = subprocess.Popen(words)
        return self.process.wait()

    def checkpoint(self, words: Sequence[str]) -> Any:
        """Lets the job save its state, and asks submitit for another job that resumes it."""
        from submitit.helpers import DelayedSubmission

        if self.process is not None:
            end_processes([self.process])
        return DelayedSubmission(SubmittedJob(), words)


def end_processes(running: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ends processes that still run, as a signal does: they save their states first."""
    for process in running:
        if process.poll() is None:
            process.terminate()
    until = time.monotonic() + GRACE
    for process in running:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
