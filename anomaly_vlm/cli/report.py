"""`anomaly-vlm report`: one table of all runs below a folder."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from anomaly_vlm.cli.arguments import pop_key
from anomaly_vlm.errors import UserError
from anomaly_vlm.files import os_error_line

HELP = """usage: anomaly-vlm report [runs=FOLDER]                one table of all runs below a folder (default: outputs)
       anomaly-vlm report run=FOLDER [to=FILE.html]    one HTML page about an evaluation or a prediction
       anomaly-vlm report run=[FOLDER,FOLDER] ...      several side by side
"""


def run(arguments: Sequence[str]) -> int:
    """Runs `anomaly-vlm report` with its arguments; returns the exit status."""
    if any(word in ("-h", "--help") for word in arguments):
        sys.stdout.write(HELP)
        return 0
    run_folders, arguments = pop_key(arguments, "run")
    if run_folders is not None:
        return page(run_folders, arguments)
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


def page(named: str, arguments: Sequence[str]) -> int:
    """Writes the HTML page about runs; returns the exit status."""
    target, rest = pop_key(arguments, "to")
    if rest:
        raise UserError(f"'{rest[0]}' is no key of report: give run=FOLDER and, if wanted, to=FILE.html")
    whole = named.startswith("[") and named.endswith("]") and not Path(named).is_dir()
    words = [word.strip() for word in named[1:-1].split(",")] if whole else [named]
    folders = [Path(word) for word in words if word]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"run={folder}: no such folder: give the folder of an evaluation or a prediction")
    if not folders:
        raise UserError("run=[]: no folder: give the folder of an evaluation or a prediction")
    from anomaly_vlm.files import write_text
    from anomaly_vlm.reporting.page import write_page

    path = Path(target) if target else folders[0] / "report.html"
    if not path.parent.is_dir():
        raise UserError(f"to={path}: no such folder '{path.parent}': give a file in an existing one")
    write_text(path, write_page(folders))
    sys.stdout.write(f"report: {path} ({path.stat().st_size / 1e6:.1f} MB)\n")
    return 0
