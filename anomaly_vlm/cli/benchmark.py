"""`anomaly-vlm benchmark`: every method in one protocol, and whether its texts matter; tables and one page at the end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from anomaly_vlm.cli import sweep
from anomaly_vlm.cli.arguments import asks_for_help, pop_key
from anomaly_vlm.errors import UserError
from anomaly_vlm.runs.checks import writable_folder
from anomaly_vlm.runs.stopping import resume_command

STUDIES = ("zero_shot", "few_shot", "texts")
QUALITY = "image_auroc,pooled/image_auroc,image_ap,pixel_auroc,pixel_ap,pixel_aupro,pixel_aupro_limit0.05"
COST = "cost/trainable_parameters,cost/gflops,cost/ms_per_image,cost/peak_memory_mb,cost/training_seconds"
TITLES = {"zero_shot": "Without references", "few_shot": "With references", "texts": "Does the text matter?"}
FOLDER = "outputs/benchmark"
HELP = f"""usage: anomaly-vlm benchmark [limit=N] [to=FOLDER] [key=value ...]

Runs experiment=benchmark/{{{",".join(STUDIES)}}} (docs/protocol.md) below a folder (default: {FOLDER}) and ends in
tables.html, table_*.csv, .md, .tex there. The same command again resumes with what is missing. limit=N: pictures to train
and to test on (limit=null: all); other keys are overrides of every run, such as hydra/launcher=joblib.
"""


def run(arguments: Sequence[str]) -> int:
    """Runs `anomaly-vlm benchmark` with its arguments; returns the exit status."""
    if asks_for_help(arguments, HELP):
        return 0
    target, rest = pop_key(arguments, "to")
    limit, overrides = pop_key(rest, "limit")
    if limit is not None and limit != "null" and not limit.isdecimal():
        raise UserError(f"limit={limit}: give a number of pictures, or null for all")
    limits = [] if limit is None else [f"train_limit={limit}", f"eval_limit={limit}"]
    root = writable_folder(target or FOLDER)
    failures = []
    for study in STUDIES:
        words = [f"experiment=benchmark/{study}", f"{sweep.FOLDER_KEY}={root / study}", *limits, *overrides]
        try:
            with resume_command("benchmark", *arguments, whole=True):
                sweep.run(words)
        except UserError as error:
            if not any(root.joinpath(study).rglob("metrics.json")):
                raise
            failures.append(f"{study}: {error}")
    write_report(root)
    if failures:
        raise UserError("; ".join(failures))
    return 0


def write_report(root: Path) -> None:
    """Shows the tables of the whole benchmark and writes them, with one page that has them all."""
    from anomaly_vlm.reporting.collect import collect_runs
    from anomaly_vlm.reporting.console import say
    from anomaly_vlm.reporting.studies import study_tables
    from anomaly_vlm.reporting.study_table import show_tables, write_tables
    from anomaly_vlm.reporting.table_options import TableOptions

    compared = [
        [f"columns={QUALITY}", "sort=-image_auroc", "intervals=true", "base=method=winclip"],
        [f"columns={COST}"],
    ]
    asked = {
        "zero_shot": compared,
        "few_shot": compared,
        "texts": [["columns=image_auroc,pixel_auroc,pixel_aupro", "base=texts=as_written"]],
    }
    tables = []
    for study, options in asked.items():
        runs = collect_runs(root / study)
        for i, words in enumerate(options if runs else []):
            for table in study_tables(runs, TableOptions.pop(words)[0]):
                name = "_".join(filter(None, [study, "cost" if i else table.name]))
                tables.append(table.named(name, f"{TITLES[study]}{': cost' if i else ''}"))
    show_tables(tables)
    say(f"report: {write_tables(tables, root, title='Benchmark')[0]} (beside it as CSV, Markdown, LaTeX)")
