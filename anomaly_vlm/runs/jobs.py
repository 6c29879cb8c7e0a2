"""Running one job of a sweep. Whatever goes wrong leaves `failed.txt` in its folder and costs that job alone."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from anomaly_vlm.errors import UserError
from anomaly_vlm.runs import processes
from anomaly_vlm.runs.configs import resumed
from anomaly_vlm.runs.stopping import Stopped
from anomaly_vlm.runs.sweeps import note_failure

PAUSE = 0.5  # seconds between two looks at the process that started this one


def command(folder: Path, trusted: Sequence[str]) -> list[str]:
    """The words that run a prepared job in a process of its own."""
    trust = [f"trust=[{','.join(trusted)}]"] if trusted else []
    return [sys.executable, "-m", "anomaly_vlm.cli", "sweep", f"job={folder}", *trust]


def run_prepared(folder: Path, overrides: Sequence[str]) -> int:
    """Runs the job whose configuration lies in a folder, in this process, which ends with the sweep's.

    Args:
        folder: As `sweeps.prepare` leaves it.
        overrides: Of the command line: the packages that are trusted.

    Returns:
        The exit status; the reason of a failure is in the folder.
    """
    if not processes.is_child():
        _end_with_parent()
    try:
        return run_job(resumed(folder, overrides), folder)
    except UserError as error:
        note_failure(folder, str(error))
        return 2
    except Stopped as stopped:  # the sweep says so
        return stopped.status


def run_job(cfg: DictConfig, folder: Path) -> int:
    """Runs one job in this process.

    Args:
        cfg: Its configuration, whose state in `folder` is resumed.
        folder: Of the job.

    Returns:
        0, 2 after wrong input, 1 after anything else.

    Raises:
        Stopped: By a signal.
        KeyboardInterrupt: The same, outside the command line.
    """
    from anomaly_vlm.runs.seeds import fit_all

    try:
        fit_all(cfg, folder)
    except (Stopped, KeyboardInterrupt):
        raise
    except BaseException as error:
        if processes.is_child():  # of a distributed run: the first process says it
            raise
        note_failure(folder, _reason(error), traceback.format_exc())
        status = 2 if isinstance(error, UserError) else 1
    else:
        return 0
    _free_memory()
    return status


def _reason(error: BaseException) -> str:
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, MemoryError):
        return f"out of memory: lower batch_size, eval_batch_size or image_size ({error})"
    return f"{type(error).__name__}: {error}"


def _free_memory() -> None:
    """Hands back what a failed job held, for the next one in this process."""
    gc.collect()
    if "torch" in sys.modules:
        import torch

        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _end_with_parent() -> None:
    """Stops this process, as SIGTERM does, when the one that started it is gone: two may not write into one folder."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PAUSE)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
