"""Fabric, carbon fibre, wicker, knit, carpet, felt: what is made of threads."""

from __future__ import annotations

import math

import numpy as np

from ..canvas import Canvas, any_colour, colour, mix, smoothstep, tone

# Which of the two threads lies on top, by (row, column) of a repeating block.
PLAIN = np.array([[1, 0], [0, 1]], np.float32)
TWILL = np.array([[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1], [1, 0, 0, 1]], np.float32)
BASKET = np.kron(PLAIN, np.ones((2, 2), np.float32))
SATIN = np.array([[1, 0, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 1], [0, 1, 0, 0, 0], [0, 0, 0, 1, 0]], np.float32)


def weave(
    c: Canvas, u: np.ndarray, v: np.ndarray, block: np.ndarray, warp: np.ndarray, weft: np.ndarray, uneven: float
) -> np.ndarray:
    """Two sets of round threads; `u`, `v` [H, W] in thread pitches, colours [3], `uneven` difference between threads."""
    dice = c.dice
    column, row = np.floor(u), np.floor(v)
    ci, ri = column.astype(np.int32), row.astype(np.int32)
    over = block[ri % len(block), ci % len(block)]
    du, dv = u - column - 0.5, v - row - 0.5
    table = dice.table(2, 256)
    along = np.where(over > 0, dv, du)  # position along the upper thread within its float
    across = np.where(over > 0, du, dv)
    shade = (1 - 2.6 * across * across) * (1 - 0.9 * along * along)
    facing = np.where(over > 0, np.float32(c.light[0]), np.float32(c.light[1]))
    shade = shade * (1 + 0.35 * across * facing)
    own = np.where(over > 0, table[0].take(ci % 256), table[1].take(ri % 256))
    image = np.where(over[..., None] > 0, warp, weft)
    return tone(image, shade * (1 + uneven * own))


def fabric(c: Canvas) -> np.ndarray:
    """Woven cloth: plain, twill, basket or satin, of one or two colours, threads slightly bent and uneven."""
    dice = c.dice
    u, v = c.turned(dice.angle())
    pitch = dice.uniform(9, 20)
    bend = dice.uniform(0.1, 0.35)
    u, v = u * pitch + bend * c.noise(3, 2), v * pitch + bend * c.noise(3, 2)
    warp = any_colour(dice, (0.05, 0.7))
    weft = warp * np.float32(dice.uniform(0.7, 1.1)) if dice.chance(0.6) else any_colour(dice, (0.05, 0.7))
    image = weave(c, u, v, dice.choice((PLAIN, PLAIN, TWILL, BASKET, SATIN)), warp, weft, dice.uniform(0.02, 0.09))
    return tone(image, 1 + dice.uniform(0.02, 0.08) * c.noise(70, 1) + 0.03 * c.noise(3, 2))


def carbon_fibre(c: Canvas) -> np.ndarray:
    """Black twill under clear resin: each tow is bright where its fibres face the light."""
    dice = c.dice
    turn = dice.choice((0.0, math.pi / 4)) + dice.uniform(-0.1, 0.1)
    u, v = c.turned(turn)
    pitch = dice.uniform(6, 12)
    fibres_u = c.noise(60, 1, stretch=25, angle=turn)
    fibres_v = c.noise(60, 1, stretch=25, angle=turn + math.pi / 2)
    u, v = u * pitch + 0.06 * c.noise(4), v * pitch + 0.06 * c.noise(4)
    block = dice.choice((TWILL, TWILL, PLAIN))
    over = block[np.floor(v).astype(np.int32) % len(block), np.floor(u).astype(np.int32) % len(block)]
    bright, dull = dice.uniform(0.38, 0.6), dice.uniform(0.12, 0.25)
    image = weave(c, u, v, block, np.full(3, bright, np.float32), np.full(3, dull, np.float32), 0.04)
    image = tone(image, 1 + 0.16 * np.where(over > 0, fibres_v, fibres_u))
    tint = colour(dice, (180, 260), (0.0, 0.15), (0.95, 1.0))
    sheen = dice.uniform(0, 0.12) * smoothstep(0.0, 2.0, c.noise(1.3, 1))
    cloth: np.ndarray = image * tint + 0.03 + sheen[..., None]
    return cloth


def wicker(c: Canvas) -> np.ndarray:
    """Flat strips of straw woven crosswise."""
    dice = c.dice
    turn = dice.choice((0.0, math.pi / 4)) + dice.uniform(-0.1, 0.1)
    u, v = c.turned(turn)
    pitch = dice.uniform(4, 8)
    grain_u = c.noise(50, 1, stretch=14, angle=turn)
    grain_v = c.noise(50, 1, stretch=14, angle=turn + math.pi / 2)
    u, v = u * pitch + 0.08 * c.noise(5), v * pitch + 0.08 * c.noise(5)
    warp = colour(dice, (28, 45), (0.3, 0.6), (0.55, 0.85))
    weft = warp * np.float32(dice.uniform(0.8, 1.05))
    over = PLAIN[np.floor(v).astype(np.int32) % 2, np.floor(u).astype(np.int32) % 2]
    image = weave(c, u, v, PLAIN, warp, weft, 0.1)
    return tone(image, 1 + 0.08 * np.where(over > 0, grain_v, grain_u))


def knit(c: Canvas) -> np.ndarray:
    """Stocking stitch: columns of V-shaped loops, sometimes with stripes."""
    dice = c.dice
    u, v = c.turned(dice.choice((0.0, math.pi / 2)) + dice.uniform(-0.15, 0.15))
    pitch = dice.uniform(6, 12)
    u, v = u * pitch + 0.15 * c.noise(3, 2), v * pitch * dice.uniform(1.0, 1.4) + 0.15 * c.noise(3, 2)
    column = np.floor(u)
    du = u - column - 0.5
    lean = v + np.abs(du) * dice.uniform(0.9, 1.3)
    row = np.floor(lean)
    dv = lean - row - 0.5
    leg = np.abs(np.abs(du) - 0.25)
    shade = (1 - 5.5 * leg * leg) * (1 - 1.1 * dv * dv) * (1 + 0.25 * du * c.light[0])
    base = any_colour(dice, (0.1, 0.7))
    image = np.broadcast_to(base, (*c.shape, 3))
    if dice.chance(0.4):
        other = any_colour(dice, (0.1, 0.7))
        every, width = dice.integer(6, 14), dice.integer(1, 4)
        image = np.where((row % every < width)[..., None], other, image)
    return tone(image, shade * (1 + 0.09 * c.noise(70, 1) + 0.03 * c.noise(3)))


def carpet(c: Canvas) -> np.ndarray:
    """Tufts of yarn, heathered from two or three colours."""
    dice = c.dice
    u, v = c.turned(dice.angle())
    scale = dice.uniform(18, 30)
    cells = c.cells(u * scale + 0.2 * c.noise(20), v * scale + 0.2 * c.noise(20), jitter=0.6)
    first = any_colour(dice, (0.05, 0.5), (0.25, 0.75))
    image = np.broadcast_to(first, (*c.shape, 3))
    for _ in range(dice.integer(1, 3)):
        other = np.clip(first * np.float32(dice.uniform(0.6, 1.5)), 0, 1)
        patch = smoothstep(0.1, 0.6, cells.number - 0.5 + dice.uniform(0.0, 0.3) * c.noise(6, 2))
        image = mix(image, other, patch)
    shade = 1.1 - 0.9 * cells.nearest**2 + 0.25 * (cells.other - 0.5)
    return tone(image, shade * (1 + 0.1 * c.noise(70, 1) + 0.04 * c.noise(3, 2)))


def felt(c: Canvas) -> np.ndarray:
    """Matted fibres in all directions."""
    dice = c.dice
    base = any_colour(dice, (0.05, 0.7), (0.3, 0.85))
    shade = 1 + 0.04 * c.noise(4, 3)
    first = dice.angle()
    for turn in (0.0, 0.8, 1.6, 2.4):
        fibre = c.noise(40, 1, stretch=7, angle=first + turn)
        shade = shade + dice.uniform(0.03, 0.07) * smoothstep(0.6, 2.2, np.abs(fibre)) * np.sign(fibre)
    return tone(base, shade * (1 + 0.04 * c.noise(70, 1)))
