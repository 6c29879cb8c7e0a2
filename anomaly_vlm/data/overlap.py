"""Images that training and test share, whatever their files are called."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from anomaly_vlm.data.types import Sample

T = TypeVar("T")
R = TypeVar("R")
HEAD = 65_536  # bytes at the beginning of a file that tell it from most others of the same size
UNKNOWN = -1  # in place of the number of a whole content, in checkpoints that hold numbers of beginnings alone


class Content(NamedTuple):
    """Two numbers of 63 bits for what an image holds.

    Attributes:
        head: Of the size and the beginning of the file.
        whole: Of all its bytes; `UNKNOWN` in old checkpoints.
    """

    head: int
    whole: int


def content_keys(samples: Iterable[Sample]) -> list[int]:
    """A number of 63 bits for the content of each image: the size and the beginning of a file, or what is drawn.

    Different images may share it, where they differ behind the beginning only, see `contents`. A photograph with a drawn
    defect counts as the photograph. A file that cannot be read has the number of its path, as it is reported where it is
    used.
    """
    return _each(_head, samples)


def contents(samples: Iterable[Sample]) -> list[Content]:
    """What each image holds; all of its file is read."""
    return _each(lambda sample: Content(head := _head(sample), _whole(sample, head)), samples)


def shared_images(samples: Sequence[Sample], known: Iterable[Content]) -> list[str]:
    """Paths of the samples whose content is among `known`; files are read to their end only where the beginning is."""
    wholes: dict[int, set[int]] = {}
    for content in known:
        wholes.setdefault(content.head, set()).add(content.whole)
    alike = [(s, head) for s, head in zip(samples, content_keys(samples), strict=True) if head in wholes]
    same = _each(lambda pair: not wholes[pair[1]].isdisjoint((UNKNOWN, _whole(*pair))), alike)
    return [sample.path for (sample, _), is_same in zip(alike, same, strict=True) if is_same]


def to_tensor(known: Iterable[Content]) -> Tensor:
    """Contents as a checkpoint stores them, int64 [N, 2], each once."""
    return torch.tensor(sorted(set(known)), dtype=torch.int64).reshape(-1, 2)


def from_record(stored: Any) -> list[Content]:
    """Contents from a checkpoint; [N, 2], or [N] numbers of beginnings as old ones store them; empty for None."""
    if stored is None:
        return []
    rows = torch.as_tensor(stored, dtype=torch.int64)
    return [Content(*row) if isinstance(row, list) else Content(row, UNKNOWN) for row in rows.tolist()]


def _each(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    with ThreadPoolExecutor(max_workers=min(16, 4 * (os.cpu_count() or 1))) as pool:
        return list(pool.map(function, items, chunksize=1))


def _head(sample: Sample) -> int:
    digest = hashlib.blake2b(digest_size=8)
    if _is_drawn(sample):
        digest.update(repr(sample.drawing).encode("utf-8", "surrogatepass"))
    else:
        try:
            with Path(sample.path).open("rb") as file:
                digest.update(str(os.fstat(file.fileno()).st_size).encode())
                digest.update(file.read(HEAD))
        except OSError:
            digest.update(sample.path.encode("utf-8", "surrogatepass"))
    return _number(digest.digest())


def _whole(sample: Sample, head: int) -> int:
    """The number of all that a file holds: `head` where that says it all."""
    if _is_drawn(sample):
        return head
    try:
        with Path(sample.path).open("rb") as file:
            if os.fstat(file.fileno()).st_size <= HEAD:
                return head
            return _number(hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).digest())
    except OSError:
        return head


def _is_drawn(sample: Sample) -> bool:
    return sample.drawing is not None and getattr(sample.drawing, "files", ("",))[0] != sample.path


def _number(digest: bytes) -> int:
    return int.from_bytes(digest, "big") >> 1
