"""Every file of a data set looked at before any long work: there, an image, whole as far as its header tells, mask sizes."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from anomaly_vlm.data.images import FORMATS, ReadError, file_size, mask_size_error, open_image, shown_size
from anomaly_vlm.data.types import Sample
from anomaly_vlm.errors import UserError

OTHER_ROWS = ("mean", "mean_count", "pooled")  # of the results, beside one a category
TAIL = 4096  # bytes at the end of a file in which its end marker must lie


def check_files(samples: Iterable[Sample]) -> None:
    """Looks at every image and mask file, in threads. A drawn sample has none, or its drawing names them as `files`.

    Raises:
        ReadError: Names the first bad file in the order of paths, and how many more there are.
    """
    pairs = (_files(sample) for sample in samples)
    jobs = sorted({pair for pair in pairs if pair is not None})
    # Remarks on odd metadata are left out; the filter is the process's, so it is set here and not in each thread.
    with warnings.catch_warnings(), ThreadPoolExecutor(max_workers=min(16, 4 * (os.cpu_count() or 1))) as pool:
        warnings.simplefilter("ignore")
        bad = [error for error in pool.map(_check, jobs, chunksize=1) if error is not None]
    if bad:
        more = f" (and {len(bad) - 1} more bad file{'s' * (len(bad) > 2)})" if len(bad) > 1 else ""
        raise ReadError(f"{bad[0]}{more}")


def _files(sample: Sample) -> tuple[str, tuple[str, ...]] | None:
    return (sample.path, sample.masks) if sample.drawing is None else getattr(sample.drawing, "files", None)


def _check(job: tuple[str, tuple[str, ...]]) -> ReadError | None:
    image, masks = job
    try:
        size = checked_size(image)
        for mask in masks:
            if (mask_size := checked_size(mask)) != size:
                return mask_size_error(mask, mask_size, size)
    except ReadError as error:
        return error
    return None


def checked_size(path: str) -> tuple[int, int]:
    """(width, height) of an image file, upright, from its header; decodes it only where its end looks wrong."""
    length = file_size(path)
    try:
        with Image.open(path, formats=FORMATS) as image:
            size, whole = shown_size(image), _looks_whole(image, path, length)
    except Exception:  # decoders raise nearly anything on damaged files; `open_image` words it
        whole = False
        size = (0, 0)
    if not whole:
        size = open_image(path).size
    return size


def _looks_whole(image: Image.Image, path: str, length: int) -> bool:
    if image.format == "JPEG":
        return b"\xff\xd9" in _tail(path, length)  # entropy-coded data never holds the end marker
    if image.format == "PNG":
        return b"IEND" in _tail(path, length)
    if image.format == "BMP":
        with Path(path).open("rb") as file:
            return int.from_bytes(file.read(6)[2:], "little") <= length
    if image.format == "WEBP":
        with Path(path).open("rb") as file:
            return int.from_bytes(file.read(8)[4:], "little") + 8 <= length
    if image.format == "TIFF":
        offsets, counts = (
            getattr(image, "tag_v2", {}).get(tag, ()) for tag in (273, 279)
        )  # strips: where, how many bytes
        return all(offset + count <= length for offset, count in zip(offsets, counts, strict=False))
    return True


def _tail(path: str, length: int) -> bytes:
    with Path(path).open("rb") as file:
        file.seek(max(0, length - TAIL))
        return file.read()


def check_categories(name: str, samples: Sequence[Sample]) -> None:
    """Raises a `UserError` where a category has the name of another row of the results, or none."""
    for sample in samples:
        if sample.label is not None and (sample.category in OTHER_ROWS or not sample.category.strip()):
            what = f"a category called '{sample.category}'" if sample.category.strip() else "a category without a name"
            raise UserError(
                f"{name} has {what} ('{sample.path}'), but results have a row a category, and rows {', '.join(OTHER_ROWS)}"
                f" beside: give it another word with dataset.SIDE.class_words={{{sample.category or '...'}: WORD}}"
            )


def need_labels(samples: Sequence[Sample], what: str) -> None:
    """Raises a `UserError` where a sample has no label."""
    for sample in samples:
        if sample.label is None:
            raise UserError(
                f"{what} has no labels ('{sample.path}'): sort the images into good/ and a folder for each defect, or use"
                " 'predict'"
            )
