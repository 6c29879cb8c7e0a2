"""Prints compared / total of every golden fixture at the end of the run."""

from __future__ import annotations

import pytest

from tests.support.golden import LEDGERS


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if LEDGERS:
        terminalreporter.section("golden: compared / total")
        for name, (compared, total) in sorted(LEDGERS.items()):
            terminalreporter.write_line(f"{name}: {compared} / {total}")
