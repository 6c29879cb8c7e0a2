"""What lies still: sky, terrain, road with its marks, pavement, buildings and trees."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from anomaly_vlm.data.drawn.products.dice import Dice

from .canvas import RoadCanvas

ROAD, SIDEWALK, BUILDING, POLE, SIGN, VEGETATION, TERRAIN, SKY, PERSON, CAR, TRUCK = 0, 1, 2, 5, 7, 8, 9, 10, 11, 13, 14


@dataclass(frozen=True)
class View:
    """The camera over the road.

    Attributes:
        horizon: The y of the horizon.
        vanish: The x of the vanishing point.
        centre: The x of the road's middle at the lower edge.
        half: Half of the road's width at the lower edge.
        kerb: Half width with pavement by half width of the road.
    """

    horizon: float
    vanish: float
    centre: float
    half: float
    kerb: float

    @staticmethod
    def drawn_from(dice: Dice, aspect: float) -> View:
        """Draws the view of a scene whose width is `aspect` times its height."""
        return View(
            horizon=dice.uniform(0.36, 0.50),
            vanish=aspect * dice.uniform(0.35, 0.65),
            centre=aspect * dice.uniform(0.44, 0.56),
            half=aspect * dice.uniform(0.35, 0.55),
            kerb=dice.uniform(1.25, 1.45),
        )

    def ground(self, depth: float) -> float:
        """The y of the ground at `depth`: 0 at the horizon, 1 at the lower edge."""
        return self.horizon + depth * (1 - self.horizon)

    def middle(self, depth: float) -> float:
        """The x of the road's middle."""
        return self.vanish + depth * (self.centre - self.vanish)

    def scale(self, depth: float) -> float:
        """Size at `depth` of what would reach from the lower edge to the horizon close by."""
        return depth * (1 - self.horizon)


def paint_ground(canvas: RoadCanvas, view: View) -> None:
    """Sky, terrain, pavement, road and marks."""
    _sky(canvas, view)
    depth = np.clip((canvas.y - view.horizon) / (1 - view.horizon), 1e-3, None)  # [H, 1]
    below = (canvas.y > view.horizon) & np.ones_like(canvas.x, bool)
    _terrain(canvas, depth, below)
    across = (canvas.x - view.vanish - depth * (view.centre - view.vanish)) / (
        view.half * depth + 2e-3
    )  # -1 .. 1: road
    soft = 1 / (canvas.height * (view.half * depth + 2e-3))  # one pixel in units of `across`
    _pavement(canvas, view, across, depth, soft, below)
    _road(canvas, across, depth, soft, below)


def _inside(across: np.ndarray, edge: float | np.ndarray, soft: np.ndarray) -> np.ndarray:
    coverage: np.ndarray = np.clip((edge - np.abs(across)) / soft + 0.5, 0, 1)
    return coverage


def _sky(canvas: RoadCanvas, view: View) -> None:
    dice = canvas.dice
    top = np.array([dice.uniform(0.25, 0.55), dice.uniform(0.45, 0.68), dice.uniform(0.70, 0.95)], np.float32)
    low = np.array([dice.uniform(0.72, 0.92), dice.uniform(0.78, 0.92), dice.uniform(0.82, 0.95)], np.float32)
    height = np.clip(canvas.y / view.horizon, 0, 1)[..., None]
    colours = top + height * (low - top) + np.zeros_like(canvas.x)[..., None]
    clouds = np.clip(canvas.noise(5, 9) * 0.5 + canvas.noise(11, 14) * 0.25 + dice.uniform(-0.6, 0.3), 0, 1)
    colours = colours + (clouds * (1 - height[..., 0] * 0.6))[..., None] * (0.93 - colours)
    canvas.fill(np.ones(canvas.label.shape, np.float32), colours, SKY)


def _terrain(canvas: RoadCanvas, depth: np.ndarray, below: np.ndarray) -> None:
    dice = canvas.dice
    green = np.array([dice.uniform(0.24, 0.42), dice.uniform(0.36, 0.52), dice.uniform(0.14, 0.24)], np.float32)
    near = np.clip(depth, 0.1, 1)
    tone = 0.05 * canvas.noise(14, 24) * near + 0.05 * canvas.noise(30, 50) * near
    haze = (0.25 * np.exp(-6 * depth))[..., None]
    colours = (green + tone[..., None] * np.array([0.8, 1.0, 0.5], np.float32)) * (1 - haze) + 0.75 * haze
    canvas.fill(below.astype(np.float32), colours, TERRAIN)


def _pavement(
    canvas: RoadCanvas, view: View, across: np.ndarray, depth: np.ndarray, soft: np.ndarray, below: np.ndarray
) -> None:
    dice = canvas.dice
    tone = dice.uniform(0.50, 0.68)
    warm = dice.uniform(-0.03, 0.05)
    colour = np.array([tone + warm, tone, tone - warm], np.float32)
    stones = ((1 / depth) * dice.uniform(1.5, 3.0)) % 1  # joints across the way
    joint = np.clip(1 - stones / 0.12, 0, 1) * np.clip(depth * 2, 0, 1)
    tones = 0.02 * canvas.noise(40, 60) - 0.06 * joint
    canvas.fill(_inside(across, view.kerb, soft) * below, colour + tones[..., None], SIDEWALK)
    kerb = _inside(across, 1.04, soft) * below
    canvas.fill(kerb, np.full(3, min(0.85, tone + 0.14), np.float32), SIDEWALK)


def _road(canvas: RoadCanvas, across: np.ndarray, depth: np.ndarray, soft: np.ndarray, below: np.ndarray) -> None:
    dice = canvas.dice
    tone, cold = dice.uniform(0.25, 0.40), dice.uniform(-0.01, 0.02)
    colour = np.array([tone - cold, tone, tone + cold], np.float32)
    worn = 0.03 * np.cos(across * 2 * math.pi * 2) * np.clip(1.1 - np.abs(across), 0, 1)  # tracks of the wheels
    tones = 0.02 * canvas.noise(60, 110) + 0.025 * canvas.noise(7, 9) + worn
    road = _inside(across, 1.0, soft) * below
    canvas.fill(road, colour + tones[..., None], ROAD)
    white = np.array([0.86, 0.86, 0.82], np.float32) if dice.chance(0.75) else np.array([0.85, 0.70, 0.25], np.float32)
    side = np.clip((0.014 - np.abs(np.abs(across) - 0.93)) / soft + 0.5, 0, 1)
    dashes = ((1 / depth) * dice.uniform(0.9, 1.8) + dice.uniform(0, 1)) % 1 < 0.55
    middle = np.clip((0.013 - np.abs(across)) / soft + 0.5, 0, 1) * dashes
    canvas.fill(np.maximum(side, middle) * road * 0.9, white, None)  # marks are road


def paint_backdrop(canvas: RoadCanvas, view: View) -> None:
    """A far skyline, then buildings and trees on both sides, far ones first."""
    dice = canvas.dice
    reach = dice.uniform(0.015, 0.05) * (1 + 0.35 * canvas.noise(1, 24)[:1])
    coverage = np.clip((canvas.y - (view.horizon - reach)) * canvas.height + 0.5, 0, 1) * (
        canvas.y <= view.horizon + 0.004
    )
    far = np.array([dice.uniform(0.40, 0.52), dice.uniform(0.50, 0.60), dice.uniform(0.48, 0.60)], np.float32)
    canvas.fill(coverage, far, VEGETATION)
    items = []
    for side in (-1, 1):
        edge = view.vanish if side < 0 else canvas.aspect - view.vanish  # from the vanishing point to this edge
        near = 1.0
        while near > 0.16:
            building = dice.chance(0.55)
            wide = (dice.uniform(0.30, 0.50) if building else dice.uniform(0.20, 0.34)) * near
            items.append((near, side, edge, building, wide))
            near *= dice.uniform(0.70, 0.86)
    for near, side, edge, building, wide in sorted(items):
        outer = view.vanish + side * edge * (0.10 + 0.98 * near)
        base = view.horizon + 0.10 * near * (1 - view.horizon)
        (_building if building else _tree)(canvas, outer, base, wide, near, side)


def _building(canvas: RoadCanvas, x: float, base: float, wide: float, near: float, side: int) -> None:
    dice = canvas.dice
    high = dice.uniform(0.22, 0.50) * (0.25 + 0.75 * near)
    tone = dice.uniform(0.38, 0.78)
    colour = np.array(
        [tone + dice.uniform(-0.03, 0.14), tone + dice.uniform(-0.03, 0.05), tone - dice.uniform(0, 0.14)]
    )
    colour = colour + (1 - near) * 0.35 * (0.78 - colour)  # far ones fade
    left, right = x - wide / 2, x + wide / 2
    canvas.box(left, base - high, right, base, colour, BUILDING)
    inner = right if side < 0 else left  # the wall towards the road, in the shade
    depth = inner - side * wide * 0.18
    slope = high * 0.05
    wall = [(inner, base - high), (depth, base - high + slope), (depth, base - slope * 0.4), (inner, base)]
    canvas.polygon(wall, colour * 0.72, BUILDING)
    if dice.chance(0.5):  # a roof
        top, eaves = base - high * 1.14, base - high
        roof = [(left, eaves), (left + wide * 0.12, top), (right - wide * 0.12, top), (right, eaves)]
        red = dice.uniform(0.3, 0.55)
        canvas.polygon(roof, (red, red * 0.6, red * 0.5), BUILDING)
    rows, columns = dice.integer(2, 6), dice.integer(2, 5)
    glass = np.array([0.25, 0.32, 0.42]) * dice.uniform(0.7, 1.4)
    for row in range(rows):
        for column in range(columns):
            cx, cy = left + wide * (column + 0.5) / columns, base - high * (row + 0.55) / rows
            half = (wide * 0.24 / columns, high * 0.24 / rows)
            canvas.box(cx - half[0], cy - half[1], cx + half[0], cy + half[1], glass, BUILDING)


def _tree(canvas: RoadCanvas, x: float, base: float, wide: float, near: float, side: int) -> None:
    dice = canvas.dice
    high = dice.uniform(0.20, 0.40) * (0.25 + 0.75 * near)
    trunk = wide * 0.05
    canvas.box(x - trunk, base - high * 0.5, x + trunk, base, (0.27, 0.20, 0.14), VEGETATION)
    green = np.array([dice.uniform(0.10, 0.28), dice.uniform(0.26, 0.44), dice.uniform(0.08, 0.18)])
    green = green + (1 - near) * 0.3 * (np.array([0.62, 0.70, 0.66]) - green)
    centre = (x, base - high * 0.62)
    canvas.ellipse(centre, (wide * 0.38, high * 0.36), green * 0.85, VEGETATION)
    for _ in range(9):  # leaves in the light and in the shade
        angle, far = dice.angle(), dice.uniform(0.3, 1.0)
        place = (centre[0] + math.cos(angle) * far * wide * 0.30, centre[1] + math.sin(angle) * far * high * 0.28)
        size = dice.uniform(0.10, 0.18)
        light = 0.85 - 0.45 * math.sin(angle) * far + dice.uniform(-0.1, 0.1)
        canvas.ellipse(place, (wide * size, high * size), green * light, VEGETATION)
