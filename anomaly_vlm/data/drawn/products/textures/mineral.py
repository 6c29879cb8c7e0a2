"""Concrete, granite, terrazzo, asphalt, brick, tile: what is cast, cut or laid."""

from __future__ import annotations

import math

import numpy as np

from ..canvas import Canvas, any_colour, colour, mix, smoothstep, tone


def concrete(c: Canvas) -> np.ndarray:
    """Grey cast with clouds, sand grain, air pores and sometimes the joint of two boards."""
    draws = c.draws
    base = colour(draws, (20, 220), (0.0, 0.1), (0.45, 0.75))
    shade = 1 + draws.uniform(0.03, 0.1) * c.noise(2, 4) + draws.uniform(0.02, 0.05) * c.noise(70, 1)
    u, v = c.turned(draws.angle())
    scale = draws.uniform(7, 14)
    cells = c.cells(u * scale, v * scale)
    radius = np.where(cells.other < draws.uniform(0.05, 0.3), 0.05 + 0.12 * cells.number**2, np.float32(0))
    hole = c.inside((cells.nearest - radius) / scale) * (radius > 0)
    lip = c.slope(-hole * np.float32(0.02))
    image = tone(base, (shade - 0.45 * hole) * (1 + 0.1 * np.clip(lip, -1, 1)))
    if draws.chance(0.3):
        _, across = c.turned(draws.choice((0.0, math.pi / 2)) + draws.uniform(-0.05, 0.05))
        across = across - np.float32(draws.uniform(-0.6, 0.6)) + 0.004 * c.noise(12)
        image = tone(image, 1 - 0.3 * np.exp(-((across / 0.012) ** 2)) + 0.04 * np.tanh(across / 0.01))
    return image


def granite(c: Canvas) -> np.ndarray:
    """Interlocked grains of three minerals."""
    draws = c.draws
    u, v = c.turned(draws.angle())
    scale = draws.uniform(18, 34)
    cells = c.cells(u * scale + 0.4 * c.noise(30), v * scale + 0.4 * c.noise(30), jitter=1.0)
    main = colour(draws, draws.choice(((0, 40), (180, 260))), (0.05, 0.35), (0.5, 0.85))
    pale = colour(draws, (20, 60), (0.0, 0.15), (0.75, 0.95))
    dark = colour(draws, (0, 360), (0.0, 0.2), (0.08, 0.3))
    shares = draws.uniform(0.3, 0.6), draws.uniform(0.75, 0.9)
    image = np.where((cells.number < shares[0])[..., None], main, pale)
    image = np.where((cells.number > shares[1])[..., None], dark, image)
    image = mix(image, main * np.float32(0.9), 0.4 * (1 - smoothstep(0, 0.25, cells.border)))
    return tone(image, 1 + 0.06 * c.noise(60, 1) + 0.12 * (cells.other - 0.5) + 0.03 * c.noise(3, 2))


def terrazzo(c: Canvas) -> np.ndarray:
    """Stone chips of a few colours in polished cement."""
    draws = c.draws
    cement = colour(draws, (0, 360), (0.0, 0.2), (0.55, 0.9))
    palette = np.stack([colour(draws, (0, 360), (0.05, 0.6), (0.2, 0.95)) for _ in range(draws.integer(2, 5))])
    image = np.broadcast_to(cement, (*c.shape, 3))
    for scale, share in (
        (draws.uniform(4, 8), draws.uniform(0.3, 0.75)),
        (draws.uniform(14, 22), draws.uniform(0.2, 0.5)),
    ):
        u, v = c.turned(draws.angle())
        cells = c.cells(u * scale + 0.12 * c.noise(12, 2), v * scale + 0.12 * c.noise(12, 2))
        inset = 0.08 + 0.35 * cells.other
        chip = smoothstep(-1.5, 1.5, (cells.border - inset) / np.float32(scale * c.pixel)) * (cells.number < share)
        chips = palette[np.minimum((cells.number / share * len(palette)).astype(np.int32), len(palette) - 1)]
        image = mix(image, tone(chips, 0.9 + 0.25 * (cells.other - 0.5)), chip)
    return tone(image, 1 + 0.025 * c.noise(40, 2) + 0.02 * c.noise(3, 2))


def asphalt(c: Canvas) -> np.ndarray:
    """Dark binder with mineral grit of many sizes, sometimes a painted line."""
    draws = c.draws
    base = colour(draws, (0, 360), (0.0, 0.08), (0.22, 0.45))
    u, v = c.turned(draws.angle())
    image = np.broadcast_to(base, (*c.shape, 3))
    for scale in (draws.uniform(12, 18), draws.uniform(26, 40)):
        cells = c.cells(u * scale, v * scale, jitter=1.0)
        grit = smoothstep(0.05, 0.3, cells.border) * (cells.number > 0.45)
        tint = 0.75 + draws.uniform(0.4, 0.9) * cells.other
        image = mix(image, tone(base, tint), grit)
    image = tone(image, 1 + 0.12 * c.noise(70, 1) + 0.04 * c.noise(2, 2))
    if draws.chance(0.25):
        _, across = c.turned(draws.angle())
        across = np.abs(across - np.float32(draws.uniform(-0.7, 0.7)))
        worn = smoothstep(-1.6, -0.6, c.noise(30, 3))
        paint = colour(draws, (40, 55), (0.0, 0.7), (0.75, 0.9))
        image = mix(image, tone(paint, 0.9 + 0.1 * c.noise(50)), c.inside(across - draws.uniform(0.08, 0.2), 2) * worn)
    return image


def brick(c: Canvas) -> np.ndarray:
    """Bricks in running bond, each of its own tone, with sandy mortar."""
    draws = c.draws
    turn = draws.choice((0.0, math.pi / 2)) + draws.uniform(-0.05, 0.05)
    u, v = c.turned(turn)
    height = draws.uniform(0.22, 0.36)
    ratio, joint = draws.uniform(2.0, 3.0), draws.uniform(0.012, 0.024)
    v = v / np.float32(height) + draws.uniform(0, 1)
    row = np.floor(v)
    u = u / np.float32(height * ratio) + row * np.float32(draws.choice((0.5, 0.5, 0.333)))
    column = np.floor(u)
    wobble = 0.004 * c.noise(22, 2)
    away = np.minimum(
        np.minimum(u - column, 1 - u + column) * ratio * height, np.minimum(v - row, 1 - v + row) * height
    )
    face = smoothstep(joint, joint + 0.02, away + wobble)
    number = draws.table(4096).take((row * 57 + column).astype(np.int32) % 4096)
    base = colour(draws, (6, 28), (0.35, 0.65), (0.45, 0.75))
    mortar = colour(draws, (25, 50), (0.03, 0.2), (0.5, 0.8))
    bricks = tone(base, 1 + 0.1 * number + 0.08 * c.noise(24, 3) - 0.2 * smoothstep(1.6, 2.4, c.noise(40)))
    image = mix(tone(mortar, 1 + 0.07 * c.noise(60)), bricks, face)
    return tone(image, 1 + 0.25 * np.clip(c.slope(face * np.float32(0.02)), -1.5, 1.5))


def tile(c: Canvas) -> np.ndarray:
    """Glazed wall tiles: grout lines, bevelled edges, a printed or mottled glaze, slight differences from tile to tile."""
    draws = c.draws
    turn = draws.choice((0.0, 0.0, math.pi / 4)) + draws.uniform(-0.06, 0.06)
    side = draws.uniform(0.45, 0.9)
    wide = side * draws.choice((1.0, 1.0, 2.0))
    u, v = c.turned(turn, draws.uniform(-0.3, 0.3), draws.uniform(-0.3, 0.3))
    row = np.floor(v / side)
    shift = np.float32(draws.choice((0.0, 0.0, 0.5)))
    u = u + row * shift * wide
    column = np.floor(u / wide)
    du, dv = u - (column + 0.5) * wide, v - (row + 0.5) * side
    grout = draws.uniform(0.012, 0.03)
    away = np.minimum(wide / 2 - np.abs(du), side / 2 - np.abs(dv)) - np.float32(grout)
    base = any_colour(draws, (0.02, 0.5), (0.5, 0.95))
    number = draws.table(1024).take((row * 31 + column).astype(np.int32) % 1024)
    image = tone(base, 1 + 0.025 * number + draws.uniform(0.0, 0.05) * c.noise(5, 3))
    second = base * np.float32(draws.uniform(0.55, 0.8)) if draws.chance(0.6) else any_colour(draws, (0.1, 0.6))
    if draws.chance(0.4):  # single tiles of another colour
        accent = any_colour(draws, (0.1, 0.7), (0.3, 0.95))
        image = mix(image, accent, (number > draws.uniform(1.15, 1.5)).astype(np.float32) * np.float32(0.85))
    image = mix(image, second, _glaze(c, du / (wide / 2), dv / (side / 2), side))
    height = smoothstep(0.0, 0.05, away) * np.float32(0.02)
    slope = c.slope(height)
    image = tone(image, 1 + 0.35 * np.clip(slope, -1, 1)) + (0.3 * smoothstep(0.3, 0.8, slope))[..., None]
    sheen = draws.uniform(0.0, 0.12) * smoothstep(0.3, 1.8, c.noise(1.5, 1))
    image = image + sheen[..., None]
    cement = colour(draws, (20, 60), (0.0, 0.15), (0.35, 0.9))
    return mix(tone(cement, 1 + 0.06 * c.noise(60)), image, c.inside(-away, 1.5))


def _glaze(c: Canvas, a: np.ndarray, b: np.ndarray, side: float) -> np.ndarray:
    """Strength [H, W] of the second colour; `a`, `b` run over a tile from -1 to 1."""
    draws = c.draws
    kind = draws.choice(("plain", "speckle", "rings", "diamond", "clouds", "corner"))
    strength = np.float32(draws.uniform(0.3, 0.9))
    radius = np.sqrt(a * a + b * b)
    soft = 2 * c.pixel / side
    if kind == "speckle":
        return strength * smoothstep(1.2, 1.8, c.noise(36, 2))
    if kind == "rings":
        return strength * c.inside((np.abs(radius - draws.uniform(0.4, 0.75)) - draws.uniform(0.06, 0.14)) * side / 2)
    if kind == "diamond":
        return strength * smoothstep(-soft, soft, draws.uniform(0.35, 0.8) - np.abs(a) - np.abs(b))
    if kind == "clouds":
        return strength * smoothstep(-0.3, 1.5, c.noise(4, 4))
    if kind == "corner":
        corner = np.sqrt((1 - np.abs(a)) ** 2 + (1 - np.abs(b)) ** 2)
        return strength * smoothstep(-soft, soft, draws.uniform(0.3, 0.6) - corner)
    return np.zeros(c.shape, np.float32)
