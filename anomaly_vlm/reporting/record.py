"""What a run writes for machines: `metrics.json`, with the facts that make it repeatable."""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import anomaly_vlm
from anomaly_vlm.files import write_text

PACKAGES = (
    "torch",
    "torchvision",
    "lightning",
    "open_clip_torch",
    "torchmetrics",
    "hydra-core",
    "kornia",
    "numpy",
    "scikit-learn",
)


def environment() -> dict[str, Any]:
    """Versions, device and, in a clone, the git revision (with `+changes` where the tree differs from it)."""
    versions = {"python": platform.python_version(), "anomaly_vlm": anomaly_vlm.__version__}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {"versions": versions, "device": device, "threads": torch.get_num_threads(), "git": git_revision()}


def git_revision() -> str | None:
    """Short revision of the clone that the package lies in, or None outside one."""
    folder = Path(anomaly_vlm.__file__).parent.parent
    if not (folder / ".git").exists():
        return None
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty=+changes", "--exclude=*"],
            cwd=folder, capture_output=True, text=True, timeout=10, check=True,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None


def finite_or_none(value: Any) -> Any:
    """JSON has no NaN: numbers that are not finite become null, in nested containers too."""
    if isinstance(value, Mapping):
        return {str(key): finite_or_none(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_none(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_metrics(path: Path, results: Mapping[str, float], facts: Mapping[str, Any]) -> None:
    """Writes `{"results": ..., **facts}` as JSON, whole or not at all (a kill in mid-write leaves the old file)."""
    text = json.dumps(finite_or_none({**facts, "results": dict(results)}), indent=2, ensure_ascii=False, default=str)
    write_text(path, text + "\n")
