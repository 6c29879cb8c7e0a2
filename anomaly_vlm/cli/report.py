"""`anomaly-vlm report`: the table of all runs below a folder, or a page about some of them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from anomaly_vlm.cli.arguments import pop_key, values_of
from anomaly_vlm.errors import UserError, unknown_choice
from anomaly_vlm.files import os_error_line
from anomaly_vlm.names import elements

FORMS = ("terminal", "csv", "markdown", "latex")
HELP = """usage: anomaly-vlm report [runs=FOLDER] [...]          the table of all runs below a folder (default: outputs)
       anomaly-vlm report run=FOLDER [to=FILE.html]    one HTML page about an evaluation or a prediction
       anomaly-vlm report run=[FOLDER,FOLDER] ...      several side by side

base=method=winclip        differences to that row, with the 95 % interval of a paired bootstrap over categories
columns=image_auroc,...    these metrics only
sort=-image_auroc          by a metric or a column, the largest first
where=shots=4,method!=musc these runs only
intervals=true             also the 95 % interval of every mean over the categories
format=terminal|csv|markdown|latex; the folder gets tables.html, table.csv, .md, .tex, and sweep.csv (one row a run)
"""


def run(arguments: Sequence[str]) -> int:
    """Runs `anomaly-vlm report` with its arguments; returns the exit status."""
    if any(word in ("-h", "--help") for word in arguments):
        sys.stdout.write(HELP)
        return 0
    run_folders, arguments = pop_key(arguments, "run")
    if run_folders is not None:
        return page(run_folders, arguments)
    return tables(arguments)


def tables(arguments: Sequence[str]) -> int:
    """Shows the tables of all runs below a folder, and writes them into it; returns the exit status."""
    from anomaly_vlm.reporting.table_options import TableOptions

    options, rest = TableOptions.pop(arguments)
    folder, rest = pop_key(rest, "runs")
    form, rest = pop_key(rest, "format")
    if rest:
        raise UserError(
            f"'{rest[0]}' is no key of report: give runs=, format=, base=, columns=, sort=, intervals= or where="
        )
    if form not in (None, *FORMS):
        raise unknown_choice("format", str(form), FORMS)
    root = Path(folder or "outputs")
    if not root.is_dir():
        raise UserError(f"runs={root}: no such folder: give one that holds runs")
    from anomaly_vlm.reporting.collect import collect_runs, write_runs
    from anomaly_vlm.reporting.console import say
    from anomaly_vlm.reporting.studies import study_tables
    from anomaly_vlm.reporting.study_table import show_tables, write_tables

    rows = collect_runs(root)
    if not rows:
        raise UserError(f"no run (metrics.json) below '{root}': train first, or give another folder")
    found = study_tables(rows, options)
    show_tables(found, form or FORMS[0])
    try:
        write_runs(root / "sweep.csv", rows)
        write_tables(found, root)
    except OSError as error:
        say(f"the table is not written: {os_error_line(error)}")
    return 0


def page(named: str, arguments: Sequence[str]) -> int:
    """Writes the HTML page about runs; returns the exit status."""
    target = values_of("report", arguments, ("run", "to"))["to"]
    whole = named.startswith("[") and named.endswith("]") and not Path(named).is_dir()
    folders = [Path(word) for word in (elements(named[1:-1]) if whole else [named]) if word]
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
