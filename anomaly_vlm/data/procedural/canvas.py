"""What every drawing starts from: coordinates, smooth noise, soft edges, light and colour."""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .dice import Dice

LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True)
class Scene:
    """A normal picture before its defect and its nuisances; a crop of one is a `Scene` too.

    Attributes:
        image: float32 [H, W, 3] in [0, 1], sRGB.
        coverage: float32 [H, W] in [0, 1], 1 where the object (or the texture) lies.
        background: float32 [H, W, 3], what shows where material is missing.
        light: unit vector (x, y) towards the light.
    """

    image: np.ndarray
    coverage: np.ndarray
    background: np.ndarray
    light: tuple[float, float]

    def crop(self, window: tuple[slice, slice]) -> Scene:
        """The part inside `window`, sharing memory."""
        return Scene(self.image[window], self.coverage[window], self.background[window], self.light)


class Canvas:
    """The square [-1, 1] x [-1, 1] sampled at pixel centres, with the dice and the light of one picture.

    Attributes:
        size: side in pixels. pixel: side of a pixel in canvas units.
        x, y: float32 [H, W], x to the right, y down.
        light: unit vector (x, y) towards the light.
    """

    def __init__(self, size: int, dice: Dice) -> None:
        self.size = size
        self.dice = dice
        self.pixel = 2.0 / size
        line = ((np.arange(size, dtype=np.float32) + 0.5) * self.pixel - 1).astype(np.float32)
        self.x = np.broadcast_to(line[None, :], (size, size))
        self.y = np.broadcast_to(line[:, None], (size, size))
        direction = dice.angle()
        self.light = (math.cos(direction), math.sin(direction))

    def turned(self, angle: float) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates (u, v), each [H, W], of axes turned by `angle` radians."""
        cos, sin = math.cos(angle), math.sin(angle)
        return self.x * cos + self.y * sin, self.y * cos - self.x * sin

    def noise(self, cells: float, octaves: int = 1, stretch: float = 1.0, angle: float = 0.0) -> np.ndarray:
        """Smooth noise: value noise summed over octaves, float32 [H, W], about mean 0 and standard deviation 1.

        Args:
            cells: cells of the coarsest octave along the side of the canvas.
            octaves: each one has twice the cells and half the weight of the one before.
            stretch: how much longer a cell is along `angle` (radians) than across it.
        """
        total = np.zeros((self.size, self.size), np.float32)
        weight, power = 1.0, 0.0
        for octave in range(octaves):
            across = cells * 2**octave
            total += np.float32(weight) * self._octave(across, across / stretch, angle)
            power += weight**2
            weight /= 2
        # 0.75: cubic interpolation between the lattice points lowers the deviation of the lattice itself.
        return total / np.float32(0.75 * math.sqrt(power))

    def _octave(self, across: float, along: float, angle: float) -> np.ndarray:
        columns, rows = (math.ceil(1.5 * count) + 6 for count in (along, across))
        lattice = Image.fromarray(self.dice.table(rows, columns))
        cos, sin = math.cos(angle), math.sin(angle)
        u, v = along / self.size, across / self.size
        middle = self.size / 2
        affine = (
            (u * cos, u * sin, columns / 2 - u * (cos + sin) * middle)
            + (-v * sin, v * cos, rows / 2 - v * (cos - sin) * middle)
        )  # fmt: skip
        drawn = lattice.transform((self.size, self.size), Image.Transform.AFFINE, affine, Image.Resampling.BICUBIC)
        return np.asarray(drawn)

    def inside(self, distance: np.ndarray, softness: float = 1.0) -> np.ndarray:
        """Anti-aliased coverage in [0, 1] of the set where `distance` (canvas units) is negative; edge of `softness` px."""
        return np.clip(0.5 - distance / np.float32(self.pixel * softness), 0, 1)

    def lit(self, height: np.ndarray) -> np.ndarray:
        """Slope of `height` (canvas units) towards the light: positive where a surface faces it. [H, W]."""
        down, right = np.gradient(height, np.float32(self.pixel))
        return -(right * np.float32(self.light[0]) + down * np.float32(self.light[1]))


def smoothstep(low: float, high: float, value: np.ndarray) -> np.ndarray:
    """0 below `low`, 1 above `high`, smooth between."""
    t = np.clip((value - np.float32(low)) / np.float32(high - low), 0, 1)
    return t * t * (3 - 2 * t)


def mix(below: np.ndarray, above: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """`above` over `below` (colours [3] or [H, W, 3]) where `alpha` [H, W] is 1."""
    return below + (above - below) * alpha[..., None]


def tone(colour: np.ndarray, brightness: np.ndarray) -> np.ndarray:
    """`colour` [3] or [H, W, 3] times `brightness` [H, W]."""
    return colour * brightness[..., None]


def hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    """RGB float32 [3] of hue in degrees, saturation and value in [0, 1]."""
    return np.array(colorsys.hsv_to_rgb((hue / 360) % 1, saturation, value), np.float32)


def colour(
    dice: Dice, hue: tuple[float, float], saturation: tuple[float, float], value: tuple[float, float]
) -> np.ndarray:
    """A random RGB colour, float32 [3], within ranges of hue (degrees), saturation and value."""
    return hsv(dice.uniform(*hue), dice.uniform(*saturation), dice.uniform(*value))


def any_colour(dice: Dice, saturation: tuple[float, float] = (0.2, 0.8)) -> np.ndarray:
    """A random RGB colour of any hue, neither black nor white."""
    return colour(dice, (0, 360), saturation, (0.35, 0.9))
