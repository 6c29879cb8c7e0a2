"""Configurations that a run or a checkpoint carries, with what the user changes on top."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from anomaly_vlm.errors import UserError
from anomaly_vlm.files import unique_folder, write_text
from anomaly_vlm.runs.checks import check_values, not_writable, writable_folder
from anomaly_vlm.runs.compose import compose, merge_overrides, parse
from anomaly_vlm.runs.config_types import check_types
from anomaly_vlm.runs.inherited import drop_limits_of_training
from anomaly_vlm.runs.trust import read_config

FOLDER_VARIABLE = "ANOMALY_VLM_RUN_FOLDER"  # tells the other processes of a DDP run where the first one writes


def run_folder(cfg: DictConfig, overrides: Sequence[str]) -> Path:
    """Makes the run's folder and names it in the configuration; the processes of a DDP run share the first one's.

    A folder that the user has not named is new: of two runs that start in the same second each gets its own.
    """
    shared = os.environ.get(FOLDER_VARIABLE)
    named = any(word.lstrip("+").startswith("output_dir=") for word in overrides)
    if shared is None and not named:
        try:
            cfg.output_dir = str(unique_folder(cfg.output_dir))
        except OSError as error:
            raise not_writable(cfg.output_dir, error) from error
    folder = writable_folder(shared or cfg.output_dir)
    cfg.output_dir = str(folder)
    return folder


def write_config(cfg: DictConfig, folder: Path) -> None:
    """Writes `config.yaml` into a run's folder, whole, from the first process alone."""
    from anomaly_vlm.reporting.console import is_first_process

    if is_first_process():
        write_text(folder / "config.yaml", OmegaConf.to_yaml(cfg))


@contextmanager
def shared_with_children(folder: Path) -> Iterator[None]:
    """Processes that are started meanwhile write into the same folder."""
    os.environ[FOLDER_VARIABLE] = str(folder)
    try:
        yield
    finally:
        os.environ.pop(FOLDER_VARIABLE, None)


def resumed(folder: Path, overrides: Sequence[str]) -> DictConfig:
    """The configuration of a stopped run with overrides on top, such as more epochs.

    Args:
        folder: Of the run; it is where the run resumes.
        overrides: Method, backbone, data and loss stay.

    Raises:
        UserError: The folder holds no run, or its configuration names foreign code.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(f"resume={folder}: no config.yaml in there: give the folder of a run that 'train' started")
    stored = read_config(path, trusted=trusted_packages(overrides))
    check_types(stored, source=f"'{path}': ")
    cfg = merge_overrides(stored, overrides, fixed=("method", "backbone", "dataset", "loss"))
    check_values(cfg)
    cfg.output_dir = str(writable_folder(folder))
    return cfg


def from_checkpoint(stored: DictConfig, overrides: Sequence[str], command: str, *, has_memory: bool) -> DictConfig:
    """A checkpoint's configuration for `evaluate`, `predict` or `fit`; data, trainer and batch size may change.

    Args:
        stored: As the checkpoint carries it.
        overrides: Of the user.
        command: Names the output folder.
        has_memory: Whether the checkpoint holds its reference images, so that no list of them is read.
    """
    from anomaly_vlm.runs.devices import adapt_to_machine

    cfg = merge_overrides(stored, overrides, fixed=("method", "backbone", "loss"))
    if has_memory:
        cfg.shots_list = None
    drop_limits_of_training(cfg, overrides, keep_subset=has_memory or command == "predict")
    if not any(word.startswith("trainer") for word in overrides):
        adapt_to_machine(cfg, processes=command == "evaluate")
    if not any(word.startswith("output_dir=") for word in overrides):
        cfg.output_dir = f"outputs/{command}/{cfg.name}/{timestamp()}"
    return checked(cfg, overrides)


def composed(overrides: Sequence[str]) -> DictConfig:
    """A new configuration, checked."""
    return checked(compose(overrides), overrides)


def checked(cfg: DictConfig, overrides: Sequence[str] = ()) -> DictConfig:
    """The configuration after its checks, with the time in its output folder fixed and the overrides for loggers."""
    check_values(cfg)
    OmegaConf.update(cfg, "tracking.overrides", list(overrides), force_add=True)
    cfg.output_dir = str(cfg.output_dir)
    return cfg


def trusted_packages(overrides: Sequence[str]) -> list[str]:
    """The packages that `trust=[...]` on the command line names."""
    found: list[str] = []
    for override in parse(overrides):
        if override.key_or_group == "trust":
            value = override.value()
            found = [str(name) for name in (value if isinstance(value, list) else [value])]
    return found


def timestamp() -> str:
    """Now, for folder names."""
    return datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
