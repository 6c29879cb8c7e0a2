"""What every drawing starts from: coordinates, smooth noise, cells, soft edges, light and colour."""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from .dice import Dice

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
Window = tuple[slice, slice]


@dataclass(frozen=True)
class Scene:
    """A normal picture before its defect and its nuisances; a crop of one is a `Scene` too.

    Attributes:
        image: float32 [H, W, 3] in [0, 1], sRGB.
        coverage: float32 [H, W] in [0, 1], 1 where the object (or the texture) lies.
        background: float32 [H, W, 3], what shows where material is missing.
    """

    image: np.ndarray
    coverage: np.ndarray
    background: np.ndarray

    def crop(self, window: Window) -> Scene:
        """The part inside `window`, sharing memory."""
        return Scene(self.image[window], self.coverage[window], self.background[window])


@dataclass(frozen=True)
class Cells:
    """A random tiling by nearest points, each [H, W] float32; distances in cell sizes.

    Attributes:
        nearest: Distance to the cell's point.
        border: Distance to the second nearest point minus `nearest`: 0 on the border between cells.
        number: Uniform in [0, 1], one for each cell.
        other: A second number, independent of the first.
    """

    nearest: np.ndarray
    border: np.ndarray
    number: np.ndarray
    other: np.ndarray


class Canvas:
    """Part of the plane sampled at pixel centres, with the dice and the light of one picture.

    A whole picture is the square [-1, 1] x [-1, 1]; around a defect it is a smaller rectangle with the defect at (0, 0).

    Attributes:
        pixel: Side of a pixel in canvas units.
        x: float32 [H, W], growing to the right.
        y: float32 [H, W], growing downwards.
        reach: The rectangle lies in [-reach, reach] x [-reach, reach] (up to a pixel).
        light: Unit vector (x, y) towards the light.
    """

    def __init__(
        self, x: np.ndarray, y: np.ndarray, reach: float, pixel: float, dice: Dice, light: tuple[float, float]
    ) -> None:
        self.x = np.broadcast_to(x[None, :], (len(y), len(x)))
        self.y = np.broadcast_to(y[:, None], (len(y), len(x)))
        self.shape = (len(y), len(x))
        self.reach, self.pixel = reach, pixel
        self.dice, self.light = dice, light

    @classmethod
    def whole(cls, size: int, dice: Dice) -> Canvas:
        """The canvas of a picture of `size` x `size` pixels, with a light drawn from `dice`."""
        line = ((np.arange(size) + 0.5) * 2 / size - 1).astype(np.float32)
        direction = dice.angle()
        return cls(line, line, 1.0, 2 / size, dice, (math.cos(direction), math.sin(direction)))

    def around(self, x: float, y: float, reach: float, dice: Dice) -> tuple[Canvas, Window]:
        """The part within `reach` of the point (x, y), which becomes (0, 0), and its window in this canvas."""
        columns, rows = (
            slice(max(int((c - reach + 1) / self.pixel), 0), min(math.ceil((c + reach + 1) / self.pixel), count))
            for c, count in ((x, self.shape[1]), (y, self.shape[0]))
        )
        part = Canvas(
            self.x[0, columns] - np.float32(x), self.y[rows, 0] - np.float32(y), reach, self.pixel, dice, self.light
        )
        return part, (rows, columns)

    def turned(self, angle: float, x: float = 0.0, y: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates (u, v), each [H, W], of axes turned by `angle` radians about (x, y)."""
        cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
        dx, dy = self.x - np.float32(x), self.y - np.float32(y)
        return dx * cos + dy * sin, dy * cos - dx * sin

    def noise(self, cells: float, octaves: int = 1, stretch: float = 1.0, angle: float = 0.0) -> np.ndarray:
        """Smooth noise: value noise summed over octaves, float32 [H, W], about mean 0 and standard deviation 1.

        Args:
            cells: Cells of the coarsest octave along 2 units (the side of a whole picture).
            octaves: Each one has twice the cells and half the weight of the one before.
            stretch: How much longer a cell is along `angle` than across it.
            angle: Direction of the stretch in radians.
        """
        total = np.zeros(self.shape, np.float32)
        weight, power = 1.0, 0.0
        for octave in range(octaves):
            across = cells * 2**octave
            total += np.float32(weight) * self._octave(across, across / stretch, angle)
            power += weight**2
            weight /= 2
        # 0.75: cubic interpolation between the lattice points lowers the deviation of the lattice itself.
        return total / np.float32(0.75 * math.sqrt(power))

    def _octave(self, across: float, along: float, angle: float) -> np.ndarray:
        columns, rows = (math.ceil(1.5 * count * self.reach) + 6 for count in (along, across))
        lattice = Image.fromarray(self.dice.table(rows, columns))
        cos, sin = math.cos(angle), math.sin(angle)
        left, top = float(self.x[0, 0]) - self.pixel / 2, float(self.y[0, 0]) - self.pixel / 2
        u, v, step = along / 2, across / 2, self.pixel
        row = (u * step * cos, u * step * sin, columns / 2 + u * (left * cos + top * sin))
        affine = (*row, -v * step * sin, v * step * cos, rows / 2 + v * (top * cos - left * sin))
        height, width = self.shape
        drawn = lattice.transform((width, height), Image.Transform.AFFINE, affine, Image.Resampling.BICUBIC)
        return np.asarray(drawn)

    def cells(self, u: np.ndarray, v: np.ndarray, jitter: float = 0.9) -> Cells:
        """Tiling by the nearest of jittered grid points; `u`, `v` [H, W] in cell sizes, `jitter` 0 (squares) to 1."""
        span = 64  # the pattern repeats after this many cells
        table = self.dice.fractions(4, span * span)
        table[:2] = np.float32(0.5) + (table[:2] - np.float32(0.5)) * np.float32(jitter)
        column, row = np.floor(u), np.floor(v)
        inside_u, inside_v = u - column, v - row
        column, row = column.astype(np.int32), row.astype(np.int32)
        first = np.full(u.shape, 9, np.float32)
        second, owner = first.copy(), np.zeros(u.shape, np.int32)
        for down in (-1, 0, 1):
            line = ((row + down) % span) * span
            for right in (-1, 0, 1):
                cell = line + (column + right) % span
                squared = (table[0].take(cell) + np.float32(right) - inside_u) ** 2
                squared += (table[1].take(cell) + np.float32(down) - inside_v) ** 2
                second = np.minimum(second, np.maximum(first, squared))
                owner = np.where(squared < first, cell, owner)
                first = np.minimum(first, squared)
        first, second = np.sqrt(first), np.sqrt(second)
        return Cells(first, second - first, table[2].take(owner), table[3].take(owner))

    def inside(self, distance: np.ndarray, softness: float = 1.0) -> np.ndarray:
        """Anti-aliased coverage in [0, 1] of the set where `distance` (canvas units) is negative; edge of `softness` px."""
        return np.clip(np.float32(0.5) - distance / np.float32(self.pixel * softness), 0, 1)

    def slope(self, height: np.ndarray) -> np.ndarray:
        """Slope of `height` (canvas units) towards the light: positive where a surface faces it. [H, W]."""
        down, right = np.gradient(height, np.float32(self.pixel))
        slope: np.ndarray = -(right * np.float32(self.light[0]) + down * np.float32(self.light[1]))
        return slope

    def ink(self) -> Ink:
        """An empty drawing of lines and polygons in canvas units."""
        return Ink(self)


class Ink:
    """Lines, polygons and discs in canvas units, drawn three times finer with Pillow and averaged."""

    FINE = 3

    def __init__(self, canvas: Canvas) -> None:
        height, width = canvas.shape
        self._scale = self.FINE / canvas.pixel
        self._left, self._top = float(canvas.x[0, 0]) - canvas.pixel / 2, float(canvas.y[0, 0]) - canvas.pixel / 2
        self._image = Image.new("L", (width * self.FINE, height * self.FINE))
        self._draw = ImageDraw.Draw(self._image)

    def _points(self, points: np.ndarray) -> list[tuple[float, float]]:
        return [((float(x) - self._left) * self._scale, (float(y) - self._top) * self._scale) for x, y in points]

    def line(self, points: np.ndarray, width: float, level: int = 255) -> None:
        """A polyline through `points` [N, 2] with rounded joints."""
        self._draw.line(self._points(points), fill=level, width=max(1, round(width * self._scale)), joint="curve")

    def polygon(self, points: np.ndarray, level: int = 255) -> None:
        """The inside of `points` [N, 2]."""
        self._draw.polygon(self._points(points), fill=level)

    def disc(self, x: float, y: float, radius: float, level: int = 255) -> None:
        """A filled disc."""
        ((px, py),) = self._points(np.array([[x, y]]))
        r = radius * self._scale
        self._draw.ellipse((px - r, py - r, px + r, py + r), fill=level)

    def coverage(self) -> np.ndarray:
        """What was drawn, float32 [H, W] in [0, 1]."""
        reduced = self._image.reduce(self.FINE)
        return np.asarray(reduced, np.float32) / np.float32(255)


def moved(array: np.ndarray, right: float, down: float) -> np.ndarray:
    """`array` [H, W] shifted by whole pixels (rounded), edges repeated."""
    rows = np.clip(np.arange(array.shape[0]) - round(down), 0, array.shape[0] - 1)
    columns = np.clip(np.arange(array.shape[1]) - round(right), 0, array.shape[1] - 1)
    return array[rows[:, None], columns[None, :]]


def smoothstep(low: float, high: float, value: np.ndarray) -> np.ndarray:
    """0 below `low`, 1 above `high`, smooth between."""
    t = np.clip((value - np.float32(low)) / np.float32(high - low), 0, 1)
    step: np.ndarray = t * t * (3 - 2 * t)
    return step


def mix(below: np.ndarray, above: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """`above` over `below` (colours [3] or [H, W, 3]) where `alpha` [H, W] is 1."""
    mixed: np.ndarray = below + (above - below) * alpha[..., None]
    return mixed


def tone(colour: np.ndarray, brightness: np.ndarray) -> np.ndarray:
    """`colour` [3] or [H, W, 3] times `brightness` [H, W]."""
    toned: np.ndarray = colour * brightness[..., None]
    return toned


def hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    """RGB float32 [3] of hue in degrees, saturation and value in [0, 1]."""
    return np.array(colorsys.hsv_to_rgb((hue / 360) % 1, saturation, value), np.float32)


def rgb(red: float, green: float, blue: float) -> np.ndarray:
    """RGB float32 [3]."""
    return np.array([red, green, blue], np.float32)


def colour(
    dice: Dice, hue: tuple[float, float], saturation: tuple[float, float], value: tuple[float, float]
) -> np.ndarray:
    """A random RGB colour, float32 [3], within ranges of hue (degrees), saturation and value."""
    return hsv(dice.uniform(*hue), dice.uniform(*saturation), dice.uniform(*value))


def any_colour(
    dice: Dice, saturation: tuple[float, float] = (0.2, 0.8), value: tuple[float, float] = (0.35, 0.9)
) -> np.ndarray:
    """A random RGB colour of any hue."""
    return colour(dice, (0, 360), saturation, value)
