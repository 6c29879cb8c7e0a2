"""A contact sheet of a data set: each image beside the same image with its mask outlined."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from anomaly_vlm.data.types import Sample
from anomaly_vlm.errors import UserError
from anomaly_vlm.reporting.pictures import INK, OUTLINE, PAPER, outline

SIDE, GAP, LINE = 128, 6, 14  # pixels: of a picture, between tiles, of a line of text


def contact_sheet(samples: Sequence[Sample], path: Path | str, *, columns: int = 6, limit: int = 96) -> None:
    """Writes one PNG with up to `limit` samples, `columns` a row, spread over categories and defects.

    Args:
        samples: rows of an index, files or drawings.
        path: file to write; its folder is made.

    Raises:
        UserError: nothing to show.
    """
    chosen = spread(samples, limit)
    if not chosen:
        raise UserError("the contact sheet has no sample to show: check the categories and the root of the data set")
    width, height = 2 * SIDE + GAP, SIDE + 2 * LINE + GAP
    rows = -(-len(chosen) // columns)
    columns = min(columns, len(chosen))
    sheet = Image.new("RGB", (columns * (width + GAP) + GAP, rows * height + GAP), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for i, sample in enumerate(chosen):
        left, top = GAP + (i % columns) * (width + GAP), GAP + (i // columns) * height
        image, mask = read(sample)
        sheet.paste(image, (left, top))
        pixels = np.array(image)
        pixels[outline(mask)] = OUTLINE
        sheet.paste(Image.fromarray(pixels), (left + SIDE, top))
        state = {0: "good", 1: sample.defect, None: "unknown"}[sample.label]
        draw.text((left, top + SIDE), _fitting(f"{sample.category}: {state}", draw, font, width), fill=INK, font=font)
        draw.text(
            (left, top + SIDE + LINE - 2), _fitting(Path(sample.path).name, draw, font, width), fill=INK, font=font
        )
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(target, optimize=True)


def spread(samples: Sequence[Sample], limit: int) -> list[Sample]:
    """At most `limit` samples, taken in turn from each (category, defect), then sorted as in the index."""
    groups: dict[tuple[str, str], list[int]] = {}
    for i, sample in enumerate(samples):
        groups.setdefault((sample.category, sample.defect), []).append(i)
    turns = sorted((turn, i) for members in groups.values() for turn, i in enumerate(members))
    return [samples[i] for i in sorted(i for _, i in turns[:limit])]


def read(sample: Sample) -> tuple[Image.Image, np.ndarray]:
    """A sample's picture, SIDE x SIDE, and its mask, bool [SIDE, SIDE] (all False where it has none)."""
    mask = np.zeros((SIDE, SIDE), bool)
    if sample.drawing is not None:
        drawn = sample.drawing.draw()
        image, masks = Image.fromarray(drawn.image), [drawn.mask]
    else:
        image = Image.open(sample.path).convert("RGB")
        masks = [np.asarray(Image.open(name).convert("L")) > sample.mask_threshold for name in sample.masks]
    for part in masks:
        mask |= np.asarray(Image.fromarray(part).resize((SIDE, SIDE), Image.Resampling.NEAREST))
    return image.resize((SIDE, SIDE), Image.Resampling.BICUBIC), mask


def _fitting(
    text: str, draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int
) -> str:
    """`text`, its end left out where it is wider than `width` pixels."""
    while draw.textlength(text, font=font) > width:
        text = text[:-2]
    return text
