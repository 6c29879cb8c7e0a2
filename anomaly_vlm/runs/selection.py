"""What is watched while a method trains: whether the evaluated side can give it, and the weights that are chosen by it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import lightning as L
from omegaconf import DictConfig

from anomaly_vlm.data.anomaly_data import AnomalyData
from anomaly_vlm.data.types import Sample
from anomaly_vlm.errors import UserError, unknown_choice
from anomaly_vlm.methods.base.calibrated import Calibrated
from anomaly_vlm.methods.base.checkpoints import read_tensors
from anomaly_vlm.reporting.console import is_first_process
from anomaly_vlm.reporting.tables import smaller_is_better
from anomaly_vlm.runs.build import Run
from anomaly_vlm.runs.calibrate import calibrate
from anomaly_vlm.runs.saving import write_checkpoint
from anomaly_vlm.runs.trainer import callback_nodes

STAGE = "val/"  # in front of the metrics of every epoch, whichever side is evaluated


def mode_of(metric: str) -> Literal["min", "max"]:
    """Whether a smaller or a larger value of a metric is better."""
    return "min" if smaller_is_better(metric) else "max"


def watched_metrics(cfg: DictConfig) -> dict[str, str]:
    """The metrics that weights are chosen by or that callbacks watch, by the key that names them."""
    found = {} if cfg.selection == "last" else {"selection_metric": str(cfg.selection_metric)}
    for name, node in callback_nodes(cfg).items():
        monitor = str(node.get("monitor") or "")
        if monitor.startswith(STAGE):
            found[f"callbacks.{name}.monitor"] = monitor.removeprefix(STAGE)
    return found


def check_watched(run: Run) -> None:
    """Finds out before the training what would only fail, or choose the worst epoch, once its first epoch has ended.

    Raises:
        UserError: A metric that is watched has an unknown name, or see `check_watched_data`.
    """
    if run.data.selection_side is None:
        return
    known = run.method.evaluation.metric_names(run.method)
    for key, metric in watched_metrics(run.cfg).items():
        if metric not in known:
            raise unknown_choice(key, metric, known)
    check_watched_data(run.cfg, run.data)


def check_watched_data(cfg: DictConfig, data: AnomalyData) -> None:
    """The part of `check_watched` that needs no method, so that a sweep checks it for all of its jobs before the first.

    Args:
        cfg: Of the run.
        data: With the side that is evaluated after every epoch, if any, as its `selection_side`.

    Raises:
        UserError: The evaluated side lacks the labels for a watched metric, or a callback takes it for one that should grow
            although it should fall.
    """
    side = data.selection_side
    if side is None:
        return
    samples = data.samples(side)
    for key, metric in watched_metrics(cfg).items():
        if reason := _lacks(samples, metric):
            where = "validation set" if side == "val" else "test set"
            raise UserError(f"{key}: {metric} is no number, as the {where} {reason}")
    for name, node in callback_nodes(cfg).items():
        mode, monitor = node.get("mode"), str(node.get("monitor") or "")
        if monitor.startswith(STAGE) and mode in ("min", "max") and mode != mode_of(monitor):
            better = "smaller" if mode == "max" else "larger"
            raise UserError(
                f"callbacks.{name}.mode is {mode}, and a {better} {monitor} is better: set"
                f" callbacks.{name}.mode={mode_of(monitor)}"
            )


def _lacks(samples: Sequence[Sample], metric: str) -> str:
    """Why a metric is no number on some images, and what to do about it; empty where it is one."""
    if metric.startswith("image_"):
        labels: dict[str, set[int | None]] = {}
        for sample in samples:
            labels.setdefault(sample.category, set()).add(sample.label)
        if any({0, 1} <= found for found in labels.values()):
            return ""
        return "has no category with both normal and anomalous images: give one that has, or choose selection=last"
    if any(sample.kind == "semantic" or _has_region(sample) for sample in samples):
        return ""
    return "has no pixel masks: choose selection_metric=image_auroc, or give one with masks"


def _has_region(sample: Sample) -> bool:
    return sample.kind == "mask" and sample.label == 1 and bool(sample.masks or sample.drawing)


def choose_weights(run: Run, trainer: L.Trainer, folder: Path) -> Path:
    """Puts the weights that `selection` names into the method.

    Constants that a method takes from the training images belong to its weights: those of the chosen ones are computed anew,
    and written into their checkpoint.

    Args:
        run: After its training.
        trainer: The one that trained.
        folder: Of the run.

    Returns:
        The checkpoint with these weights.

    Raises:
        UserError: No epoch was chosen.
    """
    selection, metric = run.cfg.selection, run.cfg.selection_metric
    last, best = folder / "checkpoints" / "last.ckpt", folder / "checkpoints" / "best.ckpt"
    if selection == "last":
        return last
    if not best.is_file():
        raise UserError(
            f"selection={selection}: no best checkpoint, as val/{metric} was never a number: choose a selection_metric that"
            " the set has labels for"
        )
    chosen = read_tensors(best)
    run.method.load_state_dict(chosen["state_dict"], strict=False)
    if isinstance(run.method, Calibrated):
        calibrate(run, trainer)
        chosen["state_dict"].update({name: value.cpu() for name, value in run.method.state_dict().items()})
        if is_first_process():
            write_checkpoint(chosen, best)
        trainer.strategy.barrier("chosen weights")
    return best
