"""Heat maps for people: input, truth, overlay and the bare map side by side, with the score."""

from __future__ import annotations

import bisect
import csv
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Generic, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from anomaly_vlm.errors import UserError
from anomaly_vlm.files import whole_bytes
from anomaly_vlm.names import PICTURE_SUFFIX, shown
from anomaly_vlm.reporting.curves import ScoredImage

TILE = 256  # side of one square picture in the panel, pixels
GAP, BAND = 8, 22
INK, PAPER, OUTLINE = (30, 30, 30), (255, 255, 255), (255, 60, 60)
BOX = CONTOUR = (255, 255, 255)
# Dark blue over green and yellow to dark red; equal steps of the map are roughly equal steps to the eye.
STOPS = np.array(
    [[48, 18, 59], [65, 105, 225], [38, 190, 205], [110, 235, 110], [235, 215, 60], [245, 125, 40], [122, 4, 3]],
    np.float32,
)
_PLACES = np.linspace(0, len(STOPS) - 1, 1024)
_CHANNELS = [np.interp(_PLACES, np.arange(len(STOPS)), channel) for channel in STOPS.T]
COLOURS = np.stack(_CHANNELS, axis=-1).round().astype(np.uint8)


class ScoredRow(ScoredImage, Protocol):
    """What `choose` needs of an evaluated image."""

    @property
    def index(self) -> int:
        """Position of the image in its data set."""


R = TypeVar("R", bound=ScoredRow)


class Choice(NamedTuple, Generic[R]):
    """An image that is shown.

    Attributes:
        row: The image.
        why: In words: `worst false alarm`, `normal, 2nd lowest score`, ...
    """

    row: R
    why: str


def choose(rows: Sequence[R], *, per_category: int, limits: Mapping[str, float] | None = None) -> list[Choice[R]]:
    """The telling images of each category.

    In turn: the anomalous one with the highest score, the normal one with the highest (worst false alarm), the anomalous one
    with the lowest (worst miss), the normal one with the lowest; then inwards from these ends.

    Args:
        rows: All images.
        per_category: How many of each category.
        limits: By category the score above which an image is rejected, where there is one: only what is decided wrongly is
            then called a miss or a false alarm.
    """
    chosen: list[Choice[R]] = []
    for category in dict.fromkeys(row.category for row in rows):
        members = sorted((r for r in rows if r.category == category), key=lambda r: (-r.score, r.index))
        bad, good = ([r for r in members if (r.label == 1) == anomalous] for anomalous in (True, False))
        ends = [(bad, 0), (good, 0), (bad, -1), (good, -1)]
        picked: list[R] = []
        counts = [0, 0, 0, 0]
        while len(picked) < min(per_category, len(members)):
            turn = len(picked) % 4
            if not ends[turn][0]:
                turn = 0 if bad else 1
            group, end = ends[turn]
            picked.append(group.pop(end))
            chosen.append(Choice(picked[-1], _why(picked[-1], turn, counts[turn], (limits or {}).get(category))))
            counts[turn] += 1
    return chosen


def _why(row: ScoredRow, turn: int, earlier: int, limit: float | None) -> str:
    """Why an image was chosen as the next one of a turn of `choose`."""
    rank = "" if not earlier else f"{earlier + 1}{ {1: 'nd', 2: 'rd'}.get(earlier, 'th') } "
    kind = {1: "anomalous", 0: "normal"}.get(row.label, "unlabelled")
    wrong = row.label >= 0 and (limit is None or (row.score > limit) != (row.label == 1))
    if wrong and (turn, row.label) in ((1, 0), (2, 1)):
        return f"{rank}worst {'miss' if row.label else 'false alarm'}"
    return f"{kind}, {rank}{'highest' if turn < 2 else 'lowest'} score"


def save_for_people(picture: Image.Image, file: IO[bytes], *, lossless: bool) -> None:
    """Writes a picture as PNG, or as JPEG, which takes a twentieth of the time and a quarter of the place."""
    if lossless:
        picture.save(file, "PNG", compress_level=1)
    else:
        picture.save(file, "JPEG", quality=92, subsampling=0)  # full colour, so that thin lines and words stay sharp


def colour_map(values: np.ndarray) -> np.ndarray:
    """Values in [0, 1], any shape -> RGB uint8 [..., 3], in 1,024 steps."""
    colours: np.ndarray = COLOURS[(np.clip(values, 0, 1) * (len(COLOURS) - 1)).round().astype(np.int16)]
    return colours


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
    contour: float | None = None,
) -> None:
    """Writes one picture: input, truth (where known), overlay with the truth outlined, map; boxes on the input and the map.

    Args:
        path: File to write, a PNG where its name ends so, else a JPEG; its folder is made.
        image: uint8 [H, W, 3]; the tiles have its shape.
        heat: Float [h, w], higher = more anomalous, of the whole image.
        mask: [h, w] of 0 / 1 / 255, of the whole image, or None.
        score: Score of the image.
        title: What it is and what made it.
        scale: Map values drawn darkest blue and darkest red.
        boxes: [n, 4] corners (x0, y0, x1, y1) in pixels of the map, which may lie outside; None: of no interest.
        blend: `blend`: half image, half map; `heat`: the map over a grey image, the hotter the more, so that it stands
            out.
        contour: Map value at which the overlay has a line; None for none.
    """
    size, (low, high) = tile_size(image.shape[1], image.shape[0]), scale
    shown_image, large = _tile(image, size), _Heat.at(heat, size, scale)
    overlay = _overlaid(shown_image, large, blend, contour, mask)
    named = "input" if boxes is None else f"input, {len(boxes)} box{'es' * (len(boxes) != 1)}"
    tiles = [(named, with_boxes(shown_image, boxes, heat.shape))]
    if mask is not None:
        truth = np.where((mask == 1)[..., None], 255, np.where((mask == 255)[..., None], 90, 0)).astype(np.uint8)
        tiles.append(("truth", _tile(np.broadcast_to(truth, (*mask.shape, 3)), size)))
    tiles += [
        (f"overlay, score {score:.3f}", overlay),
        (f"map, {low:.3g} to {high:.3g}", with_boxes(Image.fromarray(large.colours), boxes, heat.shape)),
    ]
    path.parent.mkdir(exist_ok=True)  # not the folders above: where these have vanished, that is said
    with whole_bytes(path, durable=False) as file:
        save_for_people(_in_a_row(tiles, size, shown(title)), file, lossless=path.suffix == ".png")


def overlay_picture(
    image: np.ndarray,
    heat: np.ndarray,
    size: tuple[int, int],
    *,
    scale: tuple[float, float],
    blend: Literal["blend", "heat"] = "blend",
    contour: float | None = None,
    mask: np.ndarray | None = None,
) -> Image.Image:
    """The map laid over its image, with a line at `contour` and around the truth.

    Args:
        image: uint8 [H, W, 3].
        heat: See `save_panel`, as for the following.
        size: Width and height of the picture.
        scale: Map values drawn darkest blue and darkest red.
        blend: How the map is laid over the image.
        contour: Map value at which there is a line; None for none.
        mask: [h, w] of 0 / 1 / 255, or None.
    """
    return _overlaid(_tile(image, size), _Heat.at(heat, size, scale), blend, contour, mask)


class _Heat(NamedTuple):
    """A map at the size of a picture: its values [H, W], the same from 0 to 1 on a scale, and their colours [H, W, 3]."""

    values: np.ndarray
    unit: np.ndarray
    colours: np.ndarray

    @classmethod
    def at(cls, heat: np.ndarray, size: tuple[int, int], scale: tuple[float, float]) -> _Heat:
        values = np.asarray(Image.fromarray(heat.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))
        unit = _unit(values, scale)
        return cls(values, unit, colour_map(unit))


def _overlaid(
    tile: Image.Image, heat: _Heat, blend: Literal["blend", "heat"], contour: float | None, mask: np.ndarray | None
) -> Image.Image:
    overlay = laid_over(np.asarray(tile), heat.colours, None if blend == "blend" else heat.unit)
    if mask is not None and (mask == 1).any():
        large = Image.fromarray((mask == 1).astype(np.uint8) * 255).resize(tile.size, Image.Resampling.NEAREST)
        overlay[outline(np.asarray(large) > 0)] = OUTLINE
    if contour is not None:
        overlay[outline(heat.values > contour)] = CONTOUR
    return Image.fromarray(overlay)


def _unit(values: np.ndarray, scale: tuple[float, float]) -> np.ndarray:
    """Values on a scale as numbers from 0 to 1."""
    low, high = scale
    unit: np.ndarray = np.clip((values - low) / (high - low if high > low else 1.0), 0, 1)
    return unit


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, which keeps the letters that it has drawn."""
    return ImageFont.load_default(size)


def _in_a_row(tiles: Sequence[tuple[str, Image.Image]], size: tuple[int, int], title: str) -> Image.Image:
    """Named tiles of `size` (width, height) side by side under a title."""
    width = len(tiles) * (size[0] + GAP) + GAP
    sheet = Image.new("RGB", (width, size[1] + 2 * BAND + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    font = _font(13)
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
    """uint8 [H, W, 3]: colours over an image, half and half, or over the greyed image by `heat` [H, W] in [0, 1]."""
    if heat is None:
        return (0.5 * image + 0.5 * colours).astype(np.uint8)
    grey = 0.3 * image + 0.7 * image.mean(axis=-1, keepdims=True)
    opacity = 0.85 * np.clip(heat, 0, 1)[..., None]
    blended: np.ndarray = ((1 - opacity) * grey + opacity * colours).astype(np.uint8)
    return blended


def _tile(pixels: np.ndarray, size: tuple[int, int]) -> Image.Image:
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    return picture.resize(size, Image.Resampling.BILINEAR, reducing_gap=3.0)


def _shortened(
    text: str, draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int
) -> str:
    """`text`, its middle left out where it is wider than `width` pixels."""
    if draw.textlength(text, font=font) <= width:
        return text
    cuts = [f"{text[: kept // 2]}...{text[-kept // 2 :]}" for kept in range(len(text), 6, -2)] or [text]
    fitting = bisect.bisect_left(cuts, True, key=lambda cut: draw.textlength(cut, font=font) <= width)
    return cuts[min(fitting, len(cuts) - 1)]


def read_rows(path: Path) -> list[list[str]]:
    """The rows of a table without its head; none where it is not there or no table."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.reader(file))[1:]
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"'{path}' cannot be read ({error}): give another output_dir") from error


def remove_pictures(folder: Path, names: Iterable[str]) -> None:
    """Removes pictures of an earlier run, which its tables name, and nothing else.

    Args:
        folder: Of the run.
        names: Of the pictures in the folder, as the tables have them; what is no picture below `pictures/` stays.
    """
    pictures = (folder / "pictures").resolve()
    for name in names:
        place = (folder / name).resolve() if name.endswith((PICTURE_SUFFIX, ".png")) and "\0" not in name else None
        if place is not None and place.is_relative_to(pictures):
            place.unlink(missing_ok=True)


def named_pictures(table: Path) -> list[str]:
    """What the last column of a table of an earlier run names."""
    return [row[-1] for row in read_rows(table) if row]
