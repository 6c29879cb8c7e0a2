"""`anomaly-vlm train`: fit, evaluate, write what the run leaves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from anomaly_vlm.cli.arguments import MULTIRUN, answered_by_hydra, help_with_choices, hydra_words, pop_key
from anomaly_vlm.runs import stopping
from anomaly_vlm.runs.configs import composed, resumed, run_folder

HELP = """usage: anomaly-vlm train method=NAME [dataset=NAME] [backbone=NAME] [key=value ...]
       anomaly-vlm train resume=RUN_FOLDER     resumes exactly where that run stopped
       anomaly-vlm train ... --cfg job --resolve | --info defaults     shows the configuration and runs nothing
       anomaly-vlm train ... --multirun        as 'anomaly-vlm sweep'; --config-dir FOLDER adds configurations of your own

data: dataset=NAME names a test set (trained on procedural images) or a pair (visa_to_mvtec);
      source@dataset.train=NAME, source@dataset.test=NAME choose either side,
      dataset.train.root=FOLDER, dataset.test.root=FOLDER say where they lie
"""


def run(arguments: Sequence[str]) -> int:
    """Runs `anomaly-vlm train` with its arguments; returns the exit status."""
    if help_with_choices(arguments, HELP) or answered_by_hydra(arguments):
        return 0
    if any(word in MULTIRUN for word in arguments):
        from anomaly_vlm.cli import sweep

        return sweep.run(arguments)
    arguments = hydra_words(arguments)
    resume, overrides = pop_key(arguments, "resume")
    if resume is not None:
        cfg, folder = resumed(Path(resume), overrides), Path(resume)
    else:
        cfg = composed(overrides)
        folder = run_folder(cfg, overrides)
    with (
        stopping.resume_command(*stopping.same_command("train", arguments, output_dir=folder)),
        stopping.resume_command("train", f"resume={folder}", folder=folder),
    ):
        from anomaly_vlm.runs.seeds import fit_all  # torch and Lightning are read only now

        fit_all(cfg, folder, resume=resume is not None)
    return 0
