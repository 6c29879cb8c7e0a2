"""`anomaly-vlm dashboard`: a wandb workspace and report on a study, built as code and uploaded where wandb is online."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anomaly_vlm.cli.arguments import asks_for_help, values_of
from anomaly_vlm.errors import UserError, unknown_choice
from anomaly_vlm.files import write_text
from anomaly_vlm.runs.checks import writable_folder
from anomaly_vlm.runs.configs import trusted_packages

HELP = """usage: anomaly-vlm dashboard study=FOLDER|EXPERIMENT [entity=NAME] [project=anomaly_vlm] [to=FOLDER] [upload=false]

Builds a workspace and a report on the runs of a study that were logged with logger=wandb, and writes both as JSON.
study: the folder of a sweep, or of several seeds; or the name of an experiment, such as adaclip/prompts
upload: true sends both to wandb (default: where WANDB_API_KEY is set); runs logged offline come by 'wandb sync'
"""


def run(arguments: Sequence[str]) -> int:
    """Runs `anomaly-vlm dashboard` with its arguments; returns the exit status."""
    if asks_for_help(arguments, HELP):
        return 0
    trust = [word for word in arguments if word.startswith("trust=")]
    trusted = trusted_packages(trust)
    rest = [word for word in arguments if word not in trust]
    values = values_of("dashboard", rest, ("study", "entity", "project", "to", "upload"))
    if not values["study"]:
        raise UserError("no study given: add study=FOLDER of a sweep, or an experiment's name (make: STUDY=...)")
    if values["upload"] not in (None, "true", "false"):
        raise unknown_choice("upload", str(values["upload"]), ("true", "false"))
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise UserError(
            "dashboard needs the package wandb-workspaces: install it with pip install 'anomaly-vlm[wandb]' (in a clone:"
            " make setup EXTRAS=wandb)"
        )
    upload = values["upload"] == "true" or (values["upload"] is None and bool(os.environ.get("WANDB_API_KEY")))
    if upload and not values["entity"]:
        raise UserError("entity is not given: add entity=NAME, the user or team at wandb that the project belongs to")
    from anomaly_vlm.runs.studies import study_of_experiment, study_of_folder

    name = str(values["study"])
    folder = Path(name)
    study = study_of_folder(folder, trusted=trusted) if folder.is_dir() else study_of_experiment(name)
    target = values["to"] or (folder / "dashboard" if folder.is_dir() else Path("outputs") / "dashboards" / name)
    build(study, writable_folder(target), values["entity"] or "", values["project"] or "anomaly_vlm", upload=upload)
    return 0


def build(study: Any, target: Path, entity: str, project: str, *, upload: bool) -> None:
    """Writes both as JSON, and sends them to wandb where that is wanted."""
    from anomaly_vlm.reporting.dashboards import as_json, report, workspace

    made = {make.__name__: make(study, entity=entity, project=project) for make in (workspace, report)}
    for name, built in made.items():
        write_text(target / f"{name}.json", as_json(built))
    sys.stdout.write(f"{study.title}: compares {', '.join(study.keys) or 'runs'}\n")
    sys.stdout.write(f"workspace: {target / 'workspace.json'}, report: {target / 'report.json'}\n")
    if not upload:
        sys.stdout.write("not uploaded: set WANDB_API_KEY and give entity=NAME, after 'wandb sync' of the runs\n")
        return
    for name, built in made.items():
        try:
            built.save()
        except Exception as error:  # whatever the network and the library raise
            raise UserError(f"wandb did not take the {name} ({' '.join(str(error).split())[:200]})") from error
        sys.stdout.write(f"{name}: {built.url}\n")
