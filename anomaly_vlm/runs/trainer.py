"""The trainer of a run, and what this machine has for it."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, LearningRateMonitor
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins import TorchCheckpointIO
from omegaconf import DictConfig, ListConfig

from anomaly_vlm.errors import UserError, unknown_choice
from anomaly_vlm.methods.base.checkpoints import read_tensors
from anomaly_vlm.reporting.progress import progress_bar
from anomaly_vlm.runs.devices import adapt_precision
from anomaly_vlm.runs.instantiate import check_options, instantiate
from anomaly_vlm.runs.processes import watch
from anomaly_vlm.runs.saving import write_checkpoint
from anomaly_vlm.runs.stop_point import StopPoint

OWN_KEYS = {  # of Lightning's trainer, and where to say it instead
    "callbacks": "add your own with callbacks.extra",
    "logger": "choose one with logger=NAME",
    "default_root_dir": "set output_dir",
    "enable_checkpointing": "see checkpoint.every_steps and selection",
    "enable_progress_bar": "set callbacks.progress",
    "gradient_clip_val": "set gradient_clip",
}


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning's checkpoints, written by `write_checkpoint`.

    Lightning's own writer goes through the system's folder for temporary files: where that is another file system, a kill
    leaves half a file.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Writes a checkpoint whole; `storage_options` is Lightning's and not used."""
        write_checkpoint(checkpoint, Path(path))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Reads a checkpoint of tensors and plain containers, whatever `weights_only` says."""
        return read_tensors(Path(path))


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
        last: The state to resume from, which is also written where the training is stopped.

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
    adapt_precision(cfg)
    if fitting and cfg.gradient_clip is not None:
        options["gradient_clip_val"] = cfg.gradient_clip
    try:
        trainer: L.Trainer = instantiate(
            cfg.trainer,
            trusted=cfg.trust,
            callbacks=[*callbacks, *([bar] if bar is not None else []), *extra, StopPoint(last)],
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
    if str(cfg.trainer.get("strategy", "")).startswith(("fsdp", "deepspeed", "model_parallel")):
        raise UserError(
            f"trainer.strategy={cfg.trainer.strategy} shards weights, and methods drive their frozen towers block by block:"
            " use trainer=ddp; what learns is small, and a ViT-L takes 1.2 GB on each GPU"
        )
    nodes = {name: cfg.get(name) for name in ("optimizer", "scheduler")}
    nodes.update({f"callbacks.{name}": node for name, node in callback_nodes(cfg).items()})
    for name, node in nodes.items():
        if node:
            check_options(node, name, trusted=cfg.trust)


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
