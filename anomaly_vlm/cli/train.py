"""`anomaly-vlm train`: fit, evaluate, write what the run leaves."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from anomaly_vlm.cli.arguments import help_with_choices, pop_key
from anomaly_vlm.runs import stopping
from anomaly_vlm.runs.configs import composed, resumed, run_folder, shared_with_children

if TYPE_CHECKING:
    from omegaconf import DictConfig

HELP = """usage: anomaly-vlm train method=NAME [dataset=NAME] [backbone=NAME] [key=value ...]
       anomaly-vlm train resume=RUN_FOLDER     goes on exactly where that run stopped

data: dataset=NAME names a test set (trained on procedural images) or a pair (visa_to_mvtec);
      source@dataset.train=NAME, source@dataset.test=NAME choose either side,
      dataset.train.root=FOLDER, dataset.test.root=FOLDER say where they lie
"""


def run(arguments: Sequence[str]) -> int:
    """Runs `anomaly-vlm train` with its arguments; returns the exit status."""
    if help_with_choices(arguments, HELP):
        return 0
    resume, overrides = pop_key(arguments, "resume")
    if resume is not None:
        cfg, folder = resumed(Path(resume), overrides), Path(resume)
    else:
        cfg = composed(overrides)
        folder = run_folder(cfg, overrides)
    with (
        stopping.goes_on_with(*stopping.same_command("train", arguments, output_dir=folder)),
        stopping.goes_on_with("train", f"resume={folder}", folder=folder),
    ):
        execute(cfg, folder, resume=resume is not None)
    return 0


def execute(cfg: DictConfig, folder: Path, *, resume: bool = False) -> float:
    """One training run, or one for each of `seeds`; returns the selection metric's mean on the test set.

    Args:
        cfg: The composed configuration.
        folder: Existing folder of the run.
        resume: Whether the user has asked to go on with what `folder` holds.
    """
    from anomaly_vlm.runs.fit import fit  # torch and Lightning are read only now
    from anomaly_vlm.runs.seeds import asks_for_several, over_seeds

    with shared_with_children(folder):
        if asks_for_several(cfg):
            return over_seeds(cfg, folder, partial(fit, resume=resume), resume=resume)
        return fit(cfg, folder, resume=resume).means.get(cfg.selection_metric, float("nan"))
