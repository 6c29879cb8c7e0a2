"""Where caches lie on disk."""

from __future__ import annotations

import os
from pathlib import Path

AUTO = "auto"
DEFAULTS = {  # kind -> environment variable, folder without it
    "tokens": ("ANOMALY_VLM_CACHE", "~/.cache/anomaly_vlm/tokens"),
    "detections": ("ANOMALY_VLM_DETECTIONS", "~/.cache/anomaly_vlm/detections"),
    "unpacked": ("ANOMALY_VLM_UNPACKED", "~/.cache/anomaly_vlm/unpacked"),  # images of tables, for readers
}


def cache_folder(kind: str, folder: str | Path = AUTO) -> Path:
    """The folder of a cache.

    Args:
        kind: `tokens`, `detections` or `unpacked`.
        folder: As the user gave it; `auto` for the environment's, or a folder below the home directory.
    """
    if str(folder) == AUTO:
        variable, default = DEFAULTS[kind]
        folder = os.environ.get(variable) or default
    return Path(folder).expanduser()
