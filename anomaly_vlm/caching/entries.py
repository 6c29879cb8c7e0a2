"""One entry of a cache on disk: tensors in a file that is written whole, and checked when it is read.

It is written beside its place and moved there, so that a kill in mid-write, a full disk, or two processes at work on one
folder leave no half entry. A checksum reveals a damaged entry, which then counts as absent.
"""

from __future__ import annotations

import logging
import os
import threading
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

log = logging.getLogger("anomaly_vlm")
SUFFIX = ".safetensors"
Entry = dict[str, Tensor]


def write_entry(path: Path, entry: Mapping[str, Tensor]) -> None:
    """Writes an entry whole: a reader sees all of it or nothing."""
    path.parent.mkdir(exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}.unfinished")
    try:
        save_file(dict(entry), unfinished, metadata={"crc32": str(checksum(entry))})
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def read_entry(path: Path) -> Entry | None:
    """An entry, memory-mapped; None where it is absent or damaged (a damaged file is removed)."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            entry = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            stored = (file.metadata() or {}).get("crc32")
    except (OSError, SafetensorError):
        entry, stored = {}, None
    if stored is None or stored != str(checksum(entry)):
        log.warning("cache entry '%s' is damaged and is computed anew", path)
        path.unlink(missing_ok=True)
        return None
    return entry


def checksum(entry: Mapping[str, Tensor]) -> int:
    """CRC-32 of names, shapes, types and bytes."""
    value = 0
    for name in sorted(entry):
        tensor = entry[name]
        value = zlib.crc32(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode(), value)
        value = zlib.crc32(tensor.contiguous().view(torch.uint8).numpy().data, value)
    return value
