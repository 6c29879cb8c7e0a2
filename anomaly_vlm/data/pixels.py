"""Preprocessed pixels: what they are, how long they stay in memory, and the key that names them."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from threading import Lock
from typing import NamedTuple

from PIL import Image
from torch import Tensor

from anomaly_vlm.data.images import FORMATS
from anomaly_vlm.data.types import Preprocess, Sample

LARGE = 24 * 10**6  # pixels: files above it are read one at a time by the main thread, as each takes 100 MB and more
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


def is_usual(sample: Sample) -> bool:
    """Whether a sample may be made while others are: a drawn one, or a file of at most `LARGE` pixels."""
    if sample.drawing is not None:
        return True
    try:
        with Image.open(sample.path, formats=FORMATS) as file:
            return file.width * file.height <= LARGE
    except Exception:  # whoever reads it says what is wrong with it
        return True
