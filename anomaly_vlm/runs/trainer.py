"""The trainer of a run, and what this machine has for it."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator
from lightning.pytorch.callbacks import Callback, LearningRateMonitor
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, ListConfig

from anomaly_vlm.errors import UserError, unknown_choice
from anomaly_vlm.reporting.console import say
from anomaly_vlm.reporting.progress import progress_bar
from anomaly_vlm.runs.instantiate import check_options, instantiate
from anomaly_vlm.runs.processes import watch
from anomaly_vlm.runs.saving import WholeCheckpoints
from anomaly_vlm.runs.stop_point import StopPoint

OWN_KEYS = {  # of Lightning's trainer, and where to say it instead
    "callbacks": "add your own with callbacks.extra",
    "logger": "choose one with logger=NAME",
    "default_root_dir": "set output_dir",
    "enable_checkpointing": "see checkpoint.every_steps and selection",
    "enable_progress_bar": "set callbacks.progress",
    "gradient_clip_val": "set gradient_clip",
}


def build_trainer(
    cfg: DictConfig,
    *,
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[Logger] = (),
    fitting: bool = False,
    validating: bool = False,
    last: Path | None = None,
) -> L.Trainer:
    """A trainer as the configuration says.

    Args:
        cfg: The run's configuration.
        callbacks: Of the run, besides the progress bar.
        loggers: See `runs.tracking`.
        fitting: Whether it trains: the callbacks that the configuration names are there only then.
        validating: Whether an epoch is chosen; without it there is no validation loop.
        last: The state to go on from, which is also written where the training is stopped.

    Raises:
        UserError: The trainer does not fit this machine.
    """
    bar = progress_bar(cfg.callbacks.progress)
    extra = own_callbacks(cfg) if fitting else []
    if any(isinstance(callback, LearningRateMonitor) for callback in extra) and not loggers:
        raise UserError("callbacks=lr_monitor writes to a logger: choose logger=csv or another one")
    quiet_lightning()
    options: dict[str, Any] = {} if validating or not fitting else {"limit_val_batches": 0}
    options["plugins"] = [*_plugins(cfg), WholeCheckpoints()]
    watch()
    _fit_precision(cfg)
    if fitting and cfg.gradient_clip is not None:
        options["gradient_clip_val"] = cfg.gradient_clip
    try:
        trainer: L.Trainer = instantiate(
            cfg.trainer,
            trusted=cfg.trust,
            callbacks=[StopPoint(last), *callbacks, *([bar] if bar is not None else []), *extra],
            logger=list(loggers) or False,
            enable_progress_bar=bar is not None,
            enable_checkpointing=any(type(callback).__name__ == "ModelCheckpoint" for callback in callbacks),
            **options,
        )
    except MisconfigurationException as error:
        reason = " ".join(str(error).split())
        raise UserError(f"the trainer does not fit this machine ({reason}): change trainer=... or its keys") from error
    return trainer


def own_callbacks(cfg: DictConfig) -> list[Callback]:
    """The callbacks that a configuration names, besides the progress bar."""
    return [instantiate(node, trusted=cfg.trust) for node in callback_nodes(cfg).values()]


def callback_nodes(cfg: DictConfig) -> dict[str, Any]:
    """The nodes of callbacks by name; those of `extra` by their number."""
    named = {str(key): node for key, node in cfg.callbacks.items() if isinstance(node, DictConfig)}
    return {**named, **{f"extra.{i}": node for i, node in enumerate(cfg.callbacks.extra)}}


def _plugins(cfg: DictConfig) -> list[Any]:
    """Lightning plugins of the user's own."""
    nodes = cfg.trainer.get("plugins")
    if nodes is None:
        return []
    return [instantiate(node, trusted=cfg.trust) for node in (nodes if isinstance(nodes, ListConfig) else [nodes])]


def check_keys(cfg: DictConfig) -> None:
    """Raises a `UserError` for a key that the trainer, the optimiser, its schedule or a callback does not have.

    The same of a key of the trainer that the run sets itself.
    """
    known = set(inspect.signature(L.Trainer.__init__).parameters) - {"self", *OWN_KEYS}
    for key in cfg.trainer:
        if key in OWN_KEYS:
            raise UserError(f"trainer.{key} is set by the run itself: {OWN_KEYS[str(key)]}")
        if key != "_target_" and key not in known:
            raise unknown_choice("key of trainer", str(key), known)
    nodes = {name: cfg.get(name) for name in ("optimizer", "scheduler")}
    nodes.update({f"callbacks.{name}": node for name, node in callback_nodes(cfg).items()})
    for name, node in nodes.items():
        if node:
            check_options(node, name, trusted=cfg.trust)


def _fit_precision(cfg: DictConfig) -> None:
    """Runs 16-mixed as bf16-mixed where no GPU is used: no CPU has the operations of the former."""
    on_gpu = cfg.trainer.accelerator != "cpu" and (CUDAAccelerator.is_available() or MPSAccelerator.is_available())
    if cfg.trainer.precision == "16-mixed" and not on_gpu:
        say("trainer.precision=16-mixed needs a GPU: runs in bf16-mixed")
        cfg.trainer.precision = "bf16-mixed"


def flush_denormals() -> None:
    """Lets the CPU count numbers below 1e-38 as 0.

    Where a loss is nearly 0, squares of its gradients are that small, and the square root of AdamW's moments then takes 80
    times as long. To be called before the first operation: math libraries read the setting once.
    """
    torch.set_flush_denormal(True)


def lacks_gpu(cfg: DictConfig) -> bool:
    """Whether the trainer asks for a GPU that this machine does not have."""
    here = CUDAAccelerator.is_available() or MPSAccelerator.is_available()
    return cfg.trainer.accelerator in ("gpu", "cuda") and not here


def check_gpu(cfg: DictConfig) -> None:
    """Raises a `UserError` where the trainer asks for a GPU that is not here."""
    if lacks_gpu(cfg):
        raise UserError(
            f"trainer.accelerator={cfg.trainer.accelerator}, but no GPU is here: use trainer=auto or trainer=cpu, or install"
            " a torch that sees the GPU"
        )


def fit_machine(cfg: DictConfig, *, processes: bool) -> None:
    """Changes a stored trainer to what is here, in one line where that changes numbers.

    Args:
        cfg: A stored configuration; without its GPU it goes on with the CPU in float32.
        processes: Whether several processes are allowed.
    """
    absent = lacks_gpu(cfg)
    if absent:
        say("trained on a GPU, none is here: goes on with the CPU in float32 (trainer=... chooses another)")
        cfg.trainer.accelerator, cfg.trainer.precision = "cpu", "32-true"
    if absent or not processes:
        cfg.trainer.devices = 1
        cfg.trainer.pop("strategy", None)


def quiet_lightning() -> None:
    """Silences Lightning's advice about workers, devices and services, which nobody asked for."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*in eval mode at the start of training.*",  # the frozen towers; that is meant
        ".*Checkpoint directory .* exists and is not empty.*",  # a resumed run's own
        ".*The dirpath has changed.*",  # a run's folder may be moved
        ".*It is recommended to use `self.log.*sync_dist=True.*",  # the loss that a process sees is its own
        ".*smaller than the logging interval.*",
        ".*Total length of `list` across ranks is zero.*",  # no validation, in a trial run
        ".*You requested to overfit but enabled train dataloader shuffling.*",
        ".*The .grad attribute of a Tensor that is not a leaf.*",  # read by torch.compile itself
        ".*does not have many workers.*",
        ".*Consider setting `persistent_workers=True`.*",
        ".*`isinstance.treespec, LeafSpec.` is deprecated.*",
    ):
        warnings.filterwarnings("ignore", message)
