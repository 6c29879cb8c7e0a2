"""Curves and histograms as pictures, drawn with Pillow: loggers and folders take them, and no plotting library is needed."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from anomaly_vlm.files import whole_bytes
from anomaly_vlm.names import shown
from anomaly_vlm.reporting.curves import POOLED, Curves, Histogram, is_logarithmic

CURVES_PICTURE, HISTOGRAMS_PICTURE = "curves.png", "histograms.png"  # in the run's folder
FINER = 3  # lines are drawn so many times larger, then averaged
SIDE, LEFT, TOP, GAP = 220, 44, 26, 18  # of a panel: its plot, room for numbers, title and the next panel; pixels
MOST = 24  # categories that are drawn; more would be told apart by nobody
LEGEND = 180  # width of the column with the categories' names, pixels
INK, GRID, PAPER = (40, 40, 40), (225, 225, 225), (255, 255, 255)
NORMAL, ANOMALOUS = (31, 119, 180), (214, 39, 40)
COLOURS = (
    (31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189), (140, 86, 75), (227, 119, 194),
    (23, 190, 207), (188, 189, 34), (120, 120, 120), (0, 63, 92), (255, 166, 0),
)  # fmt: skip
PANELS = {  # level and curve: title
    ("image", "roc"): "image ROC",
    ("image", "pr"): "image precision over recall",
    ("pixel", "roc"): "pixel ROC",
    ("pixel", "pr"): "pixel precision over recall",
    ("pixel", "pro"): "region overlap over false positives",
}


class Line(NamedTuple):
    """A polygon in the unit square.

    Attributes:
        x: `[K]` in [0, 1].
        y: `[K]` in [0, 1].
        colour: RGB.
        width: Pixels.
    """

    x: np.ndarray
    y: np.ndarray
    colour: tuple[int, int, int]
    width: int = 1


def curves_picture(curves: Curves) -> Image.Image:
    """A panel for each kind of curve, a line for each category, all images as one in black."""
    names = list(dict.fromkeys(category for category, _ in curves))
    named = [name for name in names if name != POOLED]
    drawn = [*named[:MOST], *([POOLED] if POOLED in names and len(named) != 1 else [])]
    colours = {name: INK if name == POOLED else COLOURS[i % len(COLOURS)] for i, name in enumerate(drawn)}
    panels = [key for key in PANELS if any(len(curves.get((name, key[0]), {}).get(key[1], ((),))[0]) for name in drawn)]
    rows = [shown(name)[:26] for name in drawn]
    if len(named) > MOST:
        rows.append(f"and {len(named) - MOST} more categories")
    width = LEFT + len(panels) * (SIDE + LEFT) + LEGEND
    picture = Image.new("RGB", (width, max(TOP + SIDE + 2 * GAP, TOP + 16 * len(rows) + GAP)), PAPER)
    for i, (level, curve) in enumerate(panels):
        lines = []
        for name in drawn:
            if len((vertices := curves.get((name, level), {}).get(curve, ((), ())))[0]):
                x, y = (np.asarray(axis, float) for axis in vertices)
                lines.append(Line(x, y, colours[name], 2 if name == POOLED else 1))
        place = (LEFT + i * (SIDE + LEFT), TOP)
        _panel(picture, place, PANELS[level, curve], lines)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(11)
    for i, row in enumerate(rows):
        top, left = TOP + 16 * i, width - LEGEND
        if i < len(drawn):
            draw.rectangle((left, top + 4, left + 12, top + 8), fill=colours[drawn[i]])
        draw.text((left + 18, top), row, fill=INK, font=font)
    return picture


def _panel(picture: Image.Image, place: tuple[int, int], title: str, lines: Sequence[Line]) -> None:
    """Draws axes from 0 to 1 with lines, its upper left corner at `place` (x, y)."""
    size = SIDE * FINER
    plot = Image.new("RGB", (size, size), PAPER)
    fine = ImageDraw.Draw(plot)
    for step in range(6):
        at = round(step / 5 * (size - 1))
        fine.line((at, 0, at, size), fill=GRID, width=FINER)
        fine.line((0, at, size, at), fill=GRID, width=FINER)
    for line in lines:
        points = list(zip((line.x * (size - 1)).tolist(), ((1 - line.y) * (size - 1)).tolist(), strict=True))
        fine.line(points, fill=line.colour, width=line.width * FINER, joint="curve")
    picture.paste(plot.resize((SIDE, SIDE), Image.Resampling.BOX), place)
    draw, font, small = ImageDraw.Draw(picture), ImageFont.load_default(12), ImageFont.load_default(10)
    draw.rectangle((place[0], place[1], place[0] + SIDE, place[1] + SIDE), outline=INK)
    draw.text((place[0], place[1] - 18), title, fill=INK, font=font)
    for value in (0.0, 0.5, 1.0):
        draw.text((place[0] + value * SIDE - 8, place[1] + SIDE + 3), f"{value:g}", fill=INK, font=small)
        draw.text((place[0] - 24, place[1] + (1 - value) * SIDE - 6), f"{value:g}", fill=INK, font=small)


def histograms_picture(histograms: Mapping[str, Histogram], *, columns: int = 4) -> Image.Image:
    """A panel for each category: normal (or unlabelled) images in blue, anomalous ones in red, over their scores."""
    names = list(histograms)[:MOST]
    columns = max(1, min(columns, len(names)))
    rows = -(-len(names) // columns)
    width, height = SIDE + GAP, SIDE // 2 + TOP + 2 * GAP
    picture = Image.new("RGB", (GAP + columns * width, max(1, rows) * height + GAP), PAPER)
    draw, font, small = ImageDraw.Draw(picture), ImageFont.load_default(12), ImageFont.load_default(10)
    for i, name in enumerate(names):
        one, left, top = histograms[name], GAP + i % columns * width, TOP + i // columns * height
        floor, most = top + SIDE // 2, max(1, int(one.normal.max()), int(one.anomalous.max()))
        bar = SIDE / len(one.normal)
        for counts, colour, shift in ((one.normal, NORMAL, 0.0), (one.anomalous, ANOMALOUS, 0.5)):
            for j in np.flatnonzero(counts).tolist():
                start = left + (j + shift) * bar
                box = (start, floor - counts[j] / most * SIDE / 2, start + bar / 2, floor)
                draw.rectangle(box, fill=colour)
        draw.line((left, floor, left + SIDE, floor), fill=INK)
        draw.text((left, top - 18), f"{shown(name)[:24]}, most {most}", fill=INK, font=font)
        draw.text((left, floor + 3), f"{one.edges[0]:.4g}", fill=INK, font=small)
        if is_logarithmic(one.edges):
            draw.text((left + SIDE / 2, floor + 3), "log", fill=INK, font=small, anchor="ma")
        last = f"{one.edges[-1]:.4g}"
        draw.text((left + SIDE - draw.textlength(last, font=small), floor + 3), last, fill=INK, font=small)
    more = f"; {len(histograms) - MOST} more categories in histograms.csv" if len(histograms) > MOST else ""
    draw.text((GAP, picture.height - GAP), f"blue: normal, red: anomalous{more}", fill=INK, font=small)
    return picture


def save_picture(path: Path, picture: Image.Image) -> None:
    """Writes a PNG whole."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    with whole_bytes(path, durable=False) as file:
        file.write(buffer.getvalue())
