"""`anomaly-vlm compare`: published numbers beside measured ones."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import anomaly_vlm
from anomaly_vlm.cli.arguments import asks_for_help, values_of
from anomaly_vlm.errors import UserError, unknown_choice

FORMS = ("terminal", "csv", "markdown", "latex")
HELP = """usage: anomaly-vlm compare study=NAME [runs=FOLDER] [run=FOLDER] [format=terminal|csv|markdown|latex] [to=FOLDER]

Sets the numbers of experiments/NAME/published.csv beside those of all runs below a folder (default: outputs) that used the
same method, test set and number of shots: published, measured, difference, category by category, and why they may differ.
to=FOLDER writes the tables. Without such a run it shows what is published.
"""


def run(arguments: Sequence[str]) -> int:
    """Runs `anomaly-vlm compare` with its arguments; returns the exit status."""
    if asks_for_help(arguments, HELP):
        return 0
    values = values_of("compare", arguments, ("study", "runs", "run", "format", "to"))
    studies = sorted(path.parent.name for path in experiments_dir().glob("*/protocol.yaml"))
    if values["study"] is None:
        raise UserError(f"no study given: add study=NAME, one of {', '.join(studies)}")
    if values["study"] not in studies:
        raise unknown_choice("study", values["study"], studies)
    form = values["format"] or FORMS[0]
    if form not in FORMS:
        raise unknown_choice("format", form, FORMS)
    root = Path(values["run"] or values["runs"] or "outputs")
    if not root.is_dir() and (values["run"] or values["runs"]):
        raise UserError(f"'{root}': no such folder: give one that holds runs")
    return compare(experiments_dir() / values["study"], root, form, values["to"])


def compare(folder: Path, root: Path, form: str, target: str | None) -> int:
    """Shows the comparison of a study with the runs below a folder; returns the exit status."""
    from anomaly_vlm.reporting.collect import collect_runs
    from anomaly_vlm.reporting.console import say
    from anomaly_vlm.reporting.published import Study, comparable, comparison, published_only, reasons
    from anomaly_vlm.reporting.studies import grouped
    from anomaly_vlm.reporting.study_table import show_tables, write_tables

    study = Study.read(folder)
    runs = comparable(study, collect_runs(root)) if root.is_dir() else []
    tables = []
    for group in grouped(runs)[0] if runs else []:
        found = comparison(study, group)
        why = [f"may differ: {reason}" for reason in reasons(study, group)]
        for table in found:
            table.foot.extend(why)
        tables += found
    tables = tables or published_only(study)
    show_tables(tables, form)
    if not runs and form == FORMS[0]:
        say(
            f"nothing below '{root}' was measured on these sets: make train EXPERIMENT={study.name}/... (conf/experiment)"
        )
    if target is not None:
        Path(target).mkdir(parents=True, exist_ok=True)
        page = write_tables(tables, Path(target), title=f"{study.name}: published and measured")[0]
        sys.stdout.write(f"tables: {page} (beside it as CSV, Markdown, LaTeX)\n")
    return 0


def experiments_dir() -> Path:
    """The folder `experiments/`: inside the installed package, or at the root of a clone."""
    package = Path(anomaly_vlm.__file__).parent
    return package / "experiments" if (package / "experiments").is_dir() else package.parent / "experiments"
