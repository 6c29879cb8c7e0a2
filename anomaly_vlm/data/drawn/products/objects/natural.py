"""Hazelnut, biscuit, tealight: round things that are grown, baked or poured."""

from __future__ import annotations

import math

import numpy as np

from ..canvas import LUMA, Canvas, Scene, any_colour, colour, hsv, mix, smoothstep, tone
from ..stage import ObjectCanvas, box, disc, metal, rod


def hazelnut(c: Canvas) -> Scene:
    """Shell with meridian streaks and a pale rough scar at the base."""
    s = ObjectCanvas(c, size=(0.99, 1.46))
    draws = s.draws
    radius = 0.58 * s.size
    u, v = s.u, s.v / np.float32(draws.uniform(0.82, 1.0))
    r = np.sqrt(u * u + v * v)
    theta = np.arctan2(v, u)
    point = draws.uniform(0.02, 0.16)
    outline = r - np.float32(radius) * (1 + point * np.exp(-((theta / np.float32(0.5)) ** 2)) + 0.012 * c.noise(3))
    base = colour(draws, (18, 30), (0.5, 0.75), (0.4, 0.68))
    s.shadow(outline, 0.14)
    # Streaks follow the meridians: they are stretched along u and gather at both ends.
    across = v / np.sqrt(np.maximum(1 - np.clip(u / np.float32(radius * 1.05), -0.97, 0.97) ** 2, 0.05))
    wobble = 0.025 * c.noise(5, 2)
    table = c.noise(26, 2, stretch=6, angle=s.angle)
    streak = np.sin((across + wobble) * np.float32(draws.uniform(30, 50) / s.size)) * 0.06 + 0.08 * table
    texture = 1 + draws.uniform(0.5, 1.2) * streak + 0.06 * c.noise(3, 2)
    if draws.chance(0.5):  # dry or dusty patches
        texture = texture + draws.choice((0.15, 0.25)) * smoothstep(0.9, 1.7, c.noise(draws.uniform(3, 8), 3))
    s.layer(outline, base, bevel=radius * 0.95, depth=0.5, gloss=draws.uniform(0.0, 0.22), texture=texture)
    if draws.chance(0.75):
        scar_size = draws.uniform(0.3, 0.55) * radius
        scar = disc(u, v * 0.8, scar_size, -radius * draws.uniform(0.65, 0.9)) + 0.02 * c.noise(8, 2)
        pale = colour(draws, (28, 40), (0.25, 0.45), (0.6, 0.82))
        alpha = (1 - smoothstep(-0.04, 0.02, scar)) * s.coverage
        rough = 0.85 + 0.12 * c.noise(26, 2)
        s.image = mix(
            s.image,
            tone(pale, rough * np.clip(0.6 + 1.2 * (s.image @ LUMA), 0.3, 1.15)),
            alpha * 0.85,
        )
    return s.scene()


def biscuit(c: Canvas) -> Scene:
    """Baked biscuit: scalloped or square rim, docker holes or chocolate chips, browned edge."""
    s = ObjectCanvas(c, size=(0.99, 1.40))
    draws = s.draws
    radius = 0.62 * s.size
    r, theta = s.polar()
    kind = draws.choice(("round", "scalloped", "square"))
    if kind == "square":
        a, b = np.abs(s.u), np.abs(s.v)
        edge = 0.02 * np.cos(np.minimum(a, b) * np.float32(60))
        outline = box(s.u, s.v, radius * 0.92, radius * 0.92, 0.06) + edge.astype(np.float32)
    else:
        teeth = 0.03 * np.cos(theta * 24) if kind == "scalloped" else 0.01 * c.noise(4)
        outline = r - np.float32(radius) * (1 + teeth)
    base = colour(draws, (26, 38), (0.35, 0.6), (0.65, 0.88))
    s.shadow(outline, 0.08)
    crumb = 1 + 0.05 * c.noise(24, 3) + 0.04 * c.noise(4, 2)
    browned = 1 - 0.3 * np.exp(np.clip(outline, -1, 0) / np.float32(draws.uniform(0.05, 0.14)))
    s.layer(outline, base, bevel=0.14 * s.size, depth=0.4, texture=crumb * browned)
    if draws.chance(0.55):
        pitch = radius * draws.uniform(0.36, 0.5)
        du, dv = (((axis / np.float32(pitch) + 0.5) % 1 - 0.5) * pitch for axis in (s.u, s.v))
        hole = c.inside(np.sqrt(du * du + dv * dv) - pitch * 0.09, 1.5) * c.inside(outline + 0.13 * s.size, 1)
        s.stamp(base * np.float32(0.35), hole * np.float32(0.85))
    else:
        dark = colour(draws, (12, 24), (0.5, 0.75), (0.15, 0.32))
        for _ in range(draws.integer(5, 12)):
            turn, away = draws.angle(), radius * 0.8 * math.sqrt(draws.uniform(0, 1))
            size = draws.uniform(0.05, 0.1) * s.size
            chip = disc(s.u, s.v, size, away * math.cos(turn), away * math.sin(turn)) + 0.012 * c.noise(10)
            s.layer(np.maximum(chip, outline + 0.02), dark, bevel=size * 0.7, depth=0.5, gloss=0.15)
    return s.scene()


def tealight(c: Canvas) -> Scene:
    """Candle in an aluminium cup from above: rim, wax with a meniscus, wick."""
    s = ObjectCanvas(c, size=(0.94, 1.40))
    draws = s.draws
    radius = 0.6 * s.size
    r, theta = s.polar()
    outline = disc(s.u, s.v, radius)
    s.shadow(outline, 0.12)
    fold = 1 + 0.05 * np.cos(theta * draws.integer(24, 40)) + 0.03 * c.noise(12)
    s.layer(outline, metal(s, "steel") * np.float32(1.15), bevel=0.04, depth=0.6, gloss=0.4, texture=fold)
    wax = disc(s.u, s.v, radius * 0.92)
    base = any_colour(draws, (0.0, 0.6), (0.7, 0.97))
    glow = 1 - 0.08 * smoothstep(radius * 0.6, radius * 0.92, r) + 0.015 * c.noise(6, 2)
    s.layer(wax, base, bevel=0.05, depth=-0.25, texture=glow)
    x, y = draws.uniform(-0.05, 0.05), draws.uniform(-0.05, 0.05)
    s.engrave(disc(s.u, s.v, 0.12 * s.size, x, y), 0.035, 0.2)
    turn = draws.angle()
    du, dv = s.u - np.float32(x), s.v - np.float32(y)
    du, dv = du * math.cos(turn) + dv * math.sin(turn), dv * math.cos(turn) - du * math.sin(turn)
    length = draws.uniform(0.06, 0.14) * s.size
    wick = rod(du - np.float32(length), dv, length, 0.026 * s.size)
    burnt = draws.chance(0.4)
    paint = hsv(35, 0.1, 0.2 if burnt else 0.9)
    s.stamp(base * np.float32(0.6), (1 - smoothstep(-0.02, 0.05, wick)) * np.float32(0.5))
    s.layer(wick, paint, bevel=0.02, depth=0.4, texture=1 + 0.15 * np.sin((du + dv) * np.float32(90)))
    return s.scene()
