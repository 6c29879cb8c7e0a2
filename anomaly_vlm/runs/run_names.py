"""How loggers name a run, so that a dashboard tells runs apart: the node `tracking` of a configuration."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from anomaly_vlm.names import shortest_names

TRACKING: dict[str, Any] = {  # the node of the same name while nobody has filled it in; older configurations lack it
    "name": None, "group": None, "job_type": None, "tags": [], "attach": False, "overrides": [],
}  # fmt: skip
LONGEST_NAME = 128  # characters; wandb takes no more
LEFT_OUT = ("method", "logger", "output_dir")  # overrides that a name does not repeat


def unnamed(tracking: Any) -> dict[str, Any]:
    """The node `tracking` of a training for a run of another command: its group and tags."""
    stored = tracking if isinstance(tracking, dict) else {}
    return {**TRACKING, **{key: stored[key] for key in ("group", "tags") if key in stored}}


def name_run(cfg: DictConfig, folder: Path, command: str) -> None:
    """Fills in what `tracking` leaves open: group, job type and name."""
    group_run(cfg, folder.absolute().parent if cfg.get("sweep_overrides") else None)
    cfg.tracking.job_type = cfg.tracking.job_type or command
    cfg.tracking.name = cfg.tracking.name or run_name(cfg)


def group_run(cfg: DictConfig, together: Path | None) -> None:
    """Names the group of a run where nobody has: the last two parts of the folder of all runs that belong together."""
    with open_dict(cfg):
        cfg.tracking = OmegaConf.merge(TRACKING, cfg.get("tracking") or {})
    if together is not None and cfg.tracking.group is None and "WANDB_SWEEP_ID" not in os.environ:
        cfg.tracking.group = "/".join(together.absolute().parts[-2:])


def run_name(cfg: DictConfig) -> str:
    """`adaclip depth=4 length=2 seed=1` in a sweep, by what varies; else method, data and seed."""
    words = list(cfg.get("sweep_varying") or cfg.get("sweep_overrides") or _agent_words())
    pairs = [word.lstrip("+~").partition("=") for word in words]
    parts = {key: value for key, _, value in pairs if key not in LEFT_OUT}
    if not parts:
        return f"{cfg.name} {cfg.dataset.name} seed={cfg.seed}"[:LONGEST_NAME]
    short = shortest_names(list(parts))
    named = {**{short[key]: value for key, value in parts.items()}, "seed": cfg.seed}
    return " ".join([str(cfg.name), *(f"{key}={value}" for key, value in named.items())])[:LONGEST_NAME]


def _agent_words() -> list[str]:
    """The parameters of a run that wandb's own agent has started, as overrides."""
    path = os.environ.get("WANDB_SWEEP_PARAM_PATH")
    if not path or not Path(path).is_file():
        return []
    content: Any = OmegaConf.to_container(OmegaConf.load(path))
    params = content if isinstance(content, dict) else {}
    return [f"{key}={one['value']}" for key, one in params.items() if isinstance(one, dict) and "value" in one]
