"""Cache of frozen tokens: what a frozen tower makes of an image, computed once and read again by later epochs and runs.

One file an image, written beside its place and moved there whole, so that a kill in mid-write, a full disk, or two processes
at work on the same folder leave no half entry. Every entry carries a checksum: a damaged one counts as absent.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from anomaly_vlm.caching.entries import SUFFIX, Entry, read_entry, write_entry
from anomaly_vlm.files import write_text

log = logging.getLogger("anomaly_vlm")
ABOUT = "about.json"
_counting = Lock()  # of bytes and entries; not a part of a cache, as it could not be sent to another process
RECENT = 3600  # seconds within which another process may still be at work on something


class TokenCache:
    """Entries of one kind of tokens, in memory and, where a folder is given, on disk.

    Args:
        about: Everything that the tokens depend on but the image (weights, preprocessing, layers, attention path,
            dtype); plain values. Entries of another `about` are never read.
        folder: Folder of all caches, shared by runs and processes; None: memory alone.
        disk_bytes: Budget of `folder`, all caches together; least recently used other caches give way first.
        memory_bytes: Budget of this process.
    """

    def __init__(
        self,
        about: Mapping[str, Any],
        *,
        folder: Path | None = None,
        disk_bytes: int = 20 * 10**9,
        memory_bytes: int = 0,
    ) -> None:
        self.about = json.dumps(about, sort_keys=True)
        self.name = folder_name(self.about)
        self.place = None if folder is None else Path(folder).expanduser() / self.name
        self.disk_bytes, self.memory_bytes = disk_bytes, memory_bytes
        self._memory: dict[str, Entry] = {}
        self._in_memory = 0
        self._left = 0  # bytes that may still be written
        self._writing = False
        self.written = self.hits = 0
        if self.place is not None:
            self._open(self.place)

    def _open(self, place: Path) -> None:
        try:
            place.mkdir(parents=True, exist_ok=True)
            write_text(place / ABOUT, self.about + "\n")  # also marks the time of the last use
            for path in place.glob("*/*.unfinished"):
                if time.time() - path.stat().st_mtime > RECENT:  # left by a killed process
                    path.unlink(missing_ok=True)
            self._left = self.disk_bytes - make_room(place.parent, self.disk_bytes, protect=place)
            self._writing = True
        except OSError as error:
            self._give_up(error)

    # ---- reading -----------------------------------------------------------------------------------------------------

    def get(self, key: str | None) -> Entry | None:
        """The tokens of the image that `key` names, or None."""
        if key is None:
            return None
        if (entry := self._memory.get(key)) is None and self.place is not None:
            entry = read_entry(self._path(self.place, key))
            if entry is not None:
                self._remember(key, entry)
        with _counting:
            self.hits += entry is not None
        return entry

    def _path(self, place: Path, key: str) -> Path:
        return place / key[:2] / (key + SUFFIX)

    def _remember(self, key: str, entry: Entry) -> None:
        size = sum(tensor.nbytes for tensor in entry.values())
        with _counting:
            if key not in self._memory and self._in_memory + size <= self.memory_bytes:
                self._memory[key] = entry
                self._in_memory += size

    # ---- writing -----------------------------------------------------------------------------------------------------

    def put(self, key: str | None, entry: Mapping[str, Tensor]) -> None:
        """Keeps the tokens of an image, within the budgets. Never raises: a cache that cannot be written is none."""
        if key is None or key in self._memory:
            return
        plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in entry.items()}
        self._remember(key, plain)
        if self.place is None or not self._writing:
            return
        size = sum(tensor.nbytes for tensor in plain.values())
        if size > self._left:
            log.warning(
                "the token cache has reached its budget of %.1f GB: the rest is computed anew", self.disk_bytes / 1e9
            )
            self._writing = False
            return
        try:
            write_entry(self._path(self.place, key), plain)
        except (OSError, SafetensorError) as error:
            self._give_up(error)
        else:
            with _counting:
                self._left -= size
                self.written += 1

    def _give_up(self, error: Exception) -> None:
        log.warning("the token cache in '%s' cannot be written (%s): this run continues without it", self.place, error)
        self._writing = False


# ---- all caches of a folder ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CacheInfo:
    """One cache on disk: its folder, what its tokens are, entries, bytes, and when it was opened last (seconds)."""

    place: Path
    about: dict[str, Any]
    entries: int
    bytes: int
    used: float


def list_caches(folder: Path) -> list[CacheInfo]:
    """The caches below `folder`, least recently used first.

    A folder is one only where its name is the digest of its own `about.json`; others, whatever they hold, are not ours.
    """
    found = []
    for mark in Path(folder).expanduser().glob(f"*/{ABOUT}"):
        try:
            text = mark.read_text(encoding="utf-8")
            about, used = json.loads(text), mark.stat().st_mtime
        except (OSError, ValueError, RecursionError):
            continue
        if (
            mark.parent.name != folder_name(text.rstrip("\n"))
            or not isinstance(about, dict)
            or mark.parent.is_symlink()
        ):
            continue
        sizes = []
        for path in mark.parent.glob(f"*/*{SUFFIX}"):
            try:
                sizes.append(path.stat().st_size)
            except OSError:
                continue  # another process has just removed it
        found.append(CacheInfo(mark.parent, about, len(sizes), sum(sizes), used))
    return sorted(found, key=lambda info: info.used)


def make_room(folder: Path, budget: int, *, protect: Path) -> int:
    """Removes least recently used caches other than `keep` until the rest fits into `budget` bytes.

    Returns:
        Bytes in use afterwards.
    """
    caches = list_caches(folder)
    used = sum(info.bytes for info in caches)
    for info in caches:
        if used <= budget:
            break
        if info.place != protect and time.time() - info.used > RECENT:  # not one that another run has just opened
            clear(info)
            used -= info.bytes
    return used


def clear(info: CacheInfo) -> None:
    """Removes what a cache wrote, and its folders where nothing else is left in them.

    Processes that read it meanwhile compute anew.
    """
    written = [*info.place.glob(f"??/*{SUFFIX}"), *info.place.glob("??/*.unfinished"), info.place / ABOUT]
    for path in written:
        with contextlib.suppress(OSError):
            path.unlink()
    for folder in [*{path.parent for path in written[:-1]}, info.place]:
        with contextlib.suppress(OSError):  # not empty: somebody else's files
            folder.rmdir()


def folder_name(about: str) -> str:
    """The name of a cache's folder: a digest of what its tokens are."""
    return hashlib.blake2b(about.encode(), digest_size=8).hexdigest()
