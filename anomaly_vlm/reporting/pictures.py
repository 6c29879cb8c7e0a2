"""Heat maps for people: input, truth, overlay and the bare map side by side, with the score."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from anomaly_vlm.files import whole_bytes
from anomaly_vlm.names import shown

TILE = 256  # side of one square picture in the panel, pixels
GAP, BAND = 8, 22
INK, PAPER, OUTLINE = (30, 30, 30), (255, 255, 255), (255, 60, 60)
BOX = (255, 255, 255)
# Dark blue over green and yellow to dark red; equal steps of the map are roughly equal steps to the eye.
STOPS = np.array(
    [[48, 18, 59], [65, 105, 225], [38, 190, 205], [110, 235, 110], [235, 215, 60], [245, 125, 40], [122, 4, 3]],
    np.float32,
)


class ScoredRow(Protocol):
    """What `choose` needs of an evaluated image."""

    @property
    def category(self) -> str:
        """Category of the image."""

    @property
    def label(self) -> int:
        """1 for an anomalous image, 0 for a normal one."""

    @property
    def score(self) -> float:
        """Image score."""

    @property
    def index(self) -> int:
        """Position of the image in its data set."""


R = TypeVar("R", bound=ScoredRow)


def choose(rows: Sequence[R], *, per_category: int) -> list[R]:
    """The telling images of each category.

    In turn: the anomalous one with the highest score, the normal one with the highest (worst false alarm), the anomalous one
    with the lowest (worst miss), the normal one with the lowest; then inwards from these ends.
    """
    chosen: list[R] = []
    for category in dict.fromkeys(row.category for row in rows):
        members = sorted((r for r in rows if r.category == category), key=lambda r: (-r.score, r.index))
        bad, good = ([r for r in members if (r.label == 1) == anomalous] for anomalous in (True, False))
        ends = [(bad, 0), (good, 0), (bad, -1), (good, -1)]
        picked: list[R] = []
        while len(picked) < min(per_category, len(members)):
            group, end = ends[len(picked) % 4] if ends[len(picked) % 4][0] else (bad or good, 0)
            picked.append(group.pop(end))
        chosen += picked
    return chosen


def colour_map(values: np.ndarray) -> np.ndarray:
    """Values in [0, 1], any shape -> RGB uint8 [..., 3]."""
    place = np.clip(values, 0, 1) * (len(STOPS) - 1)
    channels = [np.interp(place, np.arange(len(STOPS)), STOPS[:, c]) for c in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def outline(mask: np.ndarray) -> np.ndarray:
    """The border pixels of a boolean mask [H, W], inside it."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    contour: np.ndarray = mask & ~inner
    return contour


def save_panel(
    path: Path,
    image: np.ndarray,
    heat: np.ndarray,
    mask: np.ndarray | None,
    *,
    score: float,
    title: str,
    scale: tuple[float, float],
    boxes: np.ndarray | None = None,
    blend: Literal["blend", "heat"] = "blend",
) -> None:
    """Writes one PNG: input, truth (where known), overlay with the truth outlined, map; boxes on the input and the map.

    Args:
        path: File to write; its folder is made.
        image: uint8 [H, W, 3].
        heat: Float [H, W], higher = more anomalous.
        mask: [H, W] of 0 / 1 / 255, or None.
        score: Score of the image.
        title: What it is and what made it.
        scale: Map values drawn darkest blue and darkest red.
        boxes: [n, 4] corners (x0, y0, x1, y1) in pixels of the map, which may lie outside; None: of no interest.
        blend: `blend`: half image, half map; `heat`: the map over a grey image, the hotter the more, so that it stands
            out.
    """
    size = tile_size(image.shape[1], image.shape[0])
    low, high = scale
    unit = np.clip((heat - low) / (high - low if high > low else 1.0), 0, 1)
    colours = colour_map(unit)
    if colours.shape != image.shape:  # maps of another size than the input
        full = (image.shape[1], image.shape[0])
        colours = np.asarray(Image.fromarray(colours).resize(full, Image.Resampling.BILINEAR))
        mask = None if mask is None else np.asarray(Image.fromarray(mask).resize(full, Image.Resampling.NEAREST))
    overlay = laid_over(image, colours, None if blend == "blend" else unit)
    named = "input" if boxes is None else f"input, {len(boxes)} box{'es' * (len(boxes) != 1)}"
    tiles = [(named, with_boxes(_tile(image, size), boxes, heat.shape))]
    if mask is not None:
        truth = np.where((mask == 1)[..., None], 255, np.where((mask == 255)[..., None], 90, 0)).astype(np.uint8)
        tiles.append(("truth", _tile(np.broadcast_to(truth, image.shape), size)))
    picture = _tile(overlay, size)
    if mask is not None and (mask == 1).any():
        large = Image.fromarray((mask == 1).astype(np.uint8) * 255).resize(picture.size, Image.Resampling.NEAREST)
        pixels = np.array(picture)
        pixels[outline(np.asarray(large) > 0)] = OUTLINE
        picture = Image.fromarray(pixels)
    tiles += [
        (f"overlay, score {score:.3f}", picture),
        (f"map, {low:.3g} to {high:.3g}", with_boxes(_tile(colours, size), boxes, heat.shape)),
    ]
    path.parent.mkdir(exist_ok=True)  # not the folders above: where these have vanished, that is said
    with whole_bytes(path, durable=False) as file:
        _in_a_row(tiles, size, shown(title)).save(file, "PNG", optimize=True)


def _in_a_row(tiles: Sequence[tuple[str, Image.Image]], size: tuple[int, int], title: str) -> Image.Image:
    """Named tiles of `size` (width, height) side by side under a title."""
    width = len(tiles) * (size[0] + GAP) + GAP
    sheet = Image.new("RGB", (width, size[1] + 2 * BAND + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(13)
    draw.text((GAP, 4), _shortened(title, draw, font, width - 2 * GAP), fill=INK, font=font)
    for i, (name, tile) in enumerate(tiles):
        left = GAP + i * (size[0] + GAP)
        draw.text((left, BAND + 2), name, fill=INK, font=font)
        sheet.paste(tile, (left, 2 * BAND))
    return sheet


def with_boxes(tile: Image.Image, boxes: np.ndarray | None, size: tuple[int, ...]) -> Image.Image:
    """A tile with boxes drawn on it whose corners are in pixels of a map of `size` (height, width)."""
    if boxes is None:
        return tile
    draw = ImageDraw.Draw(tile)
    scale = np.array([tile.width / size[1], tile.height / size[0]] * 2)
    for box in boxes * scale:
        left, top, right, bottom = (float(edge) for edge in np.rint(box))
        draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=BOX, width=2)
    return tile


def tile_size(width: int, height: int) -> tuple[int, int]:
    """Width and height of a picture in the panel: the image's shape, the area of a square of side `TILE`."""
    aspect = (width / height) ** 0.5
    return max(1, round(TILE * aspect)), max(1, round(TILE / aspect))


def laid_over(image: np.ndarray, colours: np.ndarray, heat: np.ndarray | None) -> np.ndarray:
    """uint8 [H, W, 3]: colours over an image, half and half, or over the greyed image by `heat` [h, w] in [0, 1]."""
    if heat is None:
        return (0.5 * image + 0.5 * colours).astype(np.uint8)
    if heat.shape != image.shape[:2]:
        whole = Image.fromarray(heat.astype(np.float32))
        heat = np.asarray(whole.resize((image.shape[1], image.shape[0]), Image.Resampling.BILINEAR))
    grey = 0.3 * image + 0.7 * image.mean(axis=-1, keepdims=True)
    opacity = 0.85 * np.clip(heat, 0, 1)[..., None]
    blended: np.ndarray = ((1 - opacity) * grey + opacity * colours).astype(np.uint8)
    return blended


def _tile(pixels: np.ndarray, size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(pixels)).resize(size, Image.Resampling.BILINEAR)


def _shortened(
    text: str, draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int
) -> str:
    """`text`, its middle left out where it is wider than `width` pixels."""
    if draw.textlength(text, font=font) <= width:
        return text
    length = len(text)
    while length > 8 and draw.textlength(f"{text[: length // 2]}...{text[-length // 2 :]}", font=font) > width:
        length -= 2
    return f"{text[: length // 2]}...{text[-length // 2 :]}"
