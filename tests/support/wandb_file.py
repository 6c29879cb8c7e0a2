"""Reads the file of an offline wandb run back: a log of records in LevelDB's format, each a protocol buffer."""

from __future__ import annotations

import json
import struct
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BLOCK, HEAD = 32768, 7  # bytes: of a block; of the head in front of each piece (checksum, length, kind)
PATIENCE = 60.0  # seconds
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class WandbFile:
    """What an offline run holds.

    Attributes:
        run: The run's own record: `display_name`, `run_group`, `job_type`, `tags`, `run_id`, `project`.
        config: By key.
        history: A row for each call of `log`.
        exit_code: None for a run that was not finished.
    """

    run: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    exit_code: int | None = None

    @property
    def logged(self) -> dict[str, Any]:
        """The last value of every name."""
        return {key: value for row in self.history for key, value in row.items()}


def wandb_files(folder: Path) -> list[WandbFile]:
    """All finished runs below a folder, in the order of their names; wandb's own process may still be writing them."""
    until = time.monotonic() + PATIENCE
    while True:
        found = [read_wandb_file(path) for path in sorted(folder.rglob("run-*.wandb"))]
        if (found and all(one.exit_code is not None for one in found)) or time.monotonic() > until:
            return found
        time.sleep(0.1)


def read_wandb_file(path: Path) -> WandbFile:
    from wandb.proto import wandb_internal_pb2

    found = WandbFile()
    for piece in records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(piece)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found.run = record.run
            _update(found.config, record.run.config.update)
        elif kind == "config":
            _update(found.config, record.config.update)
        elif kind == "history":
            found.history.append({_key(item): json.loads(item.value_json) for item in record.history.item})
        elif kind == "exit":
            found.exit_code = record.exit.exit_code
    return found


def records(content: bytes) -> list[bytes]:
    """The records of a log; a head of the file's own comes before the first one."""
    assert content[:4] in (b":W&B", b"")
    found, parts, place = [], b"", HEAD
    while place + HEAD <= len(content):
        if BLOCK - place % BLOCK < HEAD:  # too short for a head: filled up
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + HEAD])
        piece = content[place + HEAD : place + HEAD + length]
        place += HEAD + length
        if kind == WHOLE:
            found.append(piece)
        elif kind in (FIRST, MIDDLE):
            parts += piece
        elif kind == LAST:
            found.append(parts + piece)
            parts = b""
    return found


def _update(config: dict[str, Any], items: Any) -> None:
    config.update({_key(item): json.loads(item.value_json) for item in items})


def _key(item: Any) -> str:
    return item.key or ".".join(item.nested_key)
