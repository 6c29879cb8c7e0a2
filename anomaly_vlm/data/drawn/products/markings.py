"""Prints, stamps and embossed signs: part of the normal product, and what a careless detector takes for a defect."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .canvas import Canvas, any_colour, mix, tone

_NODES = np.array([[-1, -1], [1, -1], [-1, 0], [1, 0], [-1, 1], [1, 1]], np.float64)
_STROKES: dict[str, tuple[tuple[int, int], ...]] = {
    "A": ((4, 0), (0, 1), (1, 5), (2, 3)),
    "E": ((1, 0), (0, 4), (4, 5), (2, 3)),
    "F": ((1, 0), (0, 4), (2, 3)),
    "H": ((0, 4), (1, 5), (2, 3)),
    "L": ((0, 4), (4, 5)),
    "N": ((4, 0), (0, 5), (5, 1)),
    "X": ((0, 5), (1, 4)),
    "Z": ((0, 1), (1, 4), (4, 5)),
    "0": ((0, 1), (1, 5), (5, 4), (4, 0)),
    "2": ((0, 1), (1, 3), (3, 2), (2, 4), (4, 5)),
    "5": ((1, 0), (0, 2), (2, 3), (3, 5), (5, 4)),
    "7": ((0, 1), (1, 4)),
}
_FIGURES = tuple(_STROKES)


def to_canvas(c: Canvas, u: np.ndarray, v: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The map from axes (u, v), affine on the canvas, to canvas points: [N, 2] -> [N, 2]."""
    own = np.array([[u[0, 0], v[0, 0]], [u[0, -1], v[0, -1]], [u[-1, 0], v[-1, 0]]], np.float64)
    spots = np.array([[c.x[0, 0], c.y[0, 0]], [c.x[0, -1], c.y[0, -1]], [c.x[-1, 0], c.y[-1, 0]]], np.float64)
    basis = np.linalg.inv(own[1:] - own[0]) @ (spots[1:] - spots[0])
    return lambda points: (points - own[0]) @ basis + spots[0]


def letters(
    c: Canvas, u: np.ndarray, v: np.ndarray, count: int, height: float, x: float = 0.0, y: float = 0.0
) -> np.ndarray:
    """Coverage [H, W] of a row of angular letters in the axes (u, v), centred at (x, y)."""
    ink, place = c.ink(), to_canvas(c, u, v)
    for i in range(count):
        left = (i - (count - 1) / 2) * height * 1.05
        for a, b in _STROKES[c.dice.choice(_FIGURES)]:
            points = _NODES[[a, b]] * (0.34 * height, 0.5 * height) + (x + left, y)
            ink.line(place(points), height * 0.17)
    return ink.coverage()


def marked(
    c: Canvas,
    image: np.ndarray,
    coverage: np.ndarray,
    reach: float,
    height: tuple[float, float],
    kinds: tuple[str, ...] = ("label", "print", "relief"),
) -> np.ndarray:
    """`image` [H, W, 3] with one label, print or relief within `reach` of the middle, on the material only.

    Args:
        c: Canvas of the picture.
        image: [H, W, 3] in [0, 1].
        coverage: [H, W] in [0, 1], how much of a pixel is material.
        reach: Largest distance from the middle, canvas units.
        height: Smallest and largest height of a letter, canvas units.
        kinds: One of these is drawn: `label`, `print`, `relief`.
    """
    dice = c.dice
    u, v = c.turned(dice.angle(), dice.uniform(-reach, reach), dice.uniform(-reach, reach))
    size = dice.log_uniform(*height)
    kind = dice.choice(kinds)
    if kind == "label":
        return _label(c, image, coverage, u, v, size)
    alpha = _sign(c, u, v, size) * coverage
    if kind == "relief":
        slope = np.clip(c.slope(alpha * np.float32(0.03 * dice.sign())), -1.2, 1.2)
        return tone(image, 1 + np.float32(dice.uniform(0.4, 0.8)) * slope)
    return mix(
        image,
        any_colour(dice, (0.0, 0.9), dice.choice(((0.03, 0.3), (0.75, 1.0)))),
        alpha * np.float32(dice.uniform(0.7, 1.0)),
    )


def _label(c: Canvas, image: np.ndarray, coverage: np.ndarray, u: np.ndarray, v: np.ndarray, size: float) -> np.ndarray:
    """A sticker with text or a bar code."""
    dice = c.dice
    width, height = size * dice.uniform(2.2, 3.2), size * dice.uniform(1.0, 1.5)
    away = np.maximum(np.abs(u) - np.float32(width), np.abs(v) - np.float32(height))
    paper = any_colour(dice, dice.choice(((0.0, 0.1), (0.3, 0.9))), (0.75, 1.0))
    image = tone(image, 1 - 0.3 * coverage * np.exp(-np.clip(away, 0, 1) / np.float32(0.02)))
    image = mix(image, paper, c.inside(away) * coverage)
    inside = c.inside(away + np.float32(0.1 * size)) * coverage
    return mix(image, any_colour(dice, (0.0, 0.9), (0.03, 0.3)), _sign(c, u, v, 0.7 * size) * inside)


def _sign(c: Canvas, u: np.ndarray, v: np.ndarray, height: float) -> np.ndarray:
    """Letters, bar code, frame or arrow around the origin of (u, v); coverage [H, W]."""
    dice = c.dice
    kind = dice.choice(("letters", "letters", "letters", "bars", "frame", "arrow"))
    if kind == "letters":
        rows, count = dice.integer(1, 3), dice.integer(2, 6)
        lines = [letters(c, u, v, count, height, y=(row - (rows - 1) / 2) * height * 1.4) for row in range(rows)]
        text: np.ndarray = np.clip(sum(lines[1:], lines[0]), 0, 1)
        return text
    if kind == "bars":
        table = dice.fractions(64)
        code = np.clip((u / np.float32(0.2 * height) + 32), 0, 63).astype(np.int32)
        bars: np.ndarray = (table.take(code) > 0.5) * c.inside(np.abs(u) - 2 * height) * c.inside(np.abs(v) - height)
        return bars
    if kind == "frame":
        away = np.abs(np.maximum(np.abs(u) / np.float32(dice.uniform(1.0, 2.5)), np.abs(v)) - height)
        return c.inside(away - height * dice.uniform(0.06, 0.15))
    shaft = np.maximum(np.abs(v) - 0.15 * height, np.abs(u + height) - height)
    head = np.maximum(np.abs(v) + u - 0.6 * height, -u)
    return c.inside(np.minimum(shaft, head))
