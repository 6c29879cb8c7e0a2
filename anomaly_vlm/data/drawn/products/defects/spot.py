"""Where a defect goes, and the shapes and samplers that defects share."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates

from ..canvas import Canvas, Scene, Window, mix, smoothstep
from ..dice import Dice

GRID = 64  # cells a side of the grid on which places for defects are judged


@dataclass(frozen=True)
class Spot:
    """The window of a picture in which one defect is drawn; the defect's middle is the canvas' (0, 0).

    Attributes:
        c: Canvas of the window with the defect's own dice.
        scene: The picture inside the window, before the defect.
        window: Place of the window in the whole picture.
        radius: Half the extent of the defect, canvas units.
        heading: Radians; on an edge the direction out of the object, elsewhere random.
        colour: Mean colour of the material within `radius`, float32 [3].
    """

    c: Canvas
    scene: Scene
    window: Window
    radius: float
    heading: float
    colour: np.ndarray

    @property
    def dice(self) -> Dice:
        """The random draws of this defect."""
        return self.c.dice

    def blob(self, rough: float = 0.25, stretch: float = 1.0, fine: float = 0.08) -> np.ndarray:
        """Signed distance (canvas units, negative inside) of an irregular outline of about `radius`; [H, W].

        Args:
            rough: Depth of the three slow bulges of the outline, as a share of the radius.
            fine: Depth of its fine raggedness, as a share of the radius.
            stretch: Ratio of its length along `heading` to its width.
        """
        u, v = self.c.turned(self.heading)
        u = u / np.float32(stretch)
        theta = np.arctan2(v, u)
        edge: np.ndarray = np.ones(self.c.shape, np.float32)
        for waves in (2, 3, 5):
            edge = edge + np.float32(self.dice.uniform(0.3, 1) * rough * 1.5 / waves) * np.cos(
                theta * waves + np.float32(self.dice.angle())
            )
        edge = edge + np.float32(fine) * self.c.noise(5 / self.radius, 2)
        distance: np.ndarray = np.sqrt(u * u + v * v) - np.float32(self.radius) * 0.85 * edge
        return distance

    def on(self, after: np.ndarray) -> np.ndarray:
        """`after` where the material lies, the picture as it was elsewhere."""
        return mix(self.scene.image, after, self.scene.coverage)

    def shifted(self, dx: np.ndarray, dy: np.ndarray, image: np.ndarray | None = None) -> np.ndarray:
        """The picture (or another `image` [H, W, C]) read at (x + dx, y + dy), canvas units; bilinear, [H, W, C]."""
        rows = (self.c.y + dy - self.c.y[0, 0]) / np.float32(self.c.pixel)
        columns = (self.c.x + dx - self.c.x[0, 0]) / np.float32(self.c.pixel)
        return read(self.scene.image if image is None else image, rows, columns)

    def soft(self, distance: np.ndarray, softness: float) -> np.ndarray:
        """1 inside, 0 outside, with an edge `softness` canvas units wide (a pixel at least)."""
        half = max(softness, self.c.pixel) / 2
        return 1 - smoothstep(-half, half, distance)


def read(image: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """`image` [h, w, C] at fractional pixel positions, bilinear, edges repeated; float32 [H, W, C]."""
    places = np.stack([rows, columns])
    channels = [map_coordinates(image[..., k], places, order=1, mode="nearest") for k in range(image.shape[2])]
    return np.stack(channels, axis=-1)


def find(
    canvas: Canvas, scene: Scene, dice: Dice, place: str, extent: tuple[float, float], room: float
) -> tuple[float, float, float, float]:
    """Looks for a spot: (x, y, radius, heading).

    Args:
        canvas: Canvas of the picture.
        scene: What the spot is looked for on.
        dice: Random draws of the spot.
        place: `inside` (within the material as far as it goes), `edge` (on the outline of the object) or `across` (the
            middle on the material).
        extent: Smallest and largest radius, canvas units.
        room: Share of the radius that has to lie within the material for `inside`.
    """
    radius, heading = dice.log_uniform(*extent), dice.angle()
    # Places are judged on a grid of fixed size, so that they are the same whatever the size of the picture.
    grid = np.asarray(Image.fromarray(scene.coverage).resize((GRID, GRID), Image.Resampling.BOX))
    if place == "edge":
        return _on_edge(canvas, scene, dice, grid, radius)
    best, spot = -1.0, (0.0, 0.0)
    ring = [(math.cos(k * math.pi / 4), math.sin(k * math.pi / 4)) for k in range(8)] if place == "inside" else []
    for x, y in (1.8 * dice.fractions(40, 2) - 0.9).tolist():
        points = [(x, y), *((x + room * radius * cos, y + room * radius * sin) for cos, sin in ring)]
        fit = min(_covered(grid, x, y), sum(_covered(grid, *point) for point in points) / len(points))
        if fit > best:
            best, spot = fit, (x, y)
        if fit > 0.9:
            break
    return (*spot, radius, heading)


def _covered(grid: np.ndarray, x: float, y: float) -> float:
    """Coverage at a point, 0 outside of the picture."""
    row, column = (math.floor((v + 1) * GRID / 2) for v in (y, x))
    return float(grid[row, column]) if 0 <= row < GRID and 0 <= column < GRID else 0.0


def _on_edge(
    canvas: Canvas, scene: Scene, dice: Dice, grid: np.ndarray, radius: float
) -> tuple[float, float, float, float]:
    """A point on the outer outline and the direction out of the object there."""
    total = float(scene.coverage.sum())
    middle_x, middle_y = (float((scene.coverage * axis).sum() / total) for axis in (canvas.x, canvas.y))
    direction = dice.angle()
    cos, sin = math.cos(direction), math.sin(direction)
    away = 1.4
    while away > 0.02 and _covered(grid, middle_x + away * cos, middle_y + away * sin) < 0.5:
        away -= 0.01
    x, y = middle_x + away * cos, middle_y + away * sin
    # The normal: from the middle of the material around the point towards the middle of what is not material.
    part, window = canvas.around(x, y, 0.15, dice)
    weight = scene.coverage[window]
    weight = weight - weight.mean()
    return x, y, radius, math.atan2(-float((weight * part.y).sum()), -float((weight * part.x).sum()))


def local_contrast(image: np.ndarray, coverage: np.ndarray, sigma: float) -> float:
    """How lively the material is: mean absolute deviation from its own blur, over covered pixels, in [0, 1]."""
    luma = image.mean(axis=2)
    deviation = np.abs(luma - gaussian_filter(luma, sigma, mode="nearest"))
    weight = np.clip(coverage, 1e-3, 1)
    return float((deviation * weight).sum() / weight.sum())
