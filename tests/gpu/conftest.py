"""`make test-gpu` writes what ran on this GPU as a table to send: `ANOMALY_VLM_GPU_REPORT` names the file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from anomaly_vlm.reporting.record import environment

COLUMNS = ("method", "precision", "outcome", "seconds", "GPU memory, MB", "largest change of an image score")
KEY = pytest.StashKey[list[tuple[str, ...]]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[KEY] = []


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Any:
    """A row of the report for each finished test of this folder."""
    outcome = yield
    report = outcome.get_result()
    measured = dict(item.user_properties)
    if (report.when == "call" or report.skipped) and "method" in item.fixturenames:
        params = item.callspec.params  # type: ignore[attr-defined]
        row = (params["method"], params["precision"], report.outcome, f"{report.duration:.1f}")
        item.config.stash[KEY].append((*row, str(measured.get("memory", "")), str(measured.get("change", ""))))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    place, rows = os.environ.get("ANOMALY_VLM_GPU_REPORT"), config.stash.get(KEY, [])
    if place and rows:
        Path(place).parent.mkdir(parents=True, exist_ok=True)
        Path(place).write_text(report_text(rows), encoding="utf-8")
        terminalreporter.write_line(f"report: {place}")


def report_text(rows: list[tuple[str, ...]]) -> str:
    """The report in Markdown: the machine, and a row a test."""
    here = environment()
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    versions = ", ".join(f"{package} {version}" for package, version in here["versions"].items())
    lines = [f"# Methods on {name}", "", f"{versions}; CUDA {torch.version.cuda}; revision {here['git']}", ""]
    lines += [f"| {' | '.join(row)} |" for row in (COLUMNS, ("---",) * len(COLUMNS), *rows)]
    return "\n".join(lines) + "\n"
