"""Objects of known classes: cars, trucks, people, signs. Their outlines are never those of `unknown`."""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from anomaly_vlm.data.drawn.products.dice import Dice

from .canvas import RoadCanvas
from .ground import CAR, PERSON, POLE, SIGN, TRUCK, View

DARK = (0.06, 0.06, 0.07)


@dataclass(frozen=True)
class Thing:
    """Something that stands on the ground. paint: draws it at (x, y of its foot, unit of size)."""

    depth: float
    x: float
    paint: Callable[[RoadCanvas, float, float, float], None]
    unit: float

    def draw(self, canvas: RoadCanvas, view: View) -> None:
        """Paints the object where it stands on the ground."""
        self.paint(canvas, self.x, view.ground(self.depth), self.unit)


def shadow(canvas: RoadCanvas, x: float, y: float, half: float) -> None:
    """Dark ground under a thing: colour alone."""
    canvas.ellipse((x, y), (half * 1.12, half * 0.16), (0.05, 0.05, 0.06), None, alpha=0.55)


def car_colour(dice: Dice) -> np.ndarray:
    """White, grey and black more often than bright colours."""
    if dice.chance(0.5):
        return np.full(3, dice.choice((0.08, 0.18, 0.35, 0.6, 0.8, 0.9)))
    hue = dice.choice((0.0, 0.02, 0.08, 0.14, 0.35, 0.55, 0.6, 0.63))
    return np.array(colorsys.hsv_to_rgb(hue, dice.uniform(0.5, 0.85), dice.uniform(0.35, 0.8)))


def car(canvas: RoadCanvas, x: float, y: float, unit: float) -> None:
    """A car from behind or from the front."""
    dice = canvas.dice
    half, high = unit * dice.uniform(0.55, 0.70) / 2, unit * dice.uniform(0.34, 0.44)
    colour, rear = car_colour(dice), dice.chance(0.6)
    shadow(canvas, x, y, half)
    wheel = half * 0.26
    for side in (-1, 1):
        canvas.box(
            x + side * half * 0.72 - wheel / 2, y - high * 0.28, x + side * half * 0.72 + wheel / 2, y, DARK, CAR
        )
    roof, waist, floor = y - high, y - high * 0.58, y - high * 0.12
    cabin = [(x - half * 0.60, roof), (x + half * 0.60, roof), (x + half * 0.86, waist), (x - half * 0.86, waist)]
    canvas.polygon(cabin, colour * 0.9, CAR)
    edge = roof + high * 0.07
    glass = [(x - half * 0.54, edge), (x + half * 0.54, edge), (x + half * 0.74, waist), (x - half * 0.74, waist)]
    canvas.polygon(glass, (0.14, 0.18, 0.23), CAR)
    canvas.box(x - half, waist, x + half, floor, colour, CAR, corner=high * 0.12)
    canvas.box(x - half * 0.96, y - high * 0.24, x + half * 0.96, floor, colour * 0.55, CAR)
    lamp = (0.75, 0.08, 0.06) if rear else (0.97, 0.95, 0.80)
    for side in (-1, 1):
        middle = x + side * half * 0.80
        canvas.box(middle - half * 0.14, waist + high * 0.08, middle + half * 0.14, waist + high * 0.18, lamp, CAR)
    canvas.box(x - half * 0.20, y - high * 0.34, x + half * 0.20, y - high * 0.25, (0.85, 0.85, 0.82), CAR)


def truck(canvas: RoadCanvas, x: float, y: float, unit: float) -> None:
    """A lorry from behind: a tall closed body on wheels."""
    dice = canvas.dice
    half, high = unit * dice.uniform(0.58, 0.72) / 2, unit * dice.uniform(0.65, 0.85)
    colour = car_colour(dice)
    shadow(canvas, x, y, half)
    for side in (-1, 1):
        canvas.box(
            x + side * half * 0.70 - half * 0.18, y - high * 0.16, x + side * half * 0.70 + half * 0.18, y, DARK, TRUCK
        )
    canvas.box(x - half * 0.94, y - high * 0.20, x + half * 0.94, y - high * 0.10, (0.16, 0.16, 0.17), TRUCK)
    canvas.box(x - half, y - high, x + half, y - high * 0.18, colour, TRUCK, corner=high * 0.02)
    canvas.box(x - half * 0.98, y - high * 0.985, x + half * 0.98, y - high * 0.93, colour * 0.75, TRUCK)
    canvas.box(x - half * 0.015, y - high * 0.93, x + half * 0.015, y - high * 0.19, colour * 0.5, TRUCK)
    for side in (-1, 1):
        middle = x + side * half * 0.84
        canvas.box(
            middle - half * 0.1, y - high * 0.24, middle + half * 0.1, y - high * 0.19, (0.75, 0.08, 0.06), TRUCK
        )


def person(canvas: RoadCanvas, x: float, y: float, unit: float) -> None:
    """Somebody on foot: head, trunk, two legs."""
    dice = canvas.dice
    high = unit * dice.uniform(0.38, 0.50)
    half = high * 0.13
    cloth = np.array(colorsys.hsv_to_rgb(dice.uniform(0, 1), dice.uniform(0.1, 0.6), dice.uniform(0.2, 0.75)))
    legs = np.full(3, dice.uniform(0.08, 0.3)) + np.array([0, 0, dice.uniform(0, 0.15)])
    skin = np.array([0.82, 0.62, 0.50]) * dice.uniform(0.45, 1.1)
    step = half * dice.uniform(0.25, 0.75)
    shadow(canvas, x, y, half * 1.3)
    for side in (-1, 1):
        foot = x + side * step
        hip, thigh, shoe = y - high * 0.46, half * 0.45, half * 0.32
        leg = [(x - thigh, hip), (x + thigh, hip), (foot + shoe, y), (foot - shoe, y)]
        canvas.polygon(leg, legs, PERSON)
    canvas.box(x - half, y - high * 0.82, x + half, y - high * 0.42, cloth, PERSON, corner=half * 0.5)
    canvas.ellipse((x, y - high * 0.91), (high * 0.075, high * 0.09), skin, PERSON)


def sign(canvas: RoadCanvas, x: float, y: float, unit: float) -> None:
    """A round traffic sign on its pole."""
    dice = canvas.dice
    high = unit * dice.uniform(0.70, 0.90)
    radius, thin = unit * 0.10, max(unit * 0.016, 0.6 / canvas.height)
    canvas.box(x - thin, y - high, x + thin, y, (0.52, 0.53, 0.55), POLE)
    ring, face = (
        ((0.78, 0.08, 0.08), (0.93, 0.93, 0.92)) if dice.chance(0.65) else ((0.90, 0.92, 0.95), (0.10, 0.25, 0.65))
    )
    canvas.ellipse((x, y - high), (radius, radius), ring, SIGN)
    canvas.ellipse((x, y - high), (radius * 0.70, radius * 0.70), face, SIGN)
    if dice.chance(0.6):
        canvas.box(x - radius * 0.38, y - high - radius * 0.12, x + radius * 0.38, y - high + radius * 0.12, DARK, SIGN)


SHAPES = {"car": car, "truck": truck, "person": person, "sign": sign}


def known_things(dice: Dice, view: View) -> list[Thing]:
    """1 to 3 vehicles on the road, 0 to 3 people and 0 to 2 signs beside it."""
    things = []
    lanes = [(-0.45, d) for d in (0, 1, 2)] + [(0.45, d) for d in (0, 1, 2)]
    for _ in range(dice.integer(1, 4)):
        lane, third = lanes.pop(dice.integer(0, len(lanes)))
        depth = 0.18 + (third + dice.uniform(0.1, 0.9)) * 0.77 / 3
        paint = truck if dice.chance(0.25) else car
        things.append(Thing(depth, view.middle(depth) + lane * view.half * depth, paint, view.scale(depth)))
    for paint, most in ((person, 4), (sign, 3)):
        for _ in range(dice.integer(0, most)):
            depth = dice.uniform(0.20, 0.85)
            place = (
                dice.sign() * dice.uniform(1.08, view.kerb - 0.04)
                if paint is person
                else dice.sign() * dice.uniform(1.10, 1.25)
            )
            things.append(Thing(depth, view.middle(depth) + place * view.half * depth, paint, view.scale(depth)))
    return things
