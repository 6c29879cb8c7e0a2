"""Training, then evaluation: builds the run and lets Lightning carry it out."""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig

from anomaly_vlm.errors import UserError
from anomaly_vlm.files import write_text
from anomaly_vlm.methods.base.checkpoints import read_tensors
from anomaly_vlm.reporting.collect import read_means
from anomaly_vlm.reporting.console import is_first_process, say
from anomaly_vlm.reporting.record import finite_or_none
from anomaly_vlm.reporting.sheet import contact_sheet
from anomaly_vlm.runs.build import Run, build, fit_references
from anomaly_vlm.runs.calibrate import calibrate
from anomaly_vlm.runs.checkpoints import load_init
from anomaly_vlm.runs.checks import sides_of
from anomaly_vlm.runs.configs import write_config
from anomaly_vlm.runs.cost import cost_of
from anomaly_vlm.runs.detect import precompute_detections
from anomaly_vlm.runs.devices import seed_everything
from anomaly_vlm.runs.outcome import RunResult, logged, write_outcome
from anomaly_vlm.runs.same_run import check_same_run
from anomaly_vlm.runs.saving import last_state
from anomaly_vlm.runs.selection import check_watched, choose_weights, mode_of, watched_metrics
from anomaly_vlm.runs.shared_images import note_selection_images
from anomaly_vlm.runs.tracking import Tracking, tracked
from anomaly_vlm.runs.trainer import build_trainer, callback_nodes
from anomaly_vlm.runs.transductive import fit_test_images


def fit(cfg: DictConfig, folder: Path, *, resume: bool = False) -> RunResult:
    """Trains (or resumes training), evaluates and writes everything into `folder`.

    Args:
        cfg: The composed configuration.
        folder: Existing folder of the run. Training resumes from a `checkpoints/last.ckpt` in it.
        resume: Whether the user has asked to resume what `folder` holds, with whatever has been changed since. Otherwise it
            is resumed only where its configuration is this one.

    Raises:
        UserError: Wrong input, or a folder that holds another run; reported before any long work.
        Stopped: By a signal; the state is saved.
    """
    if not resume:
        check_same_run(cfg, folder)
    seed_everything(cfg.seed)
    with tracked(cfg, folder, "train") as tracking:
        return _fit(cfg, folder, tracking)


def _fit(cfg: DictConfig, folder: Path, tracking: Tracking) -> RunResult:
    """See `fit`."""
    started, side = time.monotonic(), validated_side(cfg)
    learns, last = cfg.train_on != "nothing", folder / "checkpoints" / "last.ckpt"
    state = last_state(folder) if learns else None
    run = build(cfg, sides=sides_of(cfg))
    run.data.selection_side = side
    if learns:
        check_watched(run)
        if watched_metrics(cfg):
            note_selection_images(run)
    load_init(cfg, run.method)
    validating = run.data.selection_side is not None
    trainer = build_trainer(
        cfg,
        callbacks=savers(cfg, folder, choosing=cfg.selection != "last"),
        loggers=tracking.loggers,
        fitting=True,
        validating=validating,
        last=last,
    )
    _announce(run, folder)
    tracking.start(run, folder, "train")
    fit_references(run, folder)
    if learns:
        try_one_step(run)
    precompute_detections(run, *dict.fromkeys(("test", run.data.selection_side or "test")))
    untrained = _untrained(run, folder, resuming=state is not None) if learns else {}
    began = time.monotonic()
    if learns:
        train(run, trainer, last, state)
    trained = round(time.monotonic() - began, 1) if learns and state is None else None
    chosen = choose_weights(run, trainer, folder) if learns else last

    tester = trainer if trainer.world_size > 1 else build_trainer(cfg)
    fit_test_images(run, tester.strategy.root_device)
    tester.test(run.method, datamodule=run.datamodule, verbose=False)
    if not learns:
        tester.save_checkpoint(last, weights_only=False)  # the memory, for `predict`
    result = run.method.evaluation.result
    facts = {
        "checkpoint": str(chosen.relative_to(folder)),
        "selection": cfg.selection if learns else None,
        "overrides": list(cfg.get("sweep_overrides") or cfg.tracking.overrides),
        "epochs": trainer.current_epoch if learns else 0,
        "seconds": round(time.monotonic() - started, 1),
        **({"untrained": untrained} if untrained else {}),
        **({"cost": cost_of(run, training_seconds=trained)} if cfg.get("measure_cost") else {}),
    }
    outcome = write_outcome(run, result, folder, facts)
    tracking.finish(logged(outcome, "test"))
    return outcome


def train(run: Run, trainer: L.Trainer, last: Path, state: Path | None) -> None:
    """Lightning's loop, from `state` on where there is one, and the final state in `last`."""
    if state is not None:
        say(f"resuming from {state}")
        run.method.check_learned(read_tensors(state)["state_dict"], f"checkpoint '{state}'")
    trainer.fit(
        run.method, datamodule=run.datamodule, ckpt_path=None if state is None else str(state), weights_only=True
    )
    calibrate(run, trainer)
    trainer.save_checkpoint(last, weights_only=False)


def try_one_step(run: Run) -> None:
    """Computes the losses of a first image (or of one category's references) before any long work.

    What does not fit together fails here.
    """
    run.method.configure_optimizers()  # where there is nothing to learn
    with torch.no_grad():
        run.method.losses(run.data.first_batch())


def _announce(run: Run, folder: Path) -> None:
    """Says and writes what is about to run; three training scenes beside their labels, where these are classes."""
    write_config(run.cfg, folder)
    say(f"{run.facts['method']} on {run.facts['backbone']}")
    say(run.facts["data"])
    say(f"output: {folder}")
    if run.cfg.train_on == "dataset" and is_first_process():
        scenes = [sample for sample in run.data.samples("train") if sample.kind == "semantic"][:3]
        if scenes:
            contact_sheet(scenes, folder / "scenes.png", columns=2)


def _untrained(run: Run, folder: Path, *, resuming: bool) -> dict[str, float]:
    """Means of the untrained head, where they are to be shown; a resumed run reads what it wrote at its start."""
    wanted = run.cfg.compare_untrained
    record = folder / "untrained.json"
    if (run.facts["random_weights"] if wanted is None else wanted) and not resuming:
        run.data.evaluations = 2
        build_trainer(run.cfg).test(run.method, datamodule=run.datamodule, verbose=False)
        means = run.method.evaluation.result.means
        if is_first_process():
            write_text(record, json.dumps(finite_or_none(means), indent=1) + "\n")
        return means
    return read_means(record) if record.is_file() else {}


def validated_side(cfg: DictConfig) -> Literal["val", "test"] | None:
    """The side that is evaluated after every epoch: what weights are chosen by, else a validation set where one is given.

    Raises:
        UserError: A callback watches a validation set that is not there, or would be shown the test set.
    """
    side: Literal["val", "test"] | None = {"best_val": "val", "best_test": "test"}.get(cfg.selection)  # type: ignore[assignment]
    for name, node in callback_nodes(cfg).items():
        if not str(node.get("monitor", "")).startswith("val/"):
            continue
        if side == "test":
            raise UserError(
                f"callbacks.{name} watches the validation set, and selection=best_test evaluates the test set: choose"
                " selection=last or best_val"
            )
        if cfg.dataset.val is None:
            raise UserError(f"callbacks.{name} watches a validation set: add source@dataset.val=NAME")
        side = "val"
    return "val" if side is None and cfg.dataset.val is not None else side


def savers(cfg: DictConfig, folder: Path, *, choosing: bool) -> list[Any]:
    """The state to resume from, every few steps; and the best epoch where one is chosen."""
    saver = partial(
        ModelCheckpoint,
        dirpath=folder / "checkpoints",
        enable_version_counter=False,
        auto_insert_metric_name=False,
        save_top_k=1,
    )
    savers = [saver(filename="last", every_n_train_steps=cfg.checkpoint.every_steps)]
    if choosing:
        savers.append(saver(filename="best", monitor=f"val/{cfg.selection_metric}", mode=mode_of(cfg.selection_metric)))
    return savers
