"""Regions of annotation files, polygons and run lengths: checked when they are read, drawn when their image is."""

from __future__ import annotations

import logging
import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageDraw

from anomaly_vlm.data.images import FORMATS, ReadError, as_rgb, open_image
from anomaly_vlm.data.types import Drawn, Sample
from anomaly_vlm.errors import UserError

log = logging.getLogger("anomaly_vlm")
NO_REGION = (ValueError, TypeError, OverflowError)  # what `regions_of` raises
Region = tuple[str, tuple[float, ...]] | tuple[str, tuple[int, ...]]  # ("polygon", x, y, ...) or ("counts", runs)
Size = tuple[int, int]  # width, height
TURNS = {  # of EXIF orientations that swap width and height
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Annotated:
    """An image file with its regions.

    Attributes:
        image: The file.
        size: Width and height in the annotation file.
        regions: Polygons in pixels, and run lengths in COCO's order, column by column.
        max_value: White in files of more than 8 bits; None: guessed.
    """

    image: str
    size: Size
    regions: tuple[Region, ...]
    max_value: float | None = None

    @property
    def files(self) -> tuple[str, tuple[str, ...]]:
        """The image alone, for the check of files: the masks are in the annotation file."""
        return self.image, ()

    def draw(self) -> Drawn:
        """Reads the image, and draws the mask."""
        picture = as_rgb(open_image(self.image, self.max_value))
        turn = self.turn(picture.size)
        mask = np.zeros(self.size[::-1], bool)
        for kind, values in self.regions:
            mask |= _polygon(values, self.size) if kind == "polygon" else _runs(values, self.size)
        drawn = Image.fromarray(mask.astype(np.uint8))
        if turn is not None:
            drawn = drawn.transpose(turn)
        if drawn.size != picture.size:
            drawn = drawn.resize(picture.size, Image.Resampling.NEAREST)
        return Drawn(np.asarray(picture), np.asarray(drawn) > 0, Path(self.image).name)

    def turn(self, shown: Size) -> Image.Transpose | None:
        """How the annotated picture is turned to lie on the image, whose file may say by EXIF that it is shown turned.

        Args:
            shown: Width and height of the image, upright.

        Raises:
            ReadError: The sizes are not in proportion, so that nobody knows where the regions lie.
        """
        for fits in (operator.eq, _in_proportion):
            if fits(self.size, shown):
                return None
            if fits(self.size, shown[::-1]) and (turn := TURNS.get(_orientation(self.image))):
                return turn
        raise ReadError(
            f"image '{self.image}' is {shown[0]}x{shown[1]}, but its annotation file says {self.size[0]}x{self.size[1]}:"
            " give the images that were annotated, or export the annotations anew"
        )


def _in_proportion(one: Size, other: Size) -> bool:
    """Whether one size is the other resized, up to rounding to whole pixels."""
    return abs(one[0] * other[1] - one[1] * other[0]) <= max(sum(one), sum(other))


def _orientation(path: str) -> int:
    with Image.open(path, formats=FORMATS) as image:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))


def regions_of(segmentation: Any, box: Sequence[float] | None, size: Size) -> list[Region]:
    """The regions of an annotation; its box where it has no segmentation.

    Args:
        segmentation: Polygons, each a list x, y, x, y, ... in pixels; or run lengths, plain or compressed, under `counts`.
        box: x, y, width and height.
        size: Width and height of the image in the annotation file.

    Raises:
        ValueError: There is neither, or one that means no region.
    """
    if isinstance(segmentation, dict):
        return [("counts", _checked_runs(segmentation, size))]
    if segmentation:
        return [("polygon", _checked_corners(polygon)) for polygon in segmentation]
    if not box:
        raise ValueError("an annotation with neither segmentation nor bbox")
    x, y, width, height = (float(value) for value in box)
    return [("polygon", _checked_corners((x, y, x + width, y, x + width, y + height, x, y + height)))]


def wrong_region(path: Path, image: str, error: Exception) -> UserError:
    """Names the image of an annotation that means no region."""
    return UserError(f"'{path}' has for image '{image}' {error}: mend the annotation, or export the file anew")


def tell_empty(samples: Iterable[Sample], path: Path) -> None:
    """Says how many regions of an annotation file mark no pixel."""
    drawings = [sample.drawing for sample in samples if isinstance(sample.drawing, Annotated)]
    empty = [one for one in drawings for region in one.regions if not _has_extent(region, one.size)]
    if empty:
        log.warning(
            "'%s': %d annotations mark no pixel, as they have no extent or lie outside (image '%s', %dx%d)",
            path, len(empty), empty[0].image, *empty[0].size,
        )  # fmt: skip


def _has_extent(region: Region, size: Size) -> bool:
    kind, values = region
    if kind == "counts":
        return any(values[1::2])
    return all(
        min(places) < max(places) and min(places) < side and max(places) > 0
        for places, side in zip((values[::2], values[1::2]), size, strict=True)
    )


def _checked_corners(polygon: Sequence[float]) -> tuple[float, ...]:
    values = tuple(float(value) for value in polygon)
    if len(values) < 6 or len(values) % 2:
        raise ValueError(f"a polygon of {len(values)} numbers: expected x and y of three or more corners")
    if not all(math.isfinite(value) for value in values):
        raise ValueError("a polygon or box with values that are no numbers")
    if min(values) >= 0 and max(values) <= 1 and not all(value.is_integer() for value in values):
        raise ValueError("coordinates between 0 and 1: expected pixels")
    return values


def _checked_runs(segmentation: dict[str, Any], size: Size) -> tuple[int, ...]:
    if (counts := segmentation.get("counts")) is None:
        raise ValueError("run lengths without counts")
    found = tuple(int(count) for count in (_decoded(counts) if isinstance(counts, str) else counts))
    if min(found, default=0) < 0:
        raise ValueError(f"a run length of {min(found)}")
    height, width = segmentation.get("size") or size[::-1]
    if (int(width), int(height)) != size:
        raise ValueError(f"run lengths of a mask of {width}x{height} on an image of {size[0]}x{size[1]}")
    if sum(found) != size[0] * size[1]:
        raise ValueError(f"run lengths of {sum(found)} pixels for an image of {size[0] * size[1]}")
    return found


def _polygon(values: Sequence[float], size: Size) -> np.ndarray:
    """Pixels whose centres lie inside a polygon of corner coordinates; drawn finely, as corners lie between pixels."""
    scale = 4
    canvas = Image.new("L", (size[0] * scale, size[1] * scale))
    ImageDraw.Draw(canvas).polygon([value * scale for value in values], fill=255)
    fine = np.asarray(canvas).reshape(size[1], scale, size[0], scale)
    covered: np.ndarray = fine.mean(axis=(1, 3)) > 127
    return covered


def _runs(counts: Sequence[float], size: Size) -> np.ndarray:
    """A mask of run lengths that alternate between normal and anomalous pixels, column by column."""
    values = np.repeat(np.arange(len(counts)) % 2 == 1, np.asarray(counts, int))
    return values.reshape(size[0], size[1]).T


def _decoded(text: str) -> list[int]:
    """COCO's compressed run lengths: 5 bits a character, differences from the third count on."""
    counts: list[int] = []
    value, shift = 0, 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64:
            raise ValueError(f"compressed run lengths with the character {character!r}")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value |= -1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value, shift = 0, 0
    if shift:
        raise ValueError("compressed run lengths that are cut off")
    return counts
