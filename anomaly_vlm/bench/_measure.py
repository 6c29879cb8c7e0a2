"""Measuring a piece of work in a child process of its own: CPU seconds, wall seconds, growth of peak memory.

    python -m anomaly_vlm.bench._measure MODULE:FUNCTION JSON

`FUNCTION(**JSON)` imports and loads what it needs and gives the work as a function without arguments, which returns facts
that JSON can hold. Only the work is measured.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from anomaly_vlm.errors import UserError

FAST = 10.0  # CPU seconds: work below runs three times, and the best counts
TIME_LIMIT = 3600


@dataclass(frozen=True)
class Measured:
    """Result of one piece of work.

    Attributes:
        cpu: CPU seconds of the best run (by CPU time).
        wall: Wall-clock seconds of that run.
        runs: How often it ran.
        memory: Growth of the peak of resident memory over the loaded data, in MB (10^6 B), in the first run.
        facts: What the work returned.
    """

    cpu: float
    wall: float
    runs: int
    memory: float
    facts: dict[str, Any]


def measure(target: str, arguments: Mapping[str, Any], *, threads: int = 1) -> Measured:
    """Runs `target` (`module:function`) in a child process with `threads` threads.

    Raises:
        UserError: the child failed; its last line says why.
    """
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    environment = {**os.environ, **dict.fromkeys(names, str(threads))}
    command = [sys.executable, "-m", "anomaly_vlm.bench._measure", target, json.dumps(dict(arguments))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIME_LIMIT)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"the benchmark of {target.rpartition(':')[2]} failed: {last}")
    return Measured(**json.loads(done.stdout.strip().splitlines()[-1]))


def run_here(work: Callable[[], dict[str, Any]]) -> Measured:
    """Measures `work` in this process."""
    before = resident()
    reset_peak()
    best: tuple[float, float] | None = None
    runs, facts, memory = 0, {}, 0.0
    while runs < 3:
        cpu, wall = time.process_time(), time.perf_counter()
        found = work()
        now = (time.process_time() - cpu, time.perf_counter() - wall)
        if not runs:
            memory = (peak() - before) / 1e6
        if best is None or now < best:
            best, facts = now, found
        runs += 1
        if now[0] > FAST:
            break
    assert best is not None
    return Measured(*best, runs, memory, facts)


def resident() -> float:
    """Resident memory of this process in bytes."""
    found = _status("VmRSS")
    return found if found is not None else peak()


def peak() -> float:
    """Largest resident memory since `reset_peak` (where the system can reset it), in bytes."""
    found = _status("VmHWM")
    if found is not None:
        return found
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def reset_peak() -> None:
    """Linux: starts the peak anew; elsewhere it covers the loading too, so that growth reads too small."""
    path = Path("/proc/self/clear_refs")
    if path.exists():
        path.write_text("5")


def _status(key: str) -> float | None:
    path = Path("/proc/self/status")
    if not path.exists():
        return None
    line = next((line for line in path.read_text().splitlines() if line.startswith(f"{key}:")), None)
    return None if line is None else float(line.split()[1]) * 1024


def main() -> None:
    target, arguments = sys.argv[1:]
    module, _, name = target.partition(":")
    work = getattr(importlib.import_module(module), name)(**json.loads(arguments))
    sys.stdout.write("\n" + json.dumps(asdict(run_here(work))) + "\n")


if __name__ == "__main__":
    main()
