"""Stain, discoloration, burn, rust, wear, contamination, glue: on the surface."""

from __future__ import annotations

import math

import numpy as np
from scipy.ndimage import gaussian_filter

from ..canvas import LUMA, any_colour, colour, mix, moved, smoothstep, tone
from .spot import Spot


def stain(s: Spot) -> np.ndarray:
    """Dried liquid: darker and tinted, often darkest at its rim."""
    draws = s.draws
    blob = s.blob(0.25, draws.uniform(1.0, 1.8))
    body = s.soft(blob, draws.uniform(0.03, 0.08))
    rim = np.exp(-((blob / np.float32(0.022)) ** 2)) * np.float32(draws.choice((0.0, 0.6, 1.0)))
    tint = colour(draws, draws.choice(((15, 45), (15, 45), (0, 360))), (0.15, 0.6), (0.35, 0.75))
    strength = np.clip(body * (0.75 + 0.15 * s.c.noise(3 / s.radius, 2)) + 0.4 * rim, 0, 1)
    return s.on(s.scene.image * (1 + (tint - 1) * strength[..., None]))


def discoloration(s: Spot) -> np.ndarray:
    """The colour shifts softly: faded, darkened or of another hue; the texture stays."""
    draws = s.draws
    alpha = s.soft(s.blob(0.3, draws.uniform(1.0, 2.0), 0.03), 0.9 * s.radius)
    luma = (s.scene.image @ LUMA)[..., None]
    kind = draws.choice(("fade", "dark", "hue", "pale"))
    if kind == "fade":
        after = luma + (s.scene.image - luma) * np.float32(0.2) + np.float32(0.12)
    elif kind == "dark":
        after = s.scene.image * np.float32(0.6)
    elif kind == "pale":
        after = s.scene.image + (1 - s.scene.image) * np.float32(0.4)
    else:
        after = (0.35 + luma) * any_colour(draws, (0.3, 0.7), (0.6, 0.9))
    return s.on(mix(s.scene.image, after, alpha))


def burn(s: Spot) -> np.ndarray:
    """Scorched: charred middle, brown halo."""
    draws = s.draws
    blob = s.blob(0.3, draws.uniform(1.0, 1.6))
    halo = 1 - smoothstep(-s.radius * 0.7, s.radius * 0.25, blob)
    char = (1 - smoothstep(-s.radius * 0.75, -s.radius * 0.3, blob)) * np.float32(draws.uniform(0.5, 1.0))
    brown = colour(draws, (18, 32), (0.45, 0.7), (0.35, 0.6))
    after = s.scene.image * (1 + (brown - 1) * (0.85 * halo)[..., None])
    return s.on(tone(after, 1 - 0.75 * char * np.clip(0.85 + 0.2 * s.c.noise(4 / s.radius, 2), 0, 1)))


def rust(s: Spot) -> np.ndarray:
    """Patches of orange-brown corrosion with a rough surface."""
    draws = s.draws
    blob = s.blob(0.3, draws.uniform(1.0, 1.8))
    patches = s.c.noise(3.5 / s.radius, 3) - 2.2 * blob / np.float32(s.radius) - np.float32(0.7)
    alpha = smoothstep(-0.25, 0.45, patches)
    brown = colour(draws, (12, 28), (0.55, 0.8), (0.35, 0.6))
    rough = 1 + 0.22 * s.c.noise(12 / s.radius, 2)
    luma = 0.55 + 0.7 * (s.scene.image @ LUMA)
    return s.on(mix(s.scene.image, tone(brown, rough * luma), alpha * np.float32(draws.uniform(0.7, 0.95))))


def wear(s: Spot) -> np.ndarray:
    """Rubbed off in strokes: the finish is thinner, paler or duller, and its texture is gone."""
    draws = s.draws
    blob = s.blob(0.25, draws.uniform(1.3, 2.2))
    strokes = s.c.noise(7 / s.radius, 2, stretch=6, angle=s.heading)
    alpha = smoothstep(0.0, 0.9, s.soft(blob, 0.7 * s.radius) * np.float32(1.5) + 0.4 * strokes - np.float32(0.55))
    sigma = 0.35 * s.radius / s.c.pixel
    smooth = gaussian_filter(s.scene.image, (sigma, sigma, 0), mode="nearest")
    level = np.float32(draws.choice((0.16, 0.16, -0.12)))
    dull = smooth + (smooth.mean(axis=2, keepdims=True) - smooth) * np.float32(0.35) + level
    return s.on(mix(s.scene.image, dull + (0.02 * strokes)[..., None], alpha * np.float32(0.9)))


def contamination(s: Spot) -> np.ndarray:
    """Foreign particles: one lump or a few crumbs, shaded, with a small shadow."""
    draws = s.draws
    after = s.scene.image
    count = draws.choice((1, 1, 2, 4, 7))
    paint = any_colour(draws, (0.0, 0.7), (0.08, 0.9))
    distance: np.ndarray = np.full(s.c.shape, 9, np.float32)
    lump = s.radius if count == 1 else s.radius * 0.75 / math.sqrt(count)
    for _ in range(count):
        turn, away = draws.angle(), (0.0 if count == 1 else s.radius * 0.8 * math.sqrt(draws.uniform(0, 1)))
        u, v = s.c.turned(draws.angle(), away * math.cos(turn), away * math.sin(turn))
        size = lump * draws.uniform(0.6, 1.0)
        distance = np.minimum(
            distance, np.sqrt((u / np.float32(draws.uniform(1, 1.6))) ** 2 + v * v) - np.float32(size)
        )
    distance = distance + np.float32(0.2 * lump) * s.c.noise(2.2 / lump, 2)
    dx, dy = (-part * 0.4 * lump / s.c.pixel for part in s.c.light)
    shade = s.soft(moved(distance, dx, dy), lump)
    after = tone(after, 1 - 0.3 * shade)
    height = np.sqrt(np.clip(-distance / np.float32(lump), 0, 1)) * np.float32(lump * 0.8)
    slope = np.clip(s.c.slope(height), -1.2, 1.2)
    return mix(after, tone(paint, 0.95 + 0.35 * slope + 0.06 * s.c.noise(8 / s.radius)), s.c.inside(distance))


def glue(s: Spot) -> np.ndarray:
    """A clear drop: dark and bright rims, a highlight, the texture below slightly magnified."""
    draws = s.draws
    blob = s.blob(0.2, draws.uniform(1.0, 1.6), 0.0)
    depth = np.sqrt(np.clip(-blob / np.float32(s.radius * 0.9), 0, 1))
    slope = np.clip(s.c.slope(depth * np.float32(s.radius * 0.8)), -1.5, 1.5)
    inside = s.c.inside(blob)
    below = s.shifted(-0.22 * s.c.x * inside, -0.22 * s.c.y * inside)
    tint = any_colour(draws, (0.0, 0.35), (0.75, 1.0))
    after = tone(below * tint, 1 - 0.22 * slope)
    lx, ly = s.c.light
    glint = np.sqrt((s.c.x - 0.4 * s.radius * lx) ** 2 + (s.c.y - 0.4 * s.radius * ly) ** 2) - np.float32(
        0.2 * s.radius
    )
    after = after + (np.float32(draws.uniform(0.25, 0.55)) * s.soft(glint, 0.15 * s.radius))[..., None]
    return mix(s.scene.image, after, inside)
