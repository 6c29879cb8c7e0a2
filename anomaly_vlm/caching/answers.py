"""Answers of a model stored on disk, so that a detector or a segmenter runs once for an image."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from anomaly_vlm.caching.entries import SUFFIX, Entry, read_entry, write_entry

log = logging.getLogger("anomaly_vlm")


class AnswerStore:
    """A folder of answers, shared by runs and processes.

    Args:
        folder: Where the answers lie, one file each.
        kind: What they are, for messages, such as `detections`.
    """

    def __init__(self, folder: str | Path, kind: str) -> None:
        self.folder, self.kind = Path(folder).expanduser(), kind
        self.hits = self.written = 0
        self._writing = True

    @staticmethod
    def digest(facts: Any, content: Iterable[bytes]) -> str:
        """The key of an answer: plain values that it depends on, and the bytes of images and boxes."""
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        for part in content:
            digest.update(part)
        return digest.hexdigest()

    def path(self, key: str) -> Path:
        """The file of an answer."""
        return self.folder / key[:2] / (key + SUFFIX)

    def read(self, key: str) -> Entry | None:
        """The tensors stored under a key; None where they are absent or damaged."""
        return read_entry(self.path(key))

    def damaged(self, key: str) -> None:
        """Says that an entry has another form than this version writes; it counts as absent."""
        log.warning("%s: '%s' is damaged and is computed anew", self.kind, self.path(key))

    def write(self, key: str, entry: Mapping[str, Tensor]) -> None:
        """Keeps tensors. Never raises: a folder that cannot be written is none."""
        if not self._writing:
            return
        try:
            path = self.path(key)
            path.parent.parent.mkdir(parents=True, exist_ok=True)
            write_entry(path, entry)
            self.written += 1
        except (OSError, SafetensorError) as error:
            log.warning("%s cannot be kept in '%s' (%s): this run continues without", self.kind, self.folder, error)
            self._writing = False
