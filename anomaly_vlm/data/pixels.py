"""Preprocessed pixels: what they are, how long they stay in memory, and the key that names them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Lock
from typing import NamedTuple

from PIL import Image
from torch import Tensor
from torch.utils.data import get_worker_info

from anomaly_vlm.data.images import FORMATS
from anomaly_vlm.data.types import Preprocess, Sample

MOST_THREADS = 8
LARGE = 24 * 10**6  # pixels: files above it are read one at a time, as each takes 100 MB and more
_counting = Lock()  # of the bytes in a `PixelCache`; not a part of it, as it could not be sent to another process


class Pixels(NamedTuple):
    """A preprocessed sample.

    Attributes:
        image: uint8 [3, S, S].
        mask: uint8 [S, S] (the semantic labels of a sample that has some), or None.
        key: Key of the exact pixels, or None.
        label: Label of the pixels where it may differ from the sample's; else None.
    """

    image: Tensor
    mask: Tensor | None
    key: str | None
    label: int | None = None


class PixelCache:
    """Preprocessed pixels in memory, up to a number of bytes, so that later epochs neither read nor draw them again.

    What came first stays: under cyclic access, throwing out the oldest would throw out everything.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0
        self._entries: dict[tuple[object, ...], Pixels] = {}

    def get(self, key: tuple[object, ...]) -> Pixels | None:
        """The pixels stored under a key, or None."""
        return self._entries.get(key)

    def put(self, key: tuple[object, ...], pixels: Pixels) -> None:
        """Stores pixels under a key, unless they would exceed the limit."""
        size = pixels.image.nbytes + (0 if pixels.mask is None else pixels.mask.nbytes)
        with _counting:
            if self.used + size <= self.limit:
                self._entries[key] = pixels
                self.used += size


def pixel_key(content: bytes | memoryview, preprocess: Preprocess, max_value: float | None = None) -> str:
    """Names the pixels that a preprocessing makes of the content of a file, or of drawn pixels.

    Args:
        content: Bytes of the file, or the drawn pixels.
        preprocess: The method's; how it resizes masks does not matter.
        max_value: What white is in files of more than 8 bits; None: the file's own content says it.
    """
    digest = hashlib.blake2b(content, digest_size=16)
    digest.update(repr(replace(preprocess, mask_resize="bilinear", mask_size=None)).encode())
    if max_value is not None:
        digest.update(f"white {float(max_value)!r}".encode())
    return digest.hexdigest()


def in_threads(
    make: Callable[[tuple[int, int]], Pixels], rows: Sequence[tuple[int, int]], samples: Sequence[Sample]
) -> list[Pixels]:
    """What `make` gives for each row, in their order; rows whose samples are files of usual size by threads, one a core.

    A loader's worker processes, which share the cores already, start none.

    Args:
        make: Reads a sample; most of its time is spent in decoders, which leave the interpreter free.
        rows: What it is called with: epoch and position.
        samples: The sample of each row.
    """
    usual = [_is_usual_file(sample) for sample in samples]
    threads = min(sum(usual), MOST_THREADS, os.cpu_count() or 1)
    if threads < 2 or get_worker_info() is not None:
        return [make(row) for row in rows]
    with ThreadPoolExecutor(threads) as pool:
        ready = [pool.submit(make, row) if fits else None for row, fits in zip(rows, usual, strict=True)]
        return [make(row) if later is None else later.result() for row, later in zip(rows, ready, strict=True)]


def _is_usual_file(sample: Sample) -> bool:
    """Whether a sample is a file that may be read while others are."""
    if sample.drawing is not None:
        return False
    try:
        with Image.open(sample.path, formats=FORMATS) as file:
            return file.width * file.height <= LARGE
    except Exception:  # whoever reads it says what is wrong with it
        return False
