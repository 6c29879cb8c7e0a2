"""Prints compared / total of every golden fixture at the end of the run."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.support.golden import LEDGERS

WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if WORKERS > 1:  # the workers share the cores, also with the processes that their tests start
    threads = max(1, (os.cpu_count() or 1) // WORKERS)
    torch.set_num_threads(threads)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))


def pytest_collection_finish() -> None:
    """Takes what the imports have made out of the garbage collector's sight, which every run in a test calls (`build`)."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hands what a worker of pytest-xdist compared to the process that prints the summary."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["golden"] = {name: list(counts) for name, counts in LEDGERS.items()}


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Takes in what a worker compared."""
    LEDGERS.update(
        {name: tuple(counts) for name, counts in getattr(node, "workeroutput", {}).get("golden", {}).items()}
    )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if LEDGERS:
        terminalreporter.section("golden: compared / total")
        for name, (compared, total) in sorted(LEDGERS.items()):
            terminalreporter.write_line(f"{name}: {compared} / {total}")


@pytest.fixture(autouse=True)
def numbers_below_the_normal_ones() -> Iterator[None]:
    """A run flushes them to 0 for the whole process; other tests compute with them."""
    yield
    torch.set_flush_denormal(False)
