"""The picture and its labels while they are painted, in units of the picture's height."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

from anomaly_vlm.data.drawn.products.dice import Dice

FINE = 3  # sub-pixels along each axis, for soft edges
Colour = Sequence[float] | np.ndarray
Point = tuple[float, float]
Stroke = Callable[[ImageDraw.ImageDraw, list[Point]], None]  # draws a shape through points in pixels of the fine image


class RoadCanvas:
    """Paints shapes with soft edges; a pixel's label is that of the last shape that covers more than half of it.

    Coordinates: x to the right, y down, in heights of the picture; the top left corner is (0, 0).

    Attributes:
        image: float32 [H, W, 3] in [0, 1].
        label: uint8 [H, W].
        dice: Dice of the scene.
        x: float32 [1, W], x of the pixel centres.
        y: float32 [H, 1], y of the pixel centres.
        aspect: Width divided by height.
    """

    def __init__(self, height: int, width: int, dice: Dice) -> None:
        self.height, self.width, self.dice = height, width, dice
        self.aspect = width / height
        self.image = np.zeros((height, width, 3), np.float32)
        self.label = np.full((height, width), 255, np.uint8)
        self.x = ((np.arange(width, dtype=np.float32) + 0.5) / height)[None]
        self.y = ((np.arange(height, dtype=np.float32) + 0.5) / height)[:, None]

    def noise(self, rows: int, columns: int) -> np.ndarray:
        """Smooth noise float32 [H, W], about standard normal, with so many cells."""
        small = Image.fromarray(self.dice.table(rows, columns))
        return np.asarray(small.resize((self.width, self.height), Image.Resampling.BICUBIC))

    # ---- whole pictures ----------------------------------------------------------------------------------------------

    def fill(self, coverage: np.ndarray, colour: np.ndarray | Colour, label: int | None) -> None:
        """Paints one colour, or colours [H, W, 3], by `coverage` [H, W] from 0 to 1; `label` None keeps the labels."""
        paint = np.asarray(colour, np.float32)
        self.image += coverage[..., None].astype(np.float32) * (paint - self.image)
        if label is not None:
            self.label[coverage > 0.5] = label

    # ---- shapes in their own window ----------------------------------------------------------------------------------

    def polygon(self, points: Sequence[Point], colour: Colour, label: int | None, *, alpha: float = 1.0) -> None:
        """A filled polygon."""
        self._draw(points, lambda draw, at: draw.polygon(at, fill=255), colour, label, alpha)

    def ellipse(self, centre: Point, radii: Point, colour: Colour, label: int | None, *, alpha: float = 1.0) -> None:
        """A filled ellipse with these half axes."""
        (x, y), (a, b) = centre, radii
        corners = [(x - a, y - b), (x + a, y + b)]
        self._draw(corners, lambda draw, at: draw.ellipse([*at[0], *at[1]], fill=255), colour, label, alpha)

    def box(
        self, left: float, top: float, right: float, bottom: float, colour: Colour, label: int | None, *,
        corner: float = 0.0, alpha: float = 1.0,
    ) -> None:  # fmt: skip
        """A filled rectangle, its corners rounded by the radius `corner`."""
        radius = corner * self.height * FINE
        self._draw(
            [(left, top), (right, bottom)],
            lambda draw, at: draw.rounded_rectangle([*at[0], *at[1]], radius=radius, fill=255),
            colour,
            label,
            alpha,
        )

    def _draw(self, points: Sequence[Point], how: Stroke, colour: Colour, label: int | None, alpha: float) -> None:
        window, coverage = self.coverage(points, how)
        if coverage is None:
            return
        area = self.image[window]
        area += (alpha * coverage)[..., None] * (np.asarray(colour, np.float32) - area)
        if label is not None:
            self.label[window][coverage > 0.5] = label

    def coverage(self, points: Sequence[Point], how: Stroke) -> tuple[tuple[slice, slice], np.ndarray | None]:
        """The window of the picture around `points`, and how much `how(draw, points)` covers of its pixels; None outside."""
        at = np.asarray(points, np.float64) * self.height
        left, top = np.maximum(np.floor(at.min(axis=0)).astype(int) - 1, 0)
        right, bottom = np.minimum(np.ceil(at.max(axis=0)).astype(int) + 2, (self.width, self.height))
        window = (slice(top, bottom), slice(left, right))
        if right <= left or bottom <= top:
            return window, None
        fine = Image.new("L", ((right - left) * FINE, (bottom - top) * FINE))
        moved = [(float(x - left) * FINE, float(y - top) * FINE) for x, y in at]
        how(ImageDraw.Draw(fine), moved)
        small = np.asarray(fine, np.float32).reshape(bottom - top, FINE, right - left, FINE).mean(axis=(1, 3))
        return window, small / 255
