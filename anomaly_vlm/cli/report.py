"""`anomaly-vlm report`: one table of all runs below a folder."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from anomaly_vlm.cli.arguments import pop_key
from anomaly_vlm.errors import UserError
from anomaly_vlm.files import os_error_line

HELP = """usage: anomaly-vlm report [runs=FOLDER]    default: outputs
"""


def run(arguments: Sequence[str]) -> int:
    """Runs `anomaly-vlm report` with its arguments; returns the exit status."""
    if any(word in ("-h", "--help") for word in arguments):
        sys.stdout.write(HELP)
        return 0
    folder, rest = pop_key(arguments, "runs")
    if rest:
        raise UserError(f"'{rest[0]}' is no key of report: give runs=FOLDER")
    root = Path(folder or "outputs")
    if not root.is_dir():
        raise UserError(f"runs={root}: no such folder: give one that holds runs")
    from anomaly_vlm.reporting.collect import collect_runs, sweep_table
    from anomaly_vlm.reporting.console import say, show

    rows = collect_runs(root)
    if not rows:
        raise UserError(f"no run (metrics.json) below '{root}': train first, or give another folder")
    try:
        show(sweep_table(rows, csv_path=root / "sweep.csv"))
    except OSError as error:
        show(sweep_table(rows, csv_path=None))
        say(f"the table is not written: {os_error_line(error)}")
    return 0
