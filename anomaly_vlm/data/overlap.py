"""Images that training and test share, whatever their files are called."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from anomaly_vlm.data.types import Sample

HEAD = 65_536  # bytes at the beginning of a file that tell it from another one of the same size


def content_keys(samples: Iterable[Sample]) -> list[int]:
    """A number of 63 bits for the content of each image: the size and the beginning of a file, or what is drawn.

    A photograph with a drawn defect counts as the photograph.

    A file that cannot be read has the number of its path, as it is reported where it is used.
    """
    with ThreadPoolExecutor(max_workers=min(16, 4 * (os.cpu_count() or 1))) as pool:
        return list(pool.map(_key, samples, chunksize=1))


def shared_images(samples: Sequence[Sample], keys: Sequence[int]) -> list[str]:
    """Paths of the samples whose content is among `keys`."""
    known = set(keys)
    return [sample.path for sample, key in zip(samples, content_keys(samples), strict=True) if key in known]


def _key(sample: Sample) -> int:
    digest = hashlib.blake2b(digest_size=8)
    drawn_on = getattr(sample.drawing, "files", ("",))[0]
    if sample.drawing is not None and drawn_on != sample.path:
        digest.update(repr(sample.drawing).encode("utf-8", "surrogatepass"))
    else:
        try:
            with Path(sample.path).open("rb") as file:
                digest.update(str(os.fstat(file.fileno()).st_size).encode())
                digest.update(file.read(HEAD))
        except OSError:
            digest.update(sample.path.encode("utf-8", "surrogatepass"))
    return int.from_bytes(digest.digest(), "big") >> 1
