"""Every file of a data set looked at before any long work: there, an image, whole as far as its header tells, mask sizes."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from PIL import Image

from anomaly_vlm.data.deep_colour import is_deep_colour
from anomaly_vlm.data.images import (
    FORMATS,
    NATIVE,
    ReadError,
    decode,
    file_size,
    mask_size_error,
    open_image,
    orientation,
    shown_size,
)
from anomaly_vlm.data.masks import describe_oddities, read_mask
from anomaly_vlm.data.types import Sample
from anomaly_vlm.errors import UserError

OTHER_ROWS = ("mean", "mean_count", "pooled")  # of the results, beside one a category
log = logging.getLogger("anomaly_vlm")
MOST_MASKS = 256  # masks that are decoded before a run, which takes a second or two
UNTURNED = "are stored unturned, while their images are turned upright by an orientation tag: look whether they agree"
TAIL = 4096  # bytes at the end of a file in which its end marker must lie


@dataclass(frozen=True)
class Finding:
    """What the check of an image and its masks found.

    Attributes:
        error: What is wrong; None where nothing is.
        oddities: Path of a mask and what is unusual about it, see `masks.MaskFile`.
        masks: Number of masks that were decoded.
        pages: Number of pages or frames of the image file.
    """

    error: ReadError | None = None
    oddities: tuple[tuple[str, str], ...] = ()
    masks: int = 0
    pages: int = 1


@runtime_checkable
class Turned(Protocol):
    """A drawing of a file that was annotated at a size of its own."""

    def turn(self, shown: tuple[int, int]) -> object:
        """Raises a `ReadError` where that size does not fit the image's."""


class Header(NamedTuple):
    """What a file says before it is decoded: (width, height) upright, number of pages, and how its pixels are turned."""

    size: tuple[int, int]
    pages: int
    orientation: int

    def may_lie_across(self, mask: Header) -> bool:
        """Whether only this file is turned, in a way that the sizes do not show."""
        square = self.size[0] == self.size[1]
        return self.orientation > 1 and mask.orientation == 1 and (square or self.orientation < 5)


class FileJob(NamedTuple):
    """A file of a data set with its masks, and how they are read."""

    image: str
    masks: tuple[str, ...]
    threshold: int | None
    max_value: float | None
    labels: bool
    annotated: Turned | None = None


def check_files(samples: Iterable[Sample], *, most_masks: int | None = MOST_MASKS) -> None:
    """Looks at every image and mask file, in threads, and says in one line each what is unusual about some of them.

    Args:
        samples: A drawn sample has no files, or its drawing names them as `files`.
        most_masks: Number of masks that are decoded, evenly spread over the set; None for all.

    Raises:
        ReadError: Names the first bad file in the order of paths, and how many more there are.
    """
    jobs = sorted({job for sample in samples if (job := file_job(sample)) is not None}, key=lambda job: job[:2])
    findings = findings_of(jobs, most_masks=most_masks)
    bad = [finding.error for finding in findings if finding.error is not None]
    if bad:
        more = f" (and {len(bad) - 1} more bad file{'s' * (len(bad) > 2)})" if len(bad) > 1 else ""
        raise ReadError(f"{bad[0]}{more}")
    oddities = [oddity for finding in findings for oddity in finding.oddities]
    for line in describe_oddities(oddities, sum(finding.masks for finding in findings)):
        log.warning("%s", line)
    several = [job.image for job, finding in zip(jobs, findings, strict=True) if finding.pages > 1]
    if several:
        log.warning("%d files hold several pages or frames, of which the first is read (%s)", len(several), several[0])


def findings_of(jobs: Sequence[FileJob], *, most_masks: int | None) -> list[Finding]:
    """Checks files with their masks, in threads; findings in the order of `jobs`."""
    with_masks = [i for i, job in enumerate(jobs) if job.masks]
    if most_masks is not None and len(with_masks) > most_masks:
        with_masks = [with_masks[len(with_masks) * k // most_masks] for k in range(most_masks)]
    decoded = set(with_masks)
    # Remarks on odd metadata are left out; the filter is the process's, so it is set here and not in each thread.
    with warnings.catch_warnings(), ThreadPoolExecutor(max_workers=min(16, 4 * (os.cpu_count() or 1))) as pool:
        warnings.simplefilter("ignore")
        return list(pool.map(lambda pair: _check(pair[1], pair[0] in decoded), enumerate(jobs), chunksize=1))


def file_job(sample: Sample) -> FileJob | None:
    """The files of a sample: its own, or those that its drawing reads; None for one that is drawn from nothing."""
    if sample.drawing is None:
        return FileJob(sample.path, sample.masks, sample.mask_threshold, sample.max_value, sample.labels)
    files = getattr(sample.drawing, "files", None)
    if files is None:
        return None
    annotated = sample.drawing if isinstance(sample.drawing, Turned) else None
    return FileJob(files[0], files[1], 0, sample.max_value, False, annotated)


def _check(job: FileJob, decode_masks: bool) -> Finding:
    # labels are read in another way, in which every value has its meaning
    decode_masks = decode_masks and not job.labels
    oddities: list[tuple[str, str]] = []
    try:
        image = _header(job.image, job.max_value)
        if job.annotated is not None:
            job.annotated.turn(image.size)
        for mask in job.masks:
            header = _header(mask, None, values=False)
            if header.size != image.size:
                return Finding(mask_size_error(mask, header.size, image.size))
            if decode_masks and (oddity := read_mask(mask, job.threshold).oddity):
                oddities.append((mask, oddity))
            if decode_masks and image.may_lie_across(header):
                oddities.append((mask, UNTURNED))
    except ReadError as error:
        return Finding(error)
    return Finding(None, tuple(oddities), len(job.masks) if decode_masks else 0, image.pages)


def checked_size(path: str, *, values: bool = True) -> tuple[int, int]:
    """(width, height) of an image file, upright, from its header; decodes it only where its end or values may be wrong.

    Args:
        path: The file.
        values: Whether values that no image has matter, as they do not in a mask.
    """
    return _header(path, None, values=values).size


def _header(path: str, max_value: float | None, *, values: bool = True) -> Header:
    """The header of a file, which is decoded where it may end early, and where its values may be out of range."""
    length = file_size(path)
    size, pages, turned = (0, 0), 1, 1
    try:
        with Image.open(path, formats=FORMATS) as image:
            size, whole, turned = shown_size(image), _looks_whole(image, path, length), orientation(image)
            eight_bits = image.mode in NATIVE and not is_deep_colour(image)
            pages = getattr(image, "n_frames", 1)
            whole &= max_value is None or max_value >= 65535 or eight_bits
            whole &= not values or image.mode not in ("F", "I")  # these hold values below 0, and floats NaN
    except Exception:  # decoders raise nearly anything on damaged files; `open_image` words it
        whole = False
    if not whole:
        size = open_image(path, max_value).size if values else decode(path).size
    return Header(size, pages, turned)


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
        # strips: where, how many bytes
        offsets, counts = (getattr(image, "tag_v2", {}).get(tag, ()) for tag in (273, 279))
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
