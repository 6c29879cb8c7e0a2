"""Scratch, crack, cut, loose thread: long and thin."""

from __future__ import annotations

import math

import numpy as np

from ..canvas import any_colour, mix, smoothstep, tone
from .spot import Spot


def scratch(s: Spot) -> np.ndarray:
    """One to three nearly parallel grooves, each with a dark and a lit wall or with bare material inside."""
    draws = s.draws
    after = s.scene.image
    bare = draws.choice((-1.0, -0.6, 0.8, 1.0))
    for _ in range(draws.choice((1, 1, 1, 2, 3))):
        u, v = s.c.turned(s.heading + draws.uniform(-0.15, 0.15), 0.0, draws.uniform(-0.2, 0.2) * s.radius)
        bow = v - np.float32(draws.uniform(-0.25, 0.25) / s.radius) * u * u
        width = draws.uniform(0.011, 0.024)
        ends = 1 - smoothstep(0.55, 1.0, np.abs(u + np.float32(draws.uniform(-0.2, 0.2) * s.radius)) / s.radius)
        press = ends * np.clip(0.85 + 0.25 * s.c.noise(3 / s.radius), 0, 1)
        groove = np.exp(-((bow / np.float32(width)) ** 2)) * press
        wall = np.exp(-(((bow - 1.3 * width) / np.float32(width)) ** 2)) * press
        level = np.float32(0.28 * bare)
        after = after + ((groove - 0.35 * wall) * level)[..., None] * (
            0.4 + 0.6 * after if bare < 0 else np.float32(0.8)
        )
    return s.on(after)


def _walk(s: Spot, steps: int, start: np.ndarray, heading: float, length: float, wild: float) -> np.ndarray:
    """A path of `steps` segments with random turns; [steps + 1, 2]."""
    points = [start]
    for _ in range(steps):
        heading += s.draws.uniform(-wild, wild)
        points.append(points[-1] + length / steps * np.array([math.cos(heading), math.sin(heading)]))
    return np.array(points)


def crack(s: Spot) -> np.ndarray:
    """Jagged dark line that thins out, with branches; one side stands slightly higher."""
    draws, ink = s.draws, s.c.ink()
    width = draws.uniform(0.016, 0.032)
    direction = np.array([math.cos(s.heading), math.sin(s.heading)])
    trunk = _walk(s, 14, -s.radius * 0.95 * direction, s.heading, 2 * s.radius, 0.6)
    trunk = trunk - trunk.mean(axis=0)
    for i in range(len(trunk) - 1):
        ink.line(trunk[i : i + 2], width * (1 - 0.65 * i / len(trunk)))
    for _ in range(draws.integer(1, 4)):
        fork = draws.integer(3, 11)
        turn = s.heading + draws.sign() * draws.uniform(0.5, 1.2)
        ink.line(_walk(s, 5, trunk[fork], turn, s.radius * draws.uniform(0.3, 0.7), 0.6), width * 0.5)
    gap = ink.coverage()
    after = tone(s.scene.image, 1 - draws.uniform(0.55, 0.85) * gap)
    slope = np.clip(s.c.slope(-gap * np.float32(0.02)), -1, 1)
    return s.on(tone(after, 1 + 0.15 * slope * (1 - gap)))


def cut(s: Spot) -> np.ndarray:
    """Straight slit, open in the middle: dark inside, lips raised towards the light."""
    draws = s.draws
    u, v = s.c.turned(s.heading)
    v = v - np.float32(draws.uniform(-0.12, 0.12) / s.radius) * u * u
    opening = np.float32(draws.uniform(0.025, 0.06)) * np.clip(1 - (u / np.float32(s.radius)) ** 2, 0, 1) - np.float32(
        0.002
    )
    away = np.abs(v) - opening
    inside = s.c.inside(away)
    ends = 1 - smoothstep(0.85, 1.05, np.abs(u) / np.float32(s.radius))
    lip = np.exp(-np.clip(away, 0, 1) / np.float32(0.025)) * ends
    slope = np.clip(s.c.slope(lip * np.float32(0.03)), -1, 1)
    after = tone(s.scene.image, 1 + 0.35 * slope)
    below = tone(s.scene.background, np.full(s.c.shape, 0.45, np.float32))
    return s.on(mix(after, below, inside * np.float32(draws.uniform(0.75, 1.0))))


def thread(s: Spot) -> np.ndarray:
    """A loose thread or hair lies on the surface and casts a thin shadow."""
    draws = s.draws
    heading = s.heading
    points = [np.zeros(2)]
    turn = draws.uniform(-0.25, 0.25)
    steps = 24
    for _ in range(steps):
        turn = 0.85 * turn + draws.uniform(-0.22, 0.22)
        heading += turn
        points.append(points[-1] + 2.4 * s.radius / steps * np.array([math.cos(heading), math.sin(heading)]))
    path = np.array(points) - np.mean(points, axis=0)
    width = draws.uniform(0.022, 0.04)
    ink, shade = s.c.ink(), s.c.ink()
    ink.line(path, width)
    shade.line(path - np.array(s.c.light) * width * 0.9, width * 1.3)
    cover = ink.coverage()
    far = draws.chance(0.5)
    paint = (
        any_colour(draws, (0.0, 0.7), (0.1, 0.95))
        if far
        else np.clip(s.colour * np.float32(draws.choice((0.45, 1.7))) + 0.05, 0, 1)
    )
    after = tone(s.scene.image, 1 - 0.35 * shade.coverage())
    slope = np.clip(s.c.slope(cover * np.float32(width * 0.5)), -1, 1)
    return mix(after, tone(paint, 0.95 + 0.25 * slope), cover)
