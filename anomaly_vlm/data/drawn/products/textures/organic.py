"""Wood, cork, leather, paper, marble: what grew or flowed."""

from __future__ import annotations

import math

import numpy as np

from ..canvas import Canvas, colour, hsv, mix, smoothstep, tone
from ..markings import letters


def wood(c: Canvas) -> np.ndarray:
    """Boards cut along the trunk: warped growth rings, fibres, pores, now and then a knot."""
    draws = c.draws
    angle = draws.choice((0.0, math.pi / 2)) + draws.uniform(-0.15, 0.15)
    along, across = c.turned(angle)
    rings = across * draws.uniform(3, 9) + c.noise(1.2, 2, stretch=4, angle=angle) * draws.uniform(0.3, 1.1)
    knot = np.zeros(c.shape, np.float32)
    if draws.chance(0.3):
        ku, kv, size = draws.uniform(-0.8, 0.8), draws.uniform(-0.8, 0.8), draws.uniform(0.08, 0.2)
        away = ((along - ku) / 2.2) ** 2 + (across - kv) ** 2
        knot = np.exp(-away / np.float32(size**2))
        rings = rings + knot * draws.uniform(2, 4)
    phase = rings - np.floor(rings)
    late = smoothstep(0.25, 0.85, phase) * (1 - smoothstep(0.9, 1.0, phase))
    grain = c.noise(60, 2, stretch=18, angle=angle)
    pores = smoothstep(1.3, 2.2, c.noise(70, 1, stretch=9, angle=angle))
    light = colour(draws, (18, 38), (0.25, 0.6), (0.55, 0.9))
    dark = light * (hsv(draws.uniform(10, 30), 0.4, 1.0) * draws.uniform(0.5, 0.8))
    image = mix(light, dark, np.clip(late * draws.uniform(0.4, 0.9) + knot * 0.7, 0, 1))
    shade = 1 + 0.05 * grain + 0.05 * c.noise(3, 2, stretch=3, angle=angle) - draws.uniform(0.05, 0.3) * pores
    return tone(image, shade)


def cork(c: Canvas) -> np.ndarray:
    """Pressed granules of brown bark with dark gaps."""
    draws = c.draws
    scale = draws.uniform(10, 20)
    u, v = c.turned(draws.angle())
    warp = np.float32(0.35)
    cells = c.cells(u * scale + c.noise(14) * warp, v * scale + c.noise(14) * warp)
    base = colour(draws, (24, 34), (0.4, 0.62), (0.6, 0.8))
    shade = 0.8 + 0.3 * cells.number + 0.07 * c.noise(40, 2)
    gaps = 1 - smoothstep(0.0, 0.12, cells.border)
    dark = smoothstep(0.86, 0.9, cells.other) * smoothstep(0.0, 0.3, cells.border)
    return tone(base, shade * (1 - 0.28 * gaps) * (1 - 0.5 * dark))


def leather(c: Canvas) -> np.ndarray:
    """Embossed grain of rounded cells, pores, soft folds; sometimes a stitched seam."""
    draws = c.draws
    scale = draws.uniform(14, 30)
    u, v = c.turned(draws.angle())
    bend = np.float32(draws.uniform(0.2, 0.5))
    cells = c.cells(u * scale + c.noise(8, 2) * bend, v * scale * draws.uniform(0.75, 1.3) + c.noise(8, 2) * bend)
    height = smoothstep(0.0, 0.35, cells.border) * (0.7 + 0.3 * cells.number) + 0.12 * c.noise(40, 2)
    height = height * np.float32(draws.uniform(0.5, 1.0) / scale) + 0.03 * c.noise(3, 2)
    if draws.chance(0.4):  # broad soft folds
        fold = np.abs(c.noise(1.5, 2, stretch=2.5, angle=draws.angle()))
        height = height - np.float32(draws.uniform(0.02, 0.05)) * np.exp(-fold / np.float32(0.12))
    base = colour(draws, draws.choice(((8, 30), (8, 30), (0, 360))), (0.25, 0.75), (0.22, 0.75))
    slope = c.slope(height)
    gloss = draws.uniform(0.0, 0.16) * smoothstep(0.35, 1.2, slope)
    shade = 1 + draws.uniform(0.2, 0.4) * np.clip(slope, -1.2, 1.2) + draws.uniform(0.05, 0.13) * c.noise(2, 2)
    image = tone(base, shade * (0.75 + 0.25 * smoothstep(0.0, 0.15, cells.border))) + gloss[..., None]
    if draws.chance(0.3):
        image = _seam(c, image)
    return image


def _seam(c: Canvas, image: np.ndarray) -> np.ndarray:
    draws = c.draws
    along, across = c.turned(draws.angle())
    across = across - np.float32(draws.uniform(-0.7, 0.7))
    groove = np.exp(-((across / 0.03) ** 2))
    image = tone(image, 1 - 0.45 * groove + 0.15 * np.exp(-(((across - 0.06) / 0.03) ** 2)))
    pitch, offset = draws.uniform(0.1, 0.18), draws.uniform(0.07, 0.12)
    thread = colour(draws, (20, 60), (0.05, 0.6), (0.5, 0.95))
    phase = (along / np.float32(pitch)) % 1 - 0.5
    for side in (-offset, offset) if draws.chance(0.5) else (offset,):
        away = np.maximum(np.abs(phase) * pitch - 0.3 * pitch, 0) ** 2 + (across - np.float32(side)) ** 2
        stitch = 1 - smoothstep(0.012, 0.022, np.sqrt(away))
        image = mix(tone(image, 1 - 0.3 * np.exp(-away / 0.0012)), thread, stitch)
    return image


def paper(c: Canvas) -> np.ndarray:
    """Fibrous sheet, sometimes ruled or printed with rows of type."""
    draws = c.draws
    base = colour(draws, (20, 60), (0.0, 0.25), (0.78, 0.97))
    angle = draws.angle()
    relief = c.noise(60, 2) * 0.004 + c.noise(5, 2) * 0.008
    fibres = smoothstep(1.5, 2.4, c.noise(36, 1, stretch=6, angle=angle))
    fibres = fibres - smoothstep(1.6, 2.4, c.noise(36, 1, stretch=6, angle=angle + draws.uniform(0.6, 2.4)))
    image = tone(base, 1 + 0.5 * c.slope(relief) * draws.uniform(0.1, 0.5) + draws.uniform(0.01, 0.06) * fibres)
    kind = draws.choice(("bare", "ruled", "squared", "type"))
    ink = colour(draws, (200, 260), (0.0, 0.7), (0.1, 0.6))
    turn = draws.uniform(-0.12, 0.12)
    u, v = c.turned(turn)
    if kind in ("ruled", "squared"):
        pitch = draws.uniform(0.16, 0.3)
        for axis in (v,) if kind == "ruled" else (u, v):
            off = np.abs((axis / np.float32(pitch)) % 1 - 0.5) * pitch
            image = mix(image, ink, c.inside(off - 0.006) * np.float32(0.5))
    elif kind == "type":
        image = mix(image, ink, _type(c, u, v) * np.float32(0.8))
    return image


def _type(c: Canvas, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A paragraph of letter rows, the last one shorter; [H, W] in [0, 1]."""
    draws = c.draws
    rows, count, height = draws.integer(2, 7), draws.integer(7, 14), draws.uniform(0.08, 0.12)
    x, y = draws.uniform(-0.35, 0.35), draws.uniform(-0.6, 0.2)
    cover: np.ndarray = np.zeros(c.shape, np.float32)
    for row in range(rows):
        length = count if row < rows - 1 else draws.integer(2, count)
        left = x - (count - length) / 2 * height * 1.05
        cover = np.maximum(cover, letters(c, u, v, length, height, left, y + row * height * 1.7))
    return cover


def marble(c: Canvas) -> np.ndarray:
    """Polished stone: clouds and rough veins that swell, fade and break off, mostly in one direction."""
    draws = c.draws
    angle = draws.angle()
    along, _ = c.turned(angle)
    cloud = c.noise(1.6, 4)
    rough: np.ndarray = along + cloud * np.float32(draws.uniform(0.08, 0.2))
    swell = 0.5 + 0.5 * np.tanh(c.noise(3))
    veins: np.ndarray = np.zeros(c.shape, np.float32)
    for _ in range(draws.integer(2, 4)):
        period = draws.uniform(0.5, 1.4)
        away = np.abs(((rough + np.float32(draws.uniform(0, 2))) / np.float32(period) % 1) - 0.5) * np.float32(period)
        width = np.float32(draws.log_uniform(0.006, 0.07)) * (0.4 + 1.2 * swell)
        visible = smoothstep(-0.9, 0.9, c.noise(2))
        veins = np.maximum(veins, np.exp(-away / width) * visible * np.float32(draws.uniform(0.35, 1.0)))
        rough = rough + 0.05 * c.noise(5, 2) + np.float32(draws.uniform(-0.25, 0.25)) * c.y
    light, dark = _marble_colours(c)
    image = mix(light, dark, np.clip(draws.uniform(0.1, 0.4) * (0.5 + 0.5 * np.tanh(cloud)) + veins, 0, 1))
    return tone(image, 1 + 0.012 * c.noise(60))


def _marble_colours(c: Canvas) -> tuple[np.ndarray, np.ndarray]:
    hue = c.draws.uniform(0, 360)
    light = colour(c.draws, (hue, hue + 30), (0.02, 0.25), (0.7, 0.95))
    dark = colour(c.draws, (hue, hue + 40), (0.05, 0.4), (0.15, 0.5))
    return (dark, light) if c.draws.chance(0.3) else (light, dark)
