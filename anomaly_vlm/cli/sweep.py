"""`anomaly-vlm sweep`: many training runs, each in a folder of its own, and one table at the end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anomaly_vlm.cli.arguments import answered_by_hydra, help_with_choices, hydra_words, pop_key
from anomaly_vlm.errors import UserError
from anomaly_vlm.files import unique_folder, write_text
from anomaly_vlm.reporting.table_options import TableOptions
from anomaly_vlm.runs import stopping
from anomaly_vlm.runs.checks import not_writable, writable_folder
from anomaly_vlm.runs.compose import compose_job
from anomaly_vlm.runs.configs import timestamp, trusted_packages
from anomaly_vlm.runs.groups import choices
from anomaly_vlm.runs.instantiate import instantiate
from anomaly_vlm.runs.sweeps import FAILED, Job, check_jobs, expand, first_values, plan, run_jobs

RECORD = "sweep.json"  # in the folder of a sweep: the command line, for resume=FOLDER
SEARCH = "anomaly_vlm.runs.search.OptunaSearch"
FOLDER_KEY = "hydra.sweep.dir"
LISTED = 10  # failed jobs that are named at the end; their folders name all
HELP = """usage: anomaly-vlm sweep experiment=NAME [key=value1,value2 ...]
       anomaly-vlm sweep method=adaclip seed=0,1,2 method.prompts.depth=2,4
       anomaly-vlm sweep resume=FOLDER [key=value ...]     resumes: what is finished is kept, what failed is tried again

Hydra's multirun: lists of values, range(1,4), experiments with hydra.sweeper.params, hydra.sweep.dir=FOLDER.
hydra/launcher=joblib runs jobs side by side (one a GPU), submitit_slurm on a cluster; hydra/sweeper=optuna searches.
The table at the end takes base=, columns=, sort= and where= as 'anomaly-vlm report' does.
"""


def run(arguments: Sequence[str]) -> int:
    """Runs `anomaly-vlm sweep` with its arguments; returns the exit status."""
    if help_with_choices(arguments, HELP) or answered_by_hydra(arguments):
        return 0
    prepared, arguments = pop_key(hydra_words(arguments), "job")
    if prepared is not None:  # what the launchers start
        from anomaly_vlm.runs.jobs import run_prepared

        return run_prepared(Path(prepared), arguments)
    words, root = asked_for(arguments)
    table_options, overrides = TableOptions.pop(words)
    settings = compose_job(first_values(overrides))[1]
    searches = settings["sweeper"]["_target_"] == SEARCH
    jobs = plan([first_values(overrides)] if searches else expand(overrides, settings["sweeper"]))
    check_jobs(jobs)
    root = root or new_folder(jobs)
    write_text(writable_folder(root) / RECORD, json.dumps(words, indent=1) + "\n")
    launcher = build(settings["launcher"], "hydra/launcher", overrides)
    with stopping.resume_command("sweep", f"resume={root}"):
        if searches:
            jobs = build(settings["sweeper"], "hydra/sweeper", overrides).run(overrides, root, launcher)
        else:
            jobs = run_jobs(jobs, root, launcher)
    return finish(root, jobs, table_options)


def asked_for(arguments: Sequence[str]) -> tuple[list[str], Path | None]:
    """The words of a sweep, and its folder where it is named or resumed.

    What is said beside `resume=FOLDER` takes the place of what was said about the same key.

    Raises:
        UserError: The folder holds no sweep.
    """
    resume, words = pop_key(arguments, "resume")
    if resume is None:
        named, words = pop_key(words, FOLDER_KEY)
        return words, Path(named.strip("'\"")) if named else None
    path = Path(resume) / RECORD
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"resume={resume}: no {RECORD} that can be read in there: give a folder of a sweep") from error
    if not isinstance(stored, list) or not all(isinstance(word, str) for word in stored):
        raise UserError(f"'{path}' holds no command line of a sweep: give the folder of a sweep")
    keys = {word.partition("=")[0] for word in words}
    return [*(word for word in stored if word.partition("=")[0] not in keys), *words], Path(resume)


def new_folder(jobs: Sequence[Job]) -> Path:
    """A new folder, named after all methods that are swept over."""
    path = Path("outputs") / "sweeps" / "_".join(dict.fromkeys(job.cfg.name for job in jobs)) / timestamp()
    try:
        return unique_folder(path)
    except OSError as error:
        raise not_writable(path, error) from error


def build(node: dict[str, Any], group: str, words: Sequence[str]) -> Any:
    """The launcher or the search that a node of Hydra's settings names."""
    if str(node["_target_"]).startswith(("hydra.", "hydra_plugins.")):
        names = ", ".join(choices(group))
        raise UserError(f"{group} names {node['_target_']}, which this suite does not run: choose one of {names}")
    return instantiate(node, trusted=trusted_packages(words))


def finish(root: Path, jobs: Sequence[Job], options: TableOptions) -> int:
    """Shows the table of the finished jobs and what has become of the others; returns the exit status."""
    from anomaly_vlm.reporting.collect import collect_runs, write_runs
    from anomaly_vlm.reporting.console import say
    from anomaly_vlm.reporting.studies import study_tables
    from anomaly_vlm.reporting.study_table import show_tables, write_tables

    states = [job.state for job in jobs]
    rows = collect_runs(root)
    if rows:
        write_runs(root / "sweep.csv", rows)
        tables = study_tables(rows, options)
        show_tables(tables)
        say(f"tables: {write_tables(tables, root)[0]} (beside it as CSV, Markdown, LaTeX)")
    failed, missing = states.count("failed"), states.count("missing")
    counts = f"{states.count('finished')} of {len(jobs)} finished, {failed} failed, {missing} missing"
    for job in [job for job in jobs if job.state == "failed"][:LISTED]:
        say(f"failed: {job.folder}: {job.reason}")
    if failed or missing:
        raise UserError(f"{counts}; {FAILED} in a job's folder says why; resume with: anomaly-vlm sweep resume={root}")
    say(counts)
    return 0
