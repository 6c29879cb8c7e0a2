"""Unknown objects: shapes that no known class has, on the road, in evaluation alone."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence

import numpy as np
from PIL import ImageDraw

from anomaly_vlm.data.drawn.products.draws import RandomDraws
from anomaly_vlm.data.types import UNKNOWN

from .canvas import Point, RoadCanvas
from .ground import View
from .known import Thing, shadow

Parts = list[list[Point]]  # outlines; x from -1 to 1, y from 0 (top) to 1 (ground)
PATTERNS = ("plain", "striped", "chequered")


def _box(draws: RandomDraws) -> Parts:
    lid = draws.uniform(0.12, 0.28)
    top = [(-1, lid), (-0.75, 0), (1, 0), (0.78, lid)]
    front = [(-1, lid), (0.78, lid), (0.78, 1), (-1, 1)]
    side = [(0.78, lid), (1, 0), (1, 0.86), (0.78, 1)]
    return [top, front, side]


def _ellipse(draws: RandomDraws) -> Parts:
    return [[(math.cos(a), 0.5 + 0.5 * math.sin(a)) for a in np.linspace(0, 2 * math.pi, 40, endpoint=False)]]


def _triangle(draws: RandomDraws) -> Parts:
    return [[(draws.uniform(-0.25, 0.25), 0), (1, 1), (-1, 1)]]


def _star(draws: RandomDraws) -> Parts:
    turn = -math.pi / 2 + draws.uniform(-0.15, 0.15)
    ring = [(1.0 if i % 2 == 0 else 0.42, turn + i * math.pi / 5) for i in range(10)]
    return [[(r * math.cos(a), 0.52 + 0.52 * r * math.sin(a)) for r, a in ring]]


def _animal(draws: RandomDraws) -> Parts:
    body = [(0.78 * math.cos(a), 0.40 + 0.20 * math.sin(a)) for a in np.linspace(0, 2 * math.pi, 24, endpoint=False)]
    legs = [[(x - 0.09, 0.42), (x + 0.09, 0.42), (x + 0.07, 1), (x - 0.07, 1)] for x in (-0.58, -0.36, 0.34, 0.56)]
    head = [(0.62, 0.34), (0.70, 0.06), (0.80, 0.0), (0.86, 0.08), (1.0, 0.20), (0.96, 0.30), (0.80, 0.34)]
    tail = [(-0.72, 0.34), (-1.0, 0.12), (-0.94, 0.30), (-0.70, 0.46)]
    limbs = [*legs, body, head, tail]
    return [[(-x, y) for x, y in outline] for outline in limbs] if draws.chance(0.5) else limbs


SHAPES = {"box": _box, "ellipse": _ellipse, "triangle": _triangle, "star": _star, "animal": _animal}


def _two_colours(draws: RandomDraws) -> tuple[np.ndarray, np.ndarray]:
    hue = draws.uniform(0, 1)
    first = np.array(colorsys.hsv_to_rgb(hue, draws.uniform(0.3, 0.95), draws.uniform(0.35, 0.95)))
    return first, np.array(
        colorsys.hsv_to_rgb((hue + draws.uniform(0.2, 0.8)) % 1, draws.uniform(0, 0.9), draws.uniform(0.15, 0.98))
    )


def paint_unknown(canvas: RoadCanvas, x: float, y: float, unit: float) -> None:
    """One object of a random shape and pattern; its pixels get the label of unknown objects."""
    draws = canvas.draws
    wide, high = unit * draws.uniform(0.30, 0.60), unit * draws.uniform(0.25, 0.50)
    shape, pattern = draws.choice(list(SHAPES)), draws.choice(PATTERNS)
    first, second = _two_colours(draws)
    period, tilt = unit * draws.uniform(0.06, 0.14), draws.angle()
    shadow(canvas, x, y, wide / 2)
    for part, light in zip(SHAPES[shape](draws), (1.0, 0.82, 0.6, 1.0, 1.0, 1.0, 1.0), strict=False):
        points = [(x + wide / 2 * px, y - high + high * py) for px, py in part]
        _patterned(canvas, points, first * light, second * light, pattern, period, tilt)


def _patterned(
    canvas: RoadCanvas,
    points: Sequence[Point],
    first: np.ndarray,
    second: np.ndarray,
    pattern: str,
    period: float,
    tilt: float,
) -> None:
    def polygon(draw: ImageDraw.ImageDraw, points: list[Point]) -> None:
        draw.polygon(points, fill=255)

    window, coverage = canvas.coverage(points, polygon)
    if coverage is None:
        return
    along = (canvas.x[:, window[1]] * math.cos(tilt) + canvas.y[window[0]] * math.sin(tilt)) / period
    across = (canvas.y[window[0]] * math.cos(tilt) - canvas.x[:, window[1]] * math.sin(tilt)) / period
    other = np.zeros_like(along, bool)
    if pattern == "striped":
        other = along % 1 < 0.5
    elif pattern == "chequered":
        other = (along % 1 < 0.5) ^ (across % 1 < 0.5)
    colours = np.where(other[..., None], second, first).astype(np.float32)
    area = canvas.image[window]
    area += coverage[..., None] * (colours - area)
    canvas.label[window][coverage > 0.5] = UNKNOWN


def unknown_objects(draws: RandomDraws, view: View, aspect: float) -> list[Thing]:
    """1 to 3 of them on the road."""
    things = []
    for _ in range(draws.integer(1, 4)):
        depth = draws.uniform(0.35, 0.95)
        x = view.middle(depth) + draws.uniform(-0.75, 0.75) * view.half * depth
        x = min(max(x, 0.12 * aspect), 0.88 * aspect)
        things.append(Thing(depth, x, paint_unknown, depth))
    return things
