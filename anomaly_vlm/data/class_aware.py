"""Class-aware augmentation (UniADet, arXiv 2601.05552): mosaics of a category's own images, or one cell of an image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from anomaly_vlm.errors import UserError

Picture = tuple[Image.Image, Image.Image | None]  # image and mask (mode L, 0 / 255); None: no region


@dataclass(frozen=True)
class ClassAware:
    """How often, and on which grids.

    Args:
        probability: Of a changed image; 0 for none.
        grids: Sides of the grids, in cells, of which one is drawn.

    Raises:
        UserError: A grid is below 2.
    """

    probability: float = 0.0
    grids: Sequence[int] = (2, 3)

    def __post_init__(self) -> None:
        if not self.grids or any(grid < 2 for grid in self.grids):
            raise UserError(f"augment.class_aware_grids is {list(self.grids)}: give whole numbers of at least 2")


class View(NamedTuple):
    """A changed image; `label` is 1 where its mask `[H, W]` (mode L) holds an anomalous pixel or a part is anomalous."""

    image: Image.Image
    mask: Image.Image
    label: int


def class_aware_view(
    own: Picture,
    anomalous: bool,
    draw_other: Callable[[], tuple[Picture, bool]],
    grid: int,
    random: np.random.Generator,
) -> View:
    """A mosaic or a crop of an image, with equal chances.

    Args:
        own: The image.
        anomalous: Its label.
        draw_other: Draws another image of its category with its label; of normal ones where the image is normal.
        grid: Cells a side.
        random: Decides.
    """
    if random.random() < 0.5:
        others = [draw_other() for _ in range(grid * grid - 1)]
        return _mosaic([(own, anomalous), *others], grid, random)
    return _crop(own, anomalous, grid, random)


def _mosaic(parts: Sequence[tuple[Picture, bool]], grid: int, random: np.random.Generator) -> View:
    """All parts in random order, each squashed into its cell, on a canvas of the first one's size."""
    width, height = parts[0][0][0].size
    image, mask = Image.new("RGB", (width, height)), Image.new("L", (width, height))
    for cell, part in enumerate(random.permutation(len(parts)).tolist()):
        (picture, region), _ = parts[part]
        box = _cell(cell, grid, width, height)
        size = (box[2] - box[0], box[3] - box[1])
        image.paste(picture.convert("RGB").resize(size, Image.Resampling.BILINEAR), box[:2])
        if region is not None:
            mask.paste(region.resize(size, Image.Resampling.NEAREST), box[:2])
    return View(image, mask, int(any(anomalous for _, anomalous in parts)))


def _crop(own: Picture, anomalous: bool, grid: int, random: np.random.Generator) -> View:
    """One cell at the image's own size; of an anomalous image one that holds anomalous pixels, where there is one."""
    picture, region = own
    region = Image.new("L", picture.size) if region is None else region
    boxes = [_cell(cell, grid, *picture.size) for cell in range(grid * grid)]
    hit = [box for box in boxes if anomalous and np.asarray(region.crop(box)).any()]
    chosen = (hit or boxes)[int(random.integers(len(hit or boxes)))]
    mask = region.crop(chosen).resize(picture.size, Image.Resampling.NEAREST)
    image = picture.convert("RGB").crop(chosen).resize(picture.size, Image.Resampling.BILINEAR)
    return View(image, mask, int(bool(np.asarray(mask).any())))


def _cell(number: int, grid: int, width: int, height: int) -> tuple[int, int, int, int]:
    """Left, upper, right and lower border of a cell."""
    row, column = divmod(number, grid)
    left, right = (round(i * width / grid) for i in (column, column + 1))
    upper, lower = (round(i * height / grid) for i in (row, row + 1))
    return left, upper, right, lower
