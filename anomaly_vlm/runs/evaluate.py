"""Evaluation of a checkpoint, or of a method that needs no training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from anomaly_vlm.errors import UserError
from anomaly_vlm.reporting.console import is_first_process, say
from anomaly_vlm.reporting.describe import describe_data
from anomaly_vlm.runs.build import build, fit_references
from anomaly_vlm.runs.checkpoints import Checkpoint
from anomaly_vlm.runs.configs import write_config
from anomaly_vlm.runs.cost import cost_of
from anomaly_vlm.runs.detect import precompute_detections
from anomaly_vlm.runs.devices import seed_everything
from anomaly_vlm.runs.outcome import RunResult, logged, write_outcome
from anomaly_vlm.runs.shared_images import say_shared_images
from anomaly_vlm.runs.tracking import Tracking, tracked
from anomaly_vlm.runs.trainer import build_trainer
from anomaly_vlm.runs.transductive import fit_test_images


def evaluate(cfg: DictConfig, folder: Path, checkpoint: Checkpoint | None = None) -> RunResult:
    """Evaluates on the test side and writes everything into `folder`.

    Args:
        cfg: The composed configuration.
        folder: Existing folder of the run.
        checkpoint: Learned weights; None for a method as it starts.

    Raises:
        UserError: Wrong input, or a checkpoint that does not fit.
    """
    if (folder / "checkpoints").is_dir():
        raise UserError(f"'{folder}' is the folder of a training: give the evaluation another output_dir")
    seed_everything(cfg.seed)
    with tracked(cfg, folder, "evaluate", training=None if checkpoint is None else checkpoint.run_folder) as tracking:
        return _evaluate(cfg, folder, checkpoint, tracking)


def _evaluate(cfg: DictConfig, folder: Path, checkpoint: Checkpoint | None, tracking: Tracking) -> RunResult:
    """See `evaluate`."""
    memory_images = None if checkpoint is None else checkpoint.memory_images(cfg)
    run = build(cfg, sides=("test",), memory_images=memory_images)
    learned_from = ["not trained"]
    if checkpoint is not None:
        checkpoint.load_into(run.method)
        learned_from = [checkpoint.trained_on]
        met = {"trained_on": checkpoint.train_images, "selected_on": checkpoint.selection_images}
        say_shared_images(run.data, run.facts, **met)
    description = describe_data(run.data)
    if memory_images is None and cfg.shots:
        fit_references(run, folder)
        learned_from = [*(learned_from if cfg.train_on == "dataset" else []), description.references]
    run.facts["data"] = ", ".join([*learned_from, description.sides["test"]])
    say(f"{run.facts['method']} on {run.facts['backbone']}: {run.facts['data']}")
    if is_first_process():
        (folder / "metrics.json").unlink(missing_ok=True)  # of an evaluation before: it says "done"
    precompute_detections(run, "test")
    tracking.start(run, folder, "evaluate")
    trainer = build_trainer(cfg)
    fit_test_images(run, trainer.strategy.root_device)
    trainer.test(run.method, datamodule=run.datamodule, verbose=False)
    write_config(cfg, folder)
    facts: dict[str, Any] = {} if checkpoint is None else {"checkpoint": checkpoint.spec}
    if cfg.get("measure_cost"):
        facts["cost"] = cost_of(run, training_seconds=None)
    outcome = write_outcome(run, run.method.evaluation.result, folder, facts)
    tracking.finish(logged(outcome, f"evaluate/{cfg.dataset.test.name}" if tracking.attached else "test"))
    return outcome
