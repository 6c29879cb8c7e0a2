"""Training, then evaluation: composes the parts and lets Lightning run them."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger
from omegaconf import DictConfig, OmegaConf

from anomaly_vlm.errors import UserError
from anomaly_vlm.methods.base.checkpoints import read_tensors
from anomaly_vlm.reporting.console import is_first_process, say
from anomaly_vlm.reporting.sheet import contact_sheet
from anomaly_vlm.runs.build import Parts, build, build_trainer, fit_references, load_any
from anomaly_vlm.runs.detect import precompute_detections
from anomaly_vlm.runs.outcome import write_outcome


def fit(cfg: DictConfig, folder: Path) -> float:
    """Trains (or goes on training), evaluates and writes everything into `folder`.

    Returns:
        Mean of `selection_metric` on the test set, for sweepers.
    """
    started = time.monotonic()
    seed_everything(cfg.seed, verbose=False)
    used = {"train": cfg.train_on == "dataset", "test": True, "val": cfg.dataset.val is not None}
    parts = build(cfg, sides=tuple(side for side, wanted in used.items() if wanted))
    method, data = parts.method, parts.data
    if cfg.selection != "last":
        data.selection_side = "val" if cfg.selection == "best_val" else "test"
    if cfg.init:
        load_any(method, cfg.init)
    validating = data.selection_side is not None
    trainer = build_trainer(cfg, callbacks=_savers(cfg, folder, validating), fitting=True, validating=validating)
    last = folder / "checkpoints" / "last.ckpt"
    if is_first_process():
        OmegaConf.save(cfg, folder / "config.yaml")
    say(f"{parts.facts['method']} on {parts.facts['backbone']}")
    say(parts.facts["data"])
    say(f"output: {folder}")
    fit_references(parts, folder)
    if used["train"] and is_first_process():
        show_labels(parts, folder)
    learns = cfg.train_on != "nothing"
    if learns:
        try_one_step(parts)
    precompute_detections(parts, *dict.fromkeys(("test", data.selection_side or "test")))
    untrained = _untrained(cfg, folder, parts, resuming=last.is_file()) if learns else {}

    for logger in trainer.loggers:
        logger.log_hyperparams({key: str(parts.facts[key]) for key in ("method", "backbone", "data", "seed")})
    resume = str(last) if learns and last.is_file() else None
    if resume:
        say(f"resuming from {last}")
        method.check_learned(read_tensors(last)["state_dict"], f"checkpoint '{last}'")
    if learns:
        try:
            trainer.fit(method, datamodule=data, ckpt_path=resume, weights_only=True)
        except SystemExit:  # how Lightning ends after Ctrl-C
            if trainer.interrupted:
                say(f"interrupted; 'make train RESUME={folder}' goes on")
                raise KeyboardInterrupt from None
            raise
        trainer.save_checkpoint(last, weights_only=False)
    chosen = _choose(cfg, parts, folder) if learns else last

    tester = trainer if trainer.world_size > 1 else build_trainer(cfg, callbacks=[])
    tester.test(method, datamodule=data, verbose=False)
    if not learns:
        last.parent.mkdir(exist_ok=True)
        tester.save_checkpoint(last, weights_only=False)  # the memory, for `predict`
    results = method.evaluation.result.values
    for logger in trainer.loggers:
        logger.log_metrics({f"test/{k.removeprefix('mean/')}": v for k, v in results.items() if k.startswith("mean/")})
        logger.finalize("success")
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()  # or the next run of this process (seeds, sweeps) would go on writing into this one
    if is_first_process():
        facts = {
            **parts.facts,
            "checkpoint": str(chosen.relative_to(folder)),
            "selection": cfg.selection if learns else None,
            "choices": dict(cfg.choices),
            "overrides": list(cfg.get("sweep_overrides") or []),
            "seconds": round(time.monotonic() - started, 1),
        }
        if untrained:
            facts["untrained"] = {key.removeprefix("mean/"): value for key, value in untrained.items()}
        write_outcome(cfg, folder, parts, results, facts)
    return results.get(f"mean/{cfg.selection_metric}", float("nan"))


def show_labels(parts: Parts, folder: Path) -> None:
    """Three training scenes beside their labels, where these are classes: what was learned from, at a glance."""
    samples = [sample for sample in parts.data.samples("train") if sample.kind == "semantic"][:3]
    if samples:
        contact_sheet(samples, folder / "scenes.png", columns=2)


def try_one_step(parts: Parts) -> None:
    """The losses of a first image (or of one category's references), before any long work: what does not fit together says
    so now."""
    parts.method.configure_optimizers()  # where there is nothing to learn
    with torch.no_grad():
        parts.method.losses(parts.data.first_batch())


def _untrained(cfg: DictConfig, folder: Path, parts: Parts, *, resuming: bool) -> dict[str, float]:
    """Means of the untrained head, where they are to be shown; a resumed run reads what it wrote at its start."""
    wanted = parts.facts["random_weights"] if cfg.compare_untrained is None else cfg.compare_untrained
    record = folder / "untrained.yaml"
    if wanted and not resuming:
        build_trainer(cfg, callbacks=[]).test(parts.method, datamodule=parts.data, verbose=False)
        means = {key: value for key, value in parts.method.evaluation.result.values.items() if key.startswith("mean/")}
        if is_first_process():
            OmegaConf.save({"untrained": means}, record)
        return means
    return dict(OmegaConf.load(record).untrained) if record.is_file() else {}


def _savers(cfg: DictConfig, folder: Path, validating: bool) -> list[Any]:
    """The state to resume from, every few steps; and the best epoch where one is chosen."""
    saver = partial(
        ModelCheckpoint,
        dirpath=folder / "checkpoints",
        enable_version_counter=False,
        auto_insert_metric_name=False,
        save_top_k=1,
    )
    savers = [saver(filename="last", every_n_train_steps=cfg.checkpoint.every_steps)]
    if validating:
        savers.append(saver(filename="best", monitor=f"val/{cfg.selection_metric}", mode="max"))
    return savers


def _choose(cfg: DictConfig, parts: Parts, folder: Path) -> Path:
    """Puts the weights that `selection` names into the method."""
    last, best = folder / "checkpoints" / "last.ckpt", folder / "checkpoints" / "best.ckpt"
    if cfg.selection == "last":
        return last
    if not best.is_file():
        raise UserError(
            f"selection={cfg.selection}: no best checkpoint, as val/{cfg.selection_metric} was never a number:"
            " choose a selection_metric that the set has labels for"
        )
    parts.method.load_state_dict(read_tensors(best)["state_dict"], strict=False)
    return best
