"""Masks of a COCO annotation file, as labelling tools and Datumaro export them: polygons or run lengths."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from anomaly_vlm.data.checks import checked_size
from anomaly_vlm.data.readers.index import NORMAL, named, once
from anomaly_vlm.data.readers.listing import split_by_name
from anomaly_vlm.data.readers.regions import (
    NO_REGION,
    Annotated,
    Region,
    Size,
    regions_of,
    tell_empty,
    wrong_region,
)
from anomaly_vlm.data.types import Sample
from anomaly_vlm.errors import UserError
from anomaly_vlm.files import read_json

log = logging.getLogger("anomaly_vlm")


def read_coco(
    root: Path,
    *,
    annotations: str | None = None,
    category: str = "object",
    defects: Iterable[str] | None = None,
) -> list[Sample]:
    """The images that COCO files list: anomalous where they have an annotation of a defect, else normal.

    Args:
        root: Folder of the images and of the annotation files; names in a file are relative to its folder, to `root`, to
            `images/`, or to the split's folder in one of these.
        annotations: Name of the one file below `root`; None: `annotations.json`, `annotations/instances_SPLIT.json` (CVAT,
            Datumaro, COCO itself) or `SPLIT/_annotations.coco.json` (Roboflow), all splits.
        category: Word of what the images show.
        defects: Categories of the files that are defects; None for all but those called `good`, `normal` or `ok`.

    Raises:
        UserError: No COCO file, an unknown category, an image that is not there, or an annotation that means no region.
    """
    wanted = None if defects is None else {str(name) for name in defects}
    return [sample for path in _files(root, annotations) for sample in _samples(root, path, category, wanted)]


def _files(root: Path, annotations: str | None) -> list[Path]:
    if annotations is not None:
        return [root / annotations] if (root / annotations).is_file() else []
    patterns = (
        "annotations.json",
        "annotations/instances_*.json",
        "*/_annotations.coco.json",
        "_annotations.coco.json",
    )
    return next((found for pattern in patterns if (found := sorted(root.glob(pattern)))), [])


def _samples(root: Path, path: Path, category: str, defects: set[str] | None) -> list[Sample]:
    """The images of one file."""
    content = read_json(path, what="COCO file")
    try:
        names = {str(entry["id"]): str(entry["name"]) for entry in content["categories"]}
        listed = [_listed(root, path, entry) for entry in content["images"]]
        annotations = [
            (str(entry["image_id"]), names[str(entry["category_id"])], entry) for entry in content["annotations"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"'{path}' is no COCO file ({type(error).__name__}: {error}): expected images, categories and annotations with"
            " segmentation"
        ) from error
    images: dict[str, tuple[Path, Size]] = {}
    for number, image, size in listed:
        if images.setdefault(number, (image, size)) != (image, size):
            raise UserError(f"'{path}' has the id {number} for '{images[number][0]}' and for '{image}': mend the ids")
    wanted = {name for name in names.values() if name.lower() not in NORMAL} if defects is None else defects
    if unknown := sorted(wanted - set(names.values())):
        raise UserError(
            f"defects names {unknown[0]}, which '{path}' does not have: choose of {', '.join(names.values())}"
        )
    marked: dict[str, list[tuple[str, list[Region]]]] = {}
    for number, kind, entry in annotations:
        if number in images and kind in wanted:
            image, size = images[number]
            try:
                found = regions_of(entry.get("segmentation"), entry.get("bbox"), size)
            except NO_REGION as error:
                raise wrong_region(path, str(image), error) from error
            marked.setdefault(number, []).append((kind, found))
    _tell_strays(path, [number for number, _, _ in annotations if number not in images], len(annotations))
    samples = []
    for number, image, size in listed:
        regions = marked.get(number, [])
        samples.append(
            Sample(
                path=str(image),
                category=category,
                label=int(bool(regions)),
                defect=regions[0][0] if regions else "good",
                split=split_by_name(path.relative_to(root)),
                drawing=Annotated(str(image), size, tuple(region for _, found in regions for region in found)),
            )
        )
    tell_empty(samples, path)
    return once(samples, path)


def _listed(root: Path, path: Path, entry: dict[str, Any]) -> tuple[str, Path, Size]:
    """Number, file and size of an image; the size that the file has where the entry has none."""
    image = _image(root, path, str(entry["file_name"]))
    size = (int(entry.get("width") or 0), int(entry.get("height") or 0))
    return str(entry["id"]), image, size if min(size) > 0 else checked_size(str(image))


def _tell_strays(path: Path, strays: list[str], total: int) -> None:
    """Says which annotations belong to no image of the file; an error where none belongs to any."""
    if strays and len(strays) == total:
        raise UserError(
            f"no annotation of '{path}' belongs to one of its images (image_id {strays[0]}): the ids under images and the"
            " image_id of annotations must agree"
        )
    if strays:
        log.warning("'%s': %d annotations belong to no image (image_id %s)", path, len(strays), strays[0])


def _image(root: Path, path: Path, name: str) -> Path:
    subset = path.stem.removeprefix("instances_")
    bases = (path.parent, root, root / "images", path.parent.parent / "images")
    for place in (*bases, *(base / subset for base in bases)):
        if (image := named(place, name)).is_file():
            return image
    raise UserError(
        f"image '{name}' of '{path}' is not below '{root}' or '{root / 'images'}': give the folder of the images"
    )
