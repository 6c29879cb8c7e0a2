"""What files that list images have in common: COCO's and Datumaro's annotations, `meta.json`, tables."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from anomaly_vlm.data.images import ReadError
from anomaly_vlm.data.masks import open_mask
from anomaly_vlm.data.types import Sample
from anomaly_vlm.errors import UserError

log = logging.getLogger("anomaly_vlm")
NORMAL = ("good", "normal", "ok")  # categories of annotations and folders of parts, in any case, that are no defects


def named(base: Path, name: str) -> Path:
    """The file that an index names: indices that were written on Windows have backslashes in place of slashes."""
    path = base / name
    return path if "\\" not in name or path.exists() else base / name.replace("\\", "/")


def table_text(path: Path) -> str:
    """The text of a table, which may begin with the mark that Windows writes.

    Raises:
        UserError: It is no text in UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"'{path}' is no text in UTF-8: save it as UTF-8, or take the original file") from error


def once(samples: Iterable[Sample], index: Path) -> list[Sample]:
    """The samples of an index, each once; images that are listed again are said.

    Args:
        samples: As the index lists them.
        index: The file, for messages.

    Raises:
        UserError: An image is listed twice with different labels or regions.
    """
    found: dict[tuple[str, str, str], Sample] = {}
    again = []
    for sample in samples:
        first = found.setdefault((sample.path, sample.category, sample.split), sample)
        if first is sample:
            continue
        if first != sample:
            words = (first.defect or "unlabelled", sample.defect or "unlabelled")
            how = f"as {words[0]} and as {words[1]}" if words[0] != words[1] else "with different regions"
            raise UserError(
                f"'{index}' lists image '{sample.path}' twice, {how}: keep one entry, which names all masks of the image"
            )
        again.append(sample.path)
    if again:
        log.warning("'%s': %d entries list an image again ('%s'); each image counts once", index, len(again), again[0])
    return list(found.values())


def tell_odd_masks(samples: Sequence[Sample], of_normal: Sequence[str], index: Path, *, most: int = 64) -> None:
    """Says which masks of an index are odd: shared by images, or of normal images and yet not empty.

    Args:
        samples: All samples of the index.
        of_normal: Masks that it names for normal images, where they do not count.
        index: The file, for messages.
        most: Number of masks of normal images that are read, evenly spread.
    """
    owners: dict[str, str] = {}
    shared = [one for one in samples for mask in one.masks if owners.setdefault(mask, one.path) != one.path]
    if shared:
        log.warning("'%s': %d images share their mask with another one ('%s')", index, len(shared), shared[0].path)
    step = max(1, len(of_normal) // most)
    marked = [mask for mask in of_normal[::step] if _marks(mask)]
    if marked:
        log.warning("'%s': masks of normal images mark pixels, which do not count ('%s')", index, marked[0])


def _marks(mask: str) -> bool:
    with suppress(ReadError):
        return Path(mask).is_file() and bool(open_mask(mask, None).any())
    return False
