"""Prints compared / total of every golden fixture at the end of the run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.support.golden import LEDGERS


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
