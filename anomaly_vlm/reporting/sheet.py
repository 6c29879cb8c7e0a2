"""A contact sheet of a data set: each image beside itself with its mask outlined, or beside its labels in colours.

Images of a set without masks stand there once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from anomaly_vlm.data.transforms import read_sample
from anomaly_vlm.data.types import UNKNOWN, VOID, Sample
from anomaly_vlm.errors import UserError
from anomaly_vlm.files import whole_bytes
from anomaly_vlm.names import shown
from anomaly_vlm.reporting.pictures import INK, OUTLINE, PAPER, outline

SIDE, GAP, SEAM, LINE = 128, 6, 2, 14  # pixels: height of a picture, between tiles, inside a tile, of a line of text
# Colours of train ids as Cityscapes shows them: road, sidewalk, building, wall, fence, pole, traffic light, traffic sign,
# vegetation, terrain, sky, person, rider, car, truck, bus, train, motorcycle, bicycle.
CLASSES = (
    (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153), (250, 170, 30),
    (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70),
    (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32),
)  # fmt: skip


def contact_sheet(samples: Sequence[Sample], path: Path | str, *, columns: int = 6, limit: int = 96) -> None:
    """Writes one PNG with up to `limit` samples, spread over categories and defects.

    Args:
        samples: Rows of an index, files or drawings.
        path: File to write; its folder is made.
        columns: Square samples with masks a row, fewer where they are wider, twice as many without masks.
        limit: Largest number of samples shown.

    Raises:
        UserError: Nothing to show.
    """
    chosen = spread(samples, limit)
    if not chosen:
        raise UserError("the contact sheet has no sample to show: check the categories and the root of the data set")
    tiles = [read(sample) for sample in chosen]
    side = max(image.width for image, _ in tiles)
    shows_labels = any(sample.kind in ("mask", "semantic") for sample in chosen)
    width, height = (2 * side + SEAM if shows_labels else side) + GAP, SIDE + 2 * LINE + GAP
    columns = min(max(1, columns * (1 if shows_labels else 2) * SIDE // side), len(chosen))
    rows = -(-len(chosen) // columns)
    sheet = Image.new("RGB", (columns * (width + GAP) + GAP, rows * height + GAP), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for i, (sample, (image, marked)) in enumerate(zip(chosen, tiles, strict=True)):
        left, top = GAP + (i % columns) * (width + GAP), GAP + (i // columns) * height
        sheet.paste(image, (left, top))
        if shows_labels:
            sheet.paste(marked, (left + side + SEAM, top))
        state = {0: "good", 1: sample.defect, None: "unknown"}[sample.label]
        draw.text(
            (left, top + SIDE), _fitting(shown(f"{sample.category}: {state}"), draw, font, width), fill=INK, font=font
        )
        draw.text(
            (left, top + SIDE + LINE - 2),
            _fitting(shown(Path(sample.path).name), draw, font, width),
            fill=INK,
            font=font,
        )
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole_bytes(target) as file:
        sheet.save(file, "PNG", optimize=True)


def spread(samples: Sequence[Sample], limit: int) -> list[Sample]:
    """At most `limit` samples: as many of each (category, defect), evenly spread over it, sorted as in the index."""
    groups: dict[tuple[str, str], list[int]] = {}
    for i, sample in enumerate(samples):
        groups.setdefault((sample.category, sample.defect), []).append(i)
    turns = sorted((turn, number) for number, members in enumerate(groups.values()) for turn in range(len(members)))
    taken = Counter(number for _, number in turns[:limit])
    chosen = [
        members[len(members) * turn // taken[number]]
        for number, members in enumerate(groups.values())
        for turn in range(taken[number])
    ]
    return [samples[i] for i in sorted(chosen)]


def read(sample: Sample) -> tuple[Image.Image, Image.Image]:
    """A sample's picture, SIDE high, and the same picture with its labels drawn in.

    The mask is outlined, void pixels are grey, semantic labels have the colours of their classes, and unknown objects that
    of the outline. Both are square, but for labelled sets.
    """
    image, mask = read_sample(sample)
    wide = sample.labels  # other methods see squares
    size = (round(SIDE * min(2.5, max(1.0, image.width / image.height))) if wide else SIDE, SIDE)
    image = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    if mask is None:
        return image, image
    labels, pixels = np.asarray(mask.resize(size, Image.Resampling.NEAREST)), np.array(image)
    if sample.kind == "semantic":
        table = np.zeros((256, 3), np.uint8)
        table[: len(CLASSES)], table[UNKNOWN] = CLASSES, OUTLINE
        return image, Image.fromarray(table[labels])
    if sample.labels:
        pixels[labels == VOID] = 90
    pixels[outline(labels == 1 if sample.labels else labels > 0)] = OUTLINE
    return image, Image.fromarray(pixels)


def _fitting(
    text: str, draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int
) -> str:
    """`text`, its end left out where it is wider than `width` pixels."""
    while draw.textlength(text, font=font) > width:
        text = text[:-2]
    return text
