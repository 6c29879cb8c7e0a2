"""Hole, chip, broken edge, dent, bump, bend, misplaced part, smear: the form itself is wrong."""

from __future__ import annotations

import math

import numpy as np

from ..canvas import mix, smoothstep, tone
from .spot import Spot, read


def hole(s: Spot) -> np.ndarray:
    """A hole punched or torn through: what lies behind shows, the rim is bent towards or away from the light."""
    draws = s.draws
    blob = s.blob(draws.uniform(0.05, 0.3), draws.uniform(1.0, 1.4))
    inside = s.c.inside(blob)
    rim = np.exp(-((np.clip(blob, 0, 1) / np.float32(0.03)) ** 2))
    slope = np.clip(s.c.slope(rim * np.float32(0.02 * draws.sign())), -1, 1)
    after = tone(s.scene.image, 1 + 0.3 * slope)
    fall = 1 - smoothstep(-0.3, 0.9, (s.c.x * s.c.light[0] + s.c.y * s.c.light[1]) / np.float32(s.radius))
    below = tone(s.scene.background, 0.35 + 0.3 * fall)
    return s.on(mix(after, below, inside))


def chip(s: Spot) -> np.ndarray:
    """A flake has broken off: a shallow facet of raw material, lit by its own slope."""
    draws = s.draws
    blob = s.blob(0.45, draws.uniform(1.0, 1.6), 0.12)
    inside = s.soft(blob, 0.02)
    tilt = draws.angle()
    u, _ = s.c.turned(tilt)
    height = np.minimum(blob * np.float32(0.6), 0) + 0.25 * u * inside + 0.03 * s.radius * s.c.noise(4 / s.radius, 3)
    slope = np.clip(s.c.slope(height * inside), -1.2, 1.2)
    raw = s.colour * np.float32(draws.choice((0.6, 0.75, 1.25, 1.45))) + np.float32(0.03)
    return s.on(mix(s.scene.image, tone(raw, 1 + 0.4 * slope + 0.05 * s.c.noise(9 / s.radius, 2)), inside))


def broken_edge(s: Spot) -> np.ndarray:
    """A piece of the outline is gone: the background shows, the fracture is a narrow raw face."""
    draws = s.draws
    inward = s.radius * draws.uniform(0.0, 0.35)
    part, image, coverage = s.c, s.scene.image, s.scene.coverage
    x, y = math.cos(s.heading) * inward, math.sin(s.heading) * inward
    u, v = part.turned(s.heading, x, y)
    theta = np.arctan2(v, u)
    edge = 1 + 0.18 * np.cos(theta * 3 + np.float32(draws.angle())) + 0.12 * part.noise(3.5 / s.radius, 3)
    away = np.sqrt(u * u + (v / np.float32(draws.uniform(0.8, 1.5))) ** 2) - np.float32(s.radius) * edge
    gone = part.inside(away)
    face = s.soft(away - np.float32(draws.uniform(0.02, 0.05)), 0.015) * coverage
    raw = s.colour * np.float32(draws.choice((0.55, 0.7, 1.3)))
    after = mix(image, tone(raw, 1 + 0.15 * part.noise(8 / s.radius, 2)), face)
    return mix(after, s.scene.background, gone * np.clip(coverage * 3, 0, 1))


def _basin(s: Spot, sign: float) -> np.ndarray:
    draws = s.draws
    blob = s.blob(0.2, draws.uniform(1.0, 1.5), 0.0)
    t = np.clip(-blob / np.float32(s.radius * 0.9), 0, 1)
    height = t * t * (3 - 2 * t) * np.float32(sign * s.radius * draws.uniform(0.35, 0.6))
    slope = np.clip(s.c.slope(height), -1.2, 1.2)
    pull = np.float32(0.25 * sign) * t
    warped = s.shifted(-s.c.x * pull, -s.c.y * pull)
    gloss = draws.uniform(0.0, 0.25) * smoothstep(0.5, 1.1, slope)
    return s.on(tone(warped, 1 + np.float32(draws.uniform(0.35, 0.6)) * slope) + gloss[..., None])


def dent(s: Spot) -> np.ndarray:
    """Pressed in: shaded like a bowl, the texture drawn together."""
    return _basin(s, -1.0)


def bump(s: Spot) -> np.ndarray:
    """A bubble or blister: shaded like a dome, the texture spread."""
    return _basin(s, 1.0)


def bend(s: Spot) -> np.ndarray:
    """The material is pushed aside: lines of the pattern and the outline of an object bulge."""
    draws = s.draws
    push = np.float32(s.radius * draws.uniform(0.3, 0.5)) * np.exp(
        -(s.c.x**2 + s.c.y**2) / np.float32((0.6 * s.radius) ** 2)
    )
    dx, dy = -push * np.float32(math.cos(s.heading)), -push * np.float32(math.sin(s.heading))
    # Only the object moves: the ground shows where it was.
    cover = s.shifted(dx, dy, s.scene.coverage[..., None])[..., 0]
    empty = mix(s.scene.image, s.scene.background, s.scene.coverage)
    return mix(empty, s.shifted(dx, dy), cover)


def misplaced(s: Spot) -> np.ndarray:
    """A patch of the surface is turned, or larger or smaller than it should be."""
    draws = s.draws
    u, v = s.c.turned(s.heading)
    shape = draws.choice(("disc", "square"))
    if shape == "disc":
        away = np.sqrt(u * u + v * v) - np.float32(s.radius * 0.8)
    else:
        away = np.maximum(np.abs(u), np.abs(v)) - np.float32(s.radius * 0.7)
    turn, scale = draws.uniform(0.5, 2.6) * draws.sign(), draws.choice((1.0, 1.0, 0.65, 1.5))
    cos, sin = np.float32(math.cos(turn) * scale), np.float32(math.sin(turn) * scale)
    other = s.shifted(s.c.x * (cos - 1) + s.c.y * sin, s.c.y * (cos - 1) - s.c.x * sin)
    seam = 1 - 0.2 * np.exp(-((away / np.float32(0.02)) ** 2))
    return s.on(tone(mix(s.scene.image, other, s.soft(away, 0.03)), seam))


def smear(s: Spot) -> np.ndarray:
    """Surface or print rubbed along one direction while soft."""
    draws = s.draws
    alpha = s.soft(s.blob(0.2, draws.uniform(1.2, 1.8)), 0.25 * s.radius)
    reach = s.radius * draws.uniform(0.35, 0.7)
    cos, sin = math.cos(s.heading), math.sin(s.heading)
    total = np.zeros_like(s.scene.image)
    rows = (s.c.y - s.c.y[0, 0]) / np.float32(s.c.pixel)
    columns = (s.c.x - s.c.x[0, 0]) / np.float32(s.c.pixel)
    steps = np.linspace(-1, 1, 9)
    for step in steps:
        shift = np.float32(step * reach / s.c.pixel)
        total += read(s.scene.image, rows + shift * np.float32(sin), columns + shift * np.float32(cos))
    smooth = total / np.float32(len(steps))
    return s.on(mix(s.scene.image, smooth, alpha))
