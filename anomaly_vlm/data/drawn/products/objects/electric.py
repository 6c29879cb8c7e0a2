"""Connector, transistor, resistor, microchip, toothbrush: what is assembled of parts in rows."""

from __future__ import annotations

import math

import numpy as np

from ..canvas import Canvas, Scene, any_colour, colour, hsv, mix, smoothstep
from ..markings import letters
from ..stage import ObjectCanvas, box, disc, metal, rod


def connector(c: Canvas) -> Scene:
    """Plastic housing with two rows of square cavities and a pin in each."""
    s = ObjectCanvas(c, size=(0.99, 1.40))
    draws = s.draws
    columns = draws.integer(4, 8)
    pitch = 1.25 / columns * s.size
    width, height = 0.7 * s.size, pitch * 1.25
    outline = box(s.u, s.v, width, height, 0.04)
    if draws.chance(0.6):
        outline = np.minimum(outline, box(s.u, s.v + np.float32(height), width * 0.25, 0.07))
    base = any_colour(draws, (0.0, 0.7), (0.15, 0.9))
    s.shadow(outline, 0.1)
    s.layer(outline, base, bevel=0.035, depth=0.45, gloss=0.12, texture=1 + 0.02 * c.noise(40, 2))
    gold = metal(s, draws.choice(("brass", "steel")))
    row = np.clip(np.floor(s.v / np.float32(pitch) + 1), 0, 1) - 0.5
    half = (columns - 1) / 2
    column = np.clip(np.floor(s.u / np.float32(pitch) + (half + 0.5)), 0, columns - 1) - np.float32(half)
    du, dv = s.u - column * np.float32(pitch), s.v - row * np.float32(pitch)
    s.layer(box(du, dv, pitch * 0.36, pitch * 0.36, 0.01), base * np.float32(0.3), bevel=0.03, depth=-0.8)
    pin = box(du, dv, pitch * 0.16, pitch * 0.16, 0.01)
    s.layer(pin, gold, bevel=pitch * 0.1, depth=0.6, gloss=0.35)
    return s.scene()


def transistor(c: Canvas) -> Scene:
    """Black body with a flat top and three legs."""
    s = ObjectCanvas(c, size=(0.99, 1.40), shift=0.06)
    draws = s.draws
    silver = metal(s, "steel")
    width, height = draws.uniform(0.36, 0.46) * s.size, draws.uniform(0.26, 0.34) * s.size
    top = -0.32 * s.size
    body = box(s.u, s.v - np.float32(top), width, height, 0.05)
    pitch = width * draws.uniform(0.5, 0.62)
    column = np.clip(np.floor(s.u / np.float32(pitch) + 0.5), -1, 1)
    du = s.u - column * np.float32(pitch)
    length = draws.uniform(0.5, 0.62) * s.size
    leg = box(
        du, s.v - np.float32(top + height + length / 2), draws.uniform(0.03, 0.045) * s.size, length / 2 + 0.05, 0.01
    )
    tab = box(s.u, s.v - np.float32(top - height), width * 0.95, 0.16 * s.size, 0.03)
    tabbed = draws.chance(0.5)
    outline = np.minimum(np.minimum(body, leg), tab if tabbed else body)
    s.shadow(outline, 0.07)
    if tabbed:
        s.layer(tab, silver, bevel=0.02, depth=0.4, gloss=0.2, texture=1 + 0.04 * c.noise(20, 2))
        s.opening(disc(s.u, s.v, 0.07 * s.size, 0, top - height - 0.04 * s.size))
    s.layer(leg, silver, bevel=0.03, depth=0.6, gloss=0.3, texture=1 + 0.05 * c.noise(20, 2))
    black = hsv(draws.uniform(0, 360), 0.08, draws.uniform(0.1, 0.28))
    s.layer(body, black, bevel=0.05, depth=0.7, gloss=0.12, texture=1 + 0.06 * c.noise(50, 2))
    print_ = colour(draws, (0, 60), (0.0, 0.1), (0.6, 0.9))
    for i in range(draws.integer(1, 4)):
        ink = letters(c, s.u, s.v, draws.integer(3, 5), 0.13 * s.size, y=top + (i - 1) * 0.18 * s.size)
        s.stamp(print_, ink * np.float32(0.75))
    return s.scene()


def resistor(c: Canvas) -> Scene:
    """Axial resistor: dog-bone body, colour bands, two wires."""
    s = ObjectCanvas(c, size=(1.05, 1.46), shift=0.05)
    draws = s.draws
    radius, half = draws.uniform(0.13, 0.18) * s.size, draws.uniform(0.34, 0.42) * s.size
    bulge = 1 + 0.28 * np.exp(-(((np.abs(s.u) - half) / np.float32(0.12 * s.size)) ** 2))
    body = rod(s.u, s.v / bulge, half, radius)
    wire = box(s.u, s.v, 0.95 * s.size, 0.022 * s.size)
    s.shadow(np.minimum(body, wire), 0.08)
    facing = math.copysign(0.4, s.light[1])
    roll = s.v / np.float32(radius)
    s.layer(wire, metal(s, "steel"), bevel=0.02, depth=0.6, gloss=0.3)
    base = colour(draws, draws.choice(((28, 40), (190, 215), (90, 140))), (0.2, 0.6), (0.55, 0.9))
    paint: np.ndarray = base
    step = 2 * half / 5.2
    hues = (
        hsv(0, 0, 0.08), hsv(20, 0.7, 0.4), hsv(2, 0.85, 0.75), hsv(25, 0.9, 0.9), hsv(50, 0.85, 0.9), hsv(130, 0.7, 0.5),
        hsv(215, 0.8, 0.65), hsv(285, 0.6, 0.55), hsv(0, 0, 0.5), hsv(0, 0, 0.95), hsv(45, 0.5, 0.65),
    )  # fmt: skip
    for i in range(draws.integer(4, 6)):
        middle = -half + (0.4 + i * 1.05) * step
        paint = mix(paint, draws.choice(hues), c.inside(np.abs(s.u - np.float32(middle)) - step * 0.27))
    shine = 0.78 + 0.45 * np.exp(-(((roll - facing) / 0.35) ** 2)) - 0.15 * roll**2
    s.layer(body, paint, bevel=radius * 0.9, depth=0.25, gloss=0.1, texture=np.clip(shine, 0.3, 1.3))
    return s.scene()


def microchip(c: Canvas) -> Scene:
    """Integrated circuit: black package, legs on two or four sides, marking and the dot of pin 1."""
    s = ObjectCanvas(c, size=(0.99, 1.40))
    draws = s.draws
    quad = draws.chance(0.5)
    width = 0.45 * s.size if quad else draws.uniform(0.5, 0.62) * s.size
    height = width if quad else draws.uniform(0.26, 0.34) * s.size
    body = box(s.u, s.v, width, height, 0.02)
    count = draws.integer(6, 11)
    silver = metal(s, "steel") * np.float32(1.1)
    legs = _legs(s.u, s.v, width, height, count, s.size)
    if quad:
        legs = np.minimum(legs, _legs(s.v, s.u, height, width, count, s.size))
    s.shadow(np.minimum(body, legs), 0.06)
    s.layer(legs, silver, bevel=0.03, depth=0.6, gloss=0.3)
    black = hsv(draws.uniform(0, 360), 0.08, draws.uniform(0.12, 0.26))
    s.layer(body, black, bevel=0.03, depth=0.7, gloss=0.08, texture=1 + 0.07 * c.noise(60, 1) + 0.04 * c.noise(3, 2))
    dot = disc(s.u, s.v, 0.05 * s.size, -width + 0.12 * s.size, -height + 0.12 * s.size)
    s.engrave(dot, 0.02, 0.6)
    print_ = colour(draws, (0, 60), (0.0, 0.1), (0.55, 0.9))
    rows = draws.integer(1, 4)
    for i in range(rows):
        ink = letters(c, s.u, s.v, draws.integer(3, 6), 0.14 * s.size, x=0.04, y=(i - (rows - 1) / 2) * 0.19 * s.size)
        s.stamp(print_, ink * np.float32(0.7))
    return s.scene()


def _legs(u: np.ndarray, v: np.ndarray, width: float, height: float, count: int, size: float) -> np.ndarray:
    """Signed distance to a row of legs above and one below a package."""
    pitch = 2 * width * 0.92 / count
    half = (count - 1) / 2
    column = np.clip(np.floor(u / np.float32(pitch) + (half + 0.5)), 0, count - 1) - np.float32(half)
    du = u - column * np.float32(pitch)
    return box(du, np.abs(v) - np.float32(height + 0.05 * size), pitch * 0.25, 0.09 * size, 0.005)


def toothbrush(c: Canvas) -> Scene:
    """Brush head from above: rows of bristle tufts in one to three colours."""
    s = ObjectCanvas(c, size=(1.05, 1.46), shift=0.06)
    draws = s.draws
    width, length = draws.uniform(0.27, 0.33) * s.size, 0.68 * s.size
    head = box(s.u + np.float32(0.05), s.v, length, width, width * 0.85)
    neck = box(s.u - np.float32(0.9), s.v, 0.45, 0.1 * s.size, 0.05)
    outline = np.minimum(head, neck)
    base = any_colour(draws, (0.0, 0.8), (0.5, 0.97))
    s.shadow(outline, 0.08)
    s.layer(outline, base, bevel=0.1, depth=0.4, gloss=0.25)
    columns, rows = draws.integer(8, 12), draws.integer(3, 5)
    pu, pv = 2 * length * 0.86 / columns, 2 * width * 0.84 / rows
    column = np.floor((s.u + np.float32(0.05)) / np.float32(pu) + columns / 2)
    row = np.floor(s.v / np.float32(pv) + rows / 2)
    du = s.u + np.float32(0.05) - (column - (columns - 1) / 2) * np.float32(pu)
    dv = s.v - (row - (rows - 1) / 2) * np.float32(pv)
    table = draws.table(2, 256)
    code = np.clip(column * rows + row, 0, 255).astype(np.int32)
    du, dv = du - table[0].take(code) * np.float32(0.05 * pu), dv - table[1].take(code) * np.float32(0.05 * pv)
    outside = (column < 0) | (column >= columns) | (row < 0) | (row >= rows)
    reach = min(pu, pv)
    distance = np.where(
        outside,
        np.float32(1),
        (np.sqrt((du / np.float32(pu)) ** 2 + (dv / np.float32(pv)) ** 2) - 0.43) * np.float32(reach),
    )
    distance = np.maximum(distance, head + np.float32(0.03))
    first, second = any_colour(draws, (0.0, 0.8), (0.5, 0.98)), any_colour(draws, (0.0, 0.8), (0.4, 0.98))
    inner = smoothstep(0.4, 0.6, np.abs(s.u) / length) > 0.5
    striped = draws.choice((row % 2 > 0, inner, column % 2 > 0, row < 0))
    paint = np.where(striped[..., None], second, first)
    bristle = 1 + 0.22 * c.noise(60, 1)
    s.layer(distance, paint, bevel=reach * 0.4, depth=0.5, texture=bristle)
    return s.scene()
