"""The processes of a distributed run: where one dies, the others end within seconds, with a line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

GRACE = 10.0  # seconds that a process gets to end by itself before it is ended
PAUSE = 0.5  # seconds between two looks at the others

_parent = os.getppid()
_child = os.environ.get("LOCAL_RANK", "0") != "0" and "ANOMALY_VLM_RUN_FOLDER" in os.environ
_children: list[subprocess.Popen[bytes]] = []


def is_child() -> bool:
    """Whether another process of this run has started this one."""
    return _child


def parent_has_ended(seconds: float = 0.0) -> bool:
    """Whether the process that started this one is gone, or ends within so many seconds."""
    until = time.monotonic() + seconds
    while os.getppid() == _parent and time.monotonic() < until:
        time.sleep(0.1)
    return os.getppid() != _parent


def lost(seconds: float = 0.0) -> tuple[int, str] | None:
    """What became of the other processes of this run.

    Args:
        seconds: How long to wait for one of them to end, where there are any: a broken connection is met before its cause
            is seen.

    Returns:
        Exit status and line, where one has died; the line is empty where that one has said why.
    """
    until = time.monotonic() + seconds
    while True:
        for rank, child in enumerate(_children, 1):
            if child.poll():
                return _fate(rank, child.returncode)
        if not any(child.returncode is None for child in _children) or time.monotonic() > until:
            return None
        time.sleep(0.1)


def _fate(rank: int, code: int) -> tuple[int, str]:
    if code > 0:
        return code, ""
    name = signal.Signals(-code).name
    return 1, f"process {rank + 1} of this run was ended by {name}: all others end too, and the last state is kept"


def end_children() -> None:
    """Ends the other processes of this run; those that do not listen, after some seconds."""
    alive = [child for child in _children if child.poll() is None]
    for child in alive:
        child.terminate()
    until = time.monotonic() + GRACE / 2
    while any(child.poll() is None for child in alive) and time.monotonic() < until:
        time.sleep(0.1)
    for child in alive:
        if child.poll() is None:
            child.kill()
    _children.clear()


def watch() -> None:
    """Lets every process of a distributed run watch the others, in place of Lightning's observer.

    Lightning's ends the first process by a signal that cannot be handled, without a word on standard error, and none of the
    others sees when the first one dies.
    """
    if is_child():
        threading.Thread(target=_watch_parent, name="parent-watch", daemon=True).start()
        return
    from lightning.pytorch.strategies.launchers import subprocess_script

    subprocess_script._launch_process_observer = _watch_children  # type: ignore[attr-defined,assignment]


def _watch_parent() -> None:
    """Ends this process where the main thread waits for one that is gone."""
    while os.getppid() == _parent:
        time.sleep(PAUSE)
    time.sleep(GRACE)  # the main thread meets a broken connection, most of the time
    os._exit(1)


def _watch_children(children: Sequence[subprocess.Popen[bytes]]) -> None:
    _children[:] = children
    threading.Thread(target=_wait_for, args=(list(children),), name="children-watch", daemon=True).start()


def _wait_for(children: list[subprocess.Popen[bytes]]) -> None:
    """Looks until all children have ended; where one has died, it ends all, this process as the last."""
    while any(child.poll() is None for child in children) and not any(child.returncode for child in children):
        time.sleep(PAUSE)
    dead = next((i for i, child in enumerate(children) if child.returncode), None)
    if dead is None:
        return
    time.sleep(GRACE)  # the main thread meets a broken connection, most of the time, and ends with a line
    status, line = _fate(dead + 1, children[dead].returncode)
    end_children()
    if line:
        sys.stderr.write(f"anomaly-vlm: {line}\n")
        sys.stderr.flush()
    os._exit(status)
