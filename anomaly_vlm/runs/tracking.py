"""The loggers of a run: made before any long work, told the whole configuration, closed whatever happens."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from anomaly_vlm.errors import UserError
from anomaly_vlm.files import write_text
from anomaly_vlm.reporting.console import is_first_process
from anomaly_vlm.reporting.record import environment
from anomaly_vlm.reporting.trackers import Logged, Tracker, tracker
from anomaly_vlm.runs.build import Run
from anomaly_vlm.runs.instantiate import instantiate
from anomaly_vlm.runs.run_names import name_run

RECORD = "tracking.json"  # in a run's folder: what another command needs to continue in the same run of a logger
PACKAGES = {"wandb": "wandb", "tensorboard": "tensorboard", "mlflow": "mlflow"}  # word of a target: package and extra
QUIET = {"WANDB_SILENT": "true", "MLFLOW_LOGGING_LEVEL": "WARNING"}  # a run says itself where its files are


@dataclass
class Tracking:
    """The loggers of one run.

    Attributes:
        trackers: One a logger; none on other processes than the first one of a distributed run.
        loggers: For Lightning's trainer, on every process.
        attached: Whether the loggers' run is that of a training which has ended before.
        started: Whether they know the configuration.
    """

    trackers: list[Tracker] = field(default_factory=list)
    loggers: list[Any] = field(default_factory=list)
    attached: bool = False
    started: bool = False

    def start(self, run: Run, folder: Path, command: str) -> None:
        """Logs the configuration and what the run is, and writes what another command needs to continue in it."""
        config = described(run, folder, command)
        if self.attached:
            config = {f"{command}/{key}": value for key, value in config.items()}
        self.started = True
        ids = {one.kind: found for one in self.trackers if (found := one.start(config))}
        if ids:
            write_text(folder / RECORD, json.dumps(ids, indent=1) + "\n")

    def finish(self, logged: Logged) -> None:
        """Logs what the run has found."""
        for one in self.trackers:
            one.finish(logged)

    def close(self, *, failed: bool) -> None:
        """Ends the loggers' runs, where any were started."""
        for one in self.trackers if self.started else []:
            one.close(failed=failed)


@contextmanager
def tracked(cfg: DictConfig, folder: Path, command: str, *, training: Path | None = None) -> Iterator[Tracking]:
    """The loggers of a run, which end with the block.

    Args:
        cfg: The run's configuration; names that it leaves open are filled in.
        folder: Existing folder of the run. A resumed training continues in its loggers' runs too.
        command: `train`, `evaluate`, `predict` or `fit`.
        training: Folder of the training whose weights are used, which `tracking.attach` asks for.

    Raises:
        UserError: A logger's package or key is missing, or there is no run to attach to; before any long work.
    """
    name_run(cfg, folder, command)
    attached = bool(cfg.tracking.attach) and command != "train"
    ids = _stored(training, cfg) if attached else _read(folder / RECORD) if command == "train" else {}
    found = Tracking(attached=attached)
    for node in cfg.logger.values():
        check_logger(node)
    if cfg.logger:
        quiet_loggers()
    for node in cfg.logger.values():
        kind = kind_of(node)
        kept = ids.get(kind, {})
        if attached and kind == "wandb":  # the training's own stay
            kept = {**kept, "name": None, "group": None, "job_type": None, "tags": None}
        found.loggers.append(instantiate(node, trusted=cfg.trust, **kept))
    found.trackers = [tracker(logger) for logger in found.loggers] if is_first_process() else []
    failed = True
    try:
        yield found
        failed = False
    finally:
        found.close(failed=failed)


def check_logger(node: DictConfig) -> None:
    """Raises a `UserError` where a logger lacks its package or its key."""
    kind = kind_of(node)
    if kind in PACKAGES and importlib.util.find_spec(PACKAGES[kind]) is None:
        raise UserError(
            f"logger={kind} needs the package {kind}: install it with pip install 'anomaly-vlm[{kind}]' (in a clone: make"
            f" setup EXTRAS={kind}), or use logger=csv"
        )
    if kind != "wandb":
        return
    online = not node.get("offline", False) and os.environ.get("WANDB_MODE", "online") == "online"
    if online and not (os.environ.get("WANDB_API_KEY") or (Path.home() / ".netrc").exists()):
        raise UserError("logger=wandb online needs a key: run 'wandb login', or set logger.wandb.offline=true")


def quiet_loggers() -> None:
    """Silences the loggers' own console output, unless the user has set these variables."""
    for variable, value in QUIET.items():
        os.environ.setdefault(variable, value)


def kind_of(node: DictConfig) -> str:
    """`wandb`, `tensorboard` or `mlflow`, by the logger's class; else the class's whole name."""
    target = str(node._target_)
    return next((kind for kind in PACKAGES if kind in target.lower()), target)


def described(run: Run, folder: Path, command: str) -> dict[str, Any]:
    """The whole configuration, resolved, by dotted keys, numbers as numbers; and what the run is beside it."""
    values = dict(_leaves(OmegaConf.to_container(run.cfg, resolve=True)))
    learnable = sum(one.numel() for one in run.method.learnable().values())
    here = environment()
    facts = {
        **{key: run.facts[key] for key in ("method", "backbone", "data")},
        "command": command,
        "overrides": list(run.cfg.get("sweep_overrides") or run.cfg.tracking.overrides),
        "parameters.learnable": learnable,
        "parameters.frozen": sum(one.numel() for one in run.method.parameters()) - learnable,
        "git": here["git"],
        "device": here["device"],
        "versions.torch": here["versions"]["torch"],
        "versions.anomaly_vlm": here["versions"]["anomaly_vlm"],
        "folder": str(folder.absolute()),
    }
    return {**values, **{f"run.{key}": value for key, value in facts.items()}}


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All values of nested mappings by dotted key; lists stay whole."""
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    elif prefix:
        yield prefix, node


def _stored(training: Path | None, cfg: DictConfig) -> dict[str, dict[str, Any]]:
    """What the folder of a training says about its loggers' runs, of the loggers that are asked for."""
    kinds = {kind_of(node) for node in cfg.logger.values()}
    found = {} if training is None else {kind: ids for kind, ids in _read(training / RECORD).items() if kind in kinds}
    if not found:
        where = "no checkpoint of a training is given" if training is None else f"'{training / RECORD}' names none"
        raise UserError(
            f"tracking.attach=true continues in the run of a training's logger, and {where}: give ckpt=FILE of a training"
            " with logger=wandb or mlflow and the same logger here, or leave tracking.attach out"
        )
    return found


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """The identities in a file that `Tracking.start` wrote; none where there is none."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"'{path}' is damaged ({error}): remove it to log anew") from error
    known = {"wandb": ("id", "project", "entity"), "mlflow": ("run_id",)}
    if not isinstance(content, Mapping):
        raise UserError(f"'{path}' is damaged (no table of loggers): remove it to log anew")
    return {
        kind: {key: value for key, value in ids.items() if key in known[kind] and isinstance(value, str)}
        for kind, ids in content.items()
        if kind in known and isinstance(ids, Mapping)
    }
