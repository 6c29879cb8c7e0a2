"""Whether a folder holds this very run: what is there may be resumed, or kept, only then."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from anomaly_vlm.errors import UserError
from anomaly_vlm.names import shown
from anomaly_vlm.runs.trust import read_config

# What changes no number: where and how a run is shown, stored and fed.
WITHOUT_EFFECT = (
    "output_dir",
    "trust",
    "choices",
    "sweep_overrides",
    "sweep_varying",
    "measure_cost",
    "num_workers",
    "cache",
    "callbacks",
    "logger",
    "tracking",
    "pictures",
    "checkpoint",
    "trainer.log_every_n_steps",
    "trainer.enable_model_summary",
    "trainer.enable_progress_bar",
    "trainer.default_root_dir",
)


def differences(stored: DictConfig, asked: DictConfig) -> list[str]:
    """What differs between two configurations and matters: `epochs=2, now 3`, in the order of the keys."""
    old, new = (_flat(OmegaConf.to_container(cfg, resolve=True)) for cfg in (stored, asked))
    # A key that only repeats another one (`${epochs}`) is not named beside it.
    old_text, new_text = (_flat(OmegaConf.to_container(cfg, resolve=False)) for cfg in (stored, asked))
    keys = [key for key in dict.fromkeys([*old, *new]) if not _has_no_effect(key)]
    changed = [key for key in keys if old.get(key) != new.get(key) and old_text.get(key) != new_text.get(key)]
    return [f"{key}={_word(old.get(key))}, now {_word(new.get(key))}" for key in changed]


def config_key(cfg: DictConfig) -> str:
    """The same short text for configurations that differ in nothing that matters but their seed."""
    one = cfg.copy()
    one.seed = 0
    kept = [entry for entry in what_matters(one) if entry[0] != "seeds"]
    return hashlib.blake2b(repr(kept).encode(), digest_size=6).hexdigest()


def what_matters(cfg: DictConfig) -> list[tuple[str, str]]:
    """Keys and values that some number depends on, in a fixed order."""
    flat = _flat(OmegaConf.to_container(cfg, resolve=True))
    return sorted((key, repr(value)) for key, value in flat.items() if not _has_no_effect(key))


def check_same_run(cfg: DictConfig, folder: Path) -> None:
    """Raises a `UserError` that names the difference where `folder` holds something of another configuration."""
    config = folder / "config.yaml"
    if not _has_results(folder):
        return
    if not config.is_file():
        raise UserError(
            f"'{folder}' holds a run without its config.yaml, so that nobody knows which: give another output_dir"
        )
    found = differences(read_config(config, trusted=cfg.trust), cfg)
    if found:
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise UserError(
            f"'{folder}' holds another run ({'; '.join(found[:3])}{more}): give another output_dir, or resume that run"
            f" with resume={folder}"
        )


def is_finished(cfg: DictConfig, folder: Path) -> bool:
    """Whether a run of this configuration has ended in `folder` (which may have been moved since)."""
    if not ((folder / "metrics.json").is_file() and (folder / "config.yaml").is_file()):
        return False
    try:
        return not differences(read_config(folder / "config.yaml", trusted=cfg.trust), cfg)
    except UserError:
        return False


def _has_results(folder: Path) -> bool:
    names = ("metrics.json", "checkpoints/last.ckpt", "checkpoints/previous.ckpt")
    return any((folder / name).is_file() for name in names)


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves by dotted key."""
    if not isinstance(value, dict):
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, entry in value.items():
        found.update(_flat(entry, f"{prefix}.{key}" if prefix else str(key)))
    return found


def _has_no_effect(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in WITHOUT_EFFECT)


def _word(value: Any) -> str:
    return "null" if value is None else shown(value)[:60]
