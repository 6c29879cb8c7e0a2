"""Masks of a COCO annotation file, as labelling tools and Datumaro export them: polygons or run lengths."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from anomaly_vlm.data.images import as_rgb, open_image
from anomaly_vlm.data.readers.listing import split_by_name
from anomaly_vlm.data.types import Drawn, Sample
from anomaly_vlm.errors import UserError
from anomaly_vlm.files import read_json

Region = tuple[str, tuple[float, ...]] | tuple[str, tuple[int, ...]]  # ("polygon", x, y, ...) or ("counts", runs)


@dataclass(frozen=True)
class Annotated:
    """An image file with its regions.

    Attributes:
        image: The file.
        size: Width and height in the annotation file.
        regions: Polygons in pixels, and run lengths in COCO's order, column by column.
    """

    image: str
    size: tuple[int, int]
    regions: tuple[Region, ...]

    @property
    def files(self) -> tuple[str, tuple[str, ...]]:
        """The image alone, for the check of files: the masks are in the annotation file."""
        return self.image, ()

    def draw(self) -> Drawn:
        """Reads the image, and draws the mask."""
        picture = as_rgb(open_image(self.image))
        mask = np.zeros(self.size[::-1], bool)
        for kind, values in self.regions:
            mask |= _polygon(values, self.size) if kind == "polygon" else _runs(values, self.size)
        if picture.size != self.size:
            mask = np.asarray(Image.fromarray(mask).resize(picture.size, Image.Resampling.NEAREST))
        return Drawn(np.asarray(picture), mask, Path(self.image).name)


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
        defects: Categories of the files that are defects; None for all.

    Raises:
        UserError: No COCO file, an unknown category, or an image that is not there.
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
        names = {entry["id"]: str(entry["name"]) for entry in content["categories"]}
        regions: dict[Any, list[tuple[str, list[Region]]]] = {}
        for entry in content["annotations"]:
            found = regions_of(entry.get("segmentation"), entry.get("bbox"))
            regions.setdefault(entry["image_id"], []).append((names[entry["category_id"]], found))
        listed = [(str(e["file_name"]), (int(e["width"]), int(e["height"])), e["id"]) for e in content["images"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"'{path}' is no COCO file ({type(error).__name__}: {error}): expected images, categories and annotations with"
            " segmentation"
        ) from error
    wanted = set(names.values()) if defects is None else defects
    if unknown := sorted(wanted - set(names.values())):
        raise UserError(
            f"defects names {unknown[0]}, which '{path}' does not have: choose of {', '.join(names.values())}"
        )
    samples = []
    for name, size, number in listed:
        marked = [(kind, found) for kind, found in regions.get(number, []) if kind in wanted]
        image = _image(root, path, name)
        samples.append(
            Sample(
                path=str(image),
                category=category,
                label=int(bool(marked)),
                defect=marked[0][0] if marked else "good",
                split=split_by_name(path.relative_to(root)),
                drawing=Annotated(str(image), size, tuple(region for _, found in marked for region in found)),
            )
        )
    return samples


def _image(root: Path, path: Path, name: str) -> Path:
    subset = path.stem.removeprefix("instances_")
    bases = (path.parent, root, root / "images", path.parent.parent / "images")
    for place in (*bases, *(base / subset for base in bases)):
        if (place / name).is_file():
            return place / name
    raise UserError(
        f"image '{name}' of '{path}' is not below '{root}' or '{root / 'images'}': give the folder of the images"
    )


def regions_of(segmentation: Any, box: Sequence[float] | None) -> list[Region]:
    """The regions of an annotation; its box where it has no segmentation.

    Args:
        segmentation: Polygons, each a list x, y, x, y, ... in pixels; or run lengths, plain or compressed, under `counts`.
        box: x, y, width and height.

    Raises:
        ValueError: There is neither.
    """
    if isinstance(segmentation, dict):
        counts = segmentation["counts"]
        return [("counts", tuple(int(c) for c in (_decoded(counts) if isinstance(counts, str) else counts)))]
    if segmentation:
        return [("polygon", tuple(float(value) for value in polygon)) for polygon in segmentation]
    if box is None:
        raise ValueError("an annotation has neither segmentation nor bbox")
    x, y, width, height = (float(value) for value in box)
    return [("polygon", (x, y, x + width, y, x + width, y + height, x, y + height))]


def _polygon(values: Sequence[float], size: tuple[int, int]) -> np.ndarray:
    """Pixels whose centres lie inside a polygon of corner coordinates; drawn finely, as corners lie between pixels."""
    scale = 4
    canvas = Image.new("L", (size[0] * scale, size[1] * scale))
    ImageDraw.Draw(canvas).polygon([value * scale for value in values], fill=255)
    fine = np.asarray(canvas).reshape(size[1], scale, size[0], scale)
    covered: np.ndarray = fine.mean(axis=(1, 3)) > 127
    return covered


def _runs(counts: Sequence[float], size: tuple[int, int]) -> np.ndarray:
    """A mask of run lengths that alternate between normal and anomalous pixels, column by column."""
    total = size[0] * size[1]
    if sum(counts) != total:
        raise UserError(f"run lengths of {sum(counts):g} pixels for a mask of {total}: export the annotation file anew")
    values = np.repeat(np.arange(len(counts)) % 2 == 1, np.asarray(counts, int))
    return values.reshape(size[0], size[1]).T


def _decoded(text: str) -> list[int]:
    """COCO's compressed run lengths: 5 bits a character, differences from the third count on."""
    counts: list[int] = []
    position = 0
    while position < len(text):
        value, shift, more = 0, 0, True
        while more:
            code = ord(text[position]) - 48
            value |= (code & 31) << shift
            more = bool(code & 32)
            position, shift = position + 1, shift + 5
            if not more and code & 16:
                value |= -1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
    return counts
