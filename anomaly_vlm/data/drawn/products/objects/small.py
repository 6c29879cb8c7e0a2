"""Pill, capsule, blister pack, button, coin, bottle cap, hazelnut, biscuit, tealight."""

from __future__ import annotations

import math

import numpy as np

from ..canvas import Canvas, Scene, any_colour, colour, mix, smoothstep, tone
from ..markings import letters
from ..stage import Stage, box, disc, metal, rod


def pill(c: Canvas) -> Scene:
    """Round or oval tablet, coated or speckled, with a score line or an imprint."""
    s = Stage(c, size=(0.88, 1.40))
    dice = s.dice
    if dice.chance(0.5):
        outline = disc(s.u, s.v, 0.55 * s.size)
    else:
        outline = rod(s.u, s.v, dice.uniform(0.15, 0.35) * s.size, 0.38 * s.size)
    base = any_colour(dice, (0.0, 0.35), (0.8, 0.98)) if dice.chance(0.7) else any_colour(dice, (0.4, 0.75), (0.5, 0.9))
    speckle = dice.choice((0.0, dice.uniform(0.1, 0.35))) * smoothstep(1.0, 1.8, c.noise(32, 1))
    s.shadow(outline, 0.1)
    texture = 1 + 0.015 * c.noise(50, 2) - speckle
    s.layer(
        outline,
        base,
        bevel=dice.uniform(0.08, 0.3) * s.size,
        depth=0.4,
        gloss=dice.choice((0, 0.15, 0.3)),
        texture=texture,
    )
    mark = dice.choice(("line", "ring", "letters", "letters", "none"))
    if mark == "line":
        s.engrave(s.u, 0.025 * s.size, 0.5)
    elif mark == "ring":
        s.engrave(np.abs(outline + 0.14 * s.size), 0.02 * s.size, 0.4)
    elif mark == "letters":
        ink = letters(c, s.u, s.v, dice.integer(1, 4), 0.2 * s.size)
        if dice.chance(0.5):
            s.emboss(1 - ink, 0.5)
        else:
            s.stamp(colour(dice, (0, 360), (0.2, 0.9), (0.1, 0.5)), ink * np.float32(0.85))
    return s.scene()


def capsule(c: Canvas) -> Scene:
    """Two-part gelatine capsule with a gloss strip, sometimes printed."""
    s = Stage(c, size=(0.94, 1.40))
    dice = s.dice
    half, radius = dice.uniform(0.32, 0.48) * s.size, dice.uniform(0.2, 0.28) * s.size
    outline = rod(s.u, s.v, half, radius)
    first, second = any_colour(dice, (0.1, 0.9), (0.4, 0.95)), any_colour(dice, (0.0, 0.7), (0.5, 0.98))
    join = dice.uniform(-0.12, 0.12)
    paint = mix(first, second, c.inside(s.u - np.float32(join)))
    s.shadow(outline, 0.12)
    s.layer(outline, paint, bevel=radius, depth=0.38, texture=1 + 0.01 * c.noise(40))
    sleeve = rod(s.u, s.v, half, radius * 1.05)
    s.layer(np.maximum(sleeve, join - s.u), second, bevel=radius * 1.05, depth=0.38)
    s.engrave(s.u - np.float32(join), 0.014, 0.4)
    lean = 0.45 * radius * (1 if s.light[1] > 0 else -1)
    streak = np.exp(-(((s.v - np.float32(lean)) / (0.22 * radius)) ** 2)) * c.inside(np.abs(s.u) - half, 8)
    s.stamp(np.ones(3, np.float32), streak * np.float32(dice.uniform(0.2, 0.6)))
    if dice.chance(0.5):
        ink = letters(c, s.u, s.v, dice.integer(2, 4), 0.16 * s.size, x=join + 0.25 * s.size * dice.sign())
        s.stamp(colour(dice, (0, 360), (0.0, 0.8), (0.05, 0.4)), ink * np.float32(0.8))
    return s.scene()


def blister_pack(c: Canvas) -> Scene:
    """Foil card with two rows of tablets under clear domes."""
    s = Stage(c, size=(0.99, 1.33))
    dice = s.dice
    columns = dice.integer(3, 5)
    pitch = 1.3 / columns * s.size
    card = box(s.u, s.v, 0.74 * s.size, pitch * 1.15, 0.1)
    foil = colour(dice, (200, 240), (0.0, 0.12), (0.65, 0.9))
    s.shadow(card, 0.05)
    u, v = s.u * np.float32(14), s.v * np.float32(14)
    texture = 1 + 0.05 * np.sin(u * 3) * np.sin(v * 3) + 0.05 * c.noise(3, 3)
    s.layer(card, foil, bevel=0.02, depth=0.3, texture=texture)
    tablet = any_colour(dice, (0.0, 0.7), (0.6, 0.97))
    radius = pitch * dice.uniform(0.3, 0.36)
    shape = dice.choice(("round", "oval"))
    for row in (-0.5, 0.5):
        for column in range(columns):
            x, y = (column - (columns - 1) / 2) * pitch, row * pitch * 1.02
            dome = disc(s.u, s.v, radius * 1.22, x, y)
            s.layer(dome, foil * np.float32(0.92), bevel=radius * 0.4, depth=0.35, gloss=0.25)
            core = (
                disc(s.u, s.v, radius, x, y)
                if shape == "round"
                else rod(s.u - np.float32(x), s.v - np.float32(y), radius * 0.35, radius * 0.62)
            )
            s.layer(core, tablet, bevel=radius * 0.6, depth=0.3, gloss=0.1)
            lx, ly = s.light
            glint = disc(s.u, s.v, radius * 0.16, x + lx * radius * 0.85, y + ly * radius * 0.85)
            s.stamp(np.ones(3, np.float32), c.inside(glint, 2) * np.float32(0.7))
    return s.scene()


def button(c: Canvas) -> Scene:
    """Sewing button: rim, dished middle, two or four holes, plain, marbled or wooden, sometimes sewn on with thread."""
    s = Stage(c, size=(0.94, 1.46))
    dice = s.dice
    radius = 0.62 * s.size
    outline = disc(s.u, s.v, radius)
    base = any_colour(dice, (0.0, 0.8), (0.25, 0.95))
    kind = dice.choice(("plain", "marbled", "wood", "pearl"))
    paint: np.ndarray = base
    texture: np.ndarray | float = 1 + 0.015 * c.noise(40, 2)
    if kind == "marbled":
        paint = mix(
            base, np.clip(base * np.float32(dice.choice((0.55, 1.4))), 0, 1), smoothstep(-0.3, 1.2, c.noise(4, 3))
        )
    elif kind == "wood":
        base = colour(dice, (20, 36), (0.3, 0.6), (0.4, 0.75))
        paint = base
        texture = 1 + 0.1 * c.noise(9, 3, stretch=8, angle=s.angle)
    elif kind == "pearl":
        paint = base + 0.06 * np.stack([c.noise(3, 2) for _ in range(3)], axis=-1)
    s.shadow(outline, 0.08)
    s.layer(outline, paint, bevel=0.1 * s.size, depth=0.45, gloss=dice.uniform(0.0, 0.35), texture=texture)
    rim = dice.uniform(0.68, 0.8)
    s.engrave(disc(s.u, s.v, radius * rim), 0.03 * s.size, dice.uniform(0.3, 0.7))
    if dice.chance(0.4):
        s.engrave(disc(s.u, s.v, radius * (rim + 0.12)), 0.012 * s.size, 0.4)
    count = dice.choice((2, 4, 4))
    spread, hole = dice.uniform(0.24, 0.32) * radius, dice.uniform(0.085, 0.11) * radius
    spots = [
        (math.cos(2 * math.pi * i / count) * spread, math.sin(2 * math.pi * i / count) * spread) for i in range(count)
    ]
    for x, y in spots:
        away = disc(s.u, s.v, hole, x, y)
        s.engrave(away - 0.012, 0.02, 0.35)
        s.opening(away)
    if dice.chance(0.35):
        thread = any_colour(dice, (0.0, 0.8), (0.2, 0.95))
        for (ax, ay), (bx, by) in ((spots[0], spots[count // 2]), *(((spots[1], spots[3]),) if count == 4 else ())):
            turned = math.atan2(by - ay, bx - ax)
            cu, cv = s.u - np.float32((ax + bx) / 2), s.v - np.float32((ay + by) / 2)
            du = cu * math.cos(turned) + cv * math.sin(turned)
            dv = cv * math.cos(turned) - cu * math.sin(turned)
            strand = box(du, dv, spread, hole * 0.75, hole * 0.5)
            s.layer(strand, thread, bevel=hole * 0.8, depth=0.5, texture=1 + 0.12 * np.sin(dv * np.float32(5 / hole)))
    return s.scene()


def coin(c: Canvas) -> Scene:
    """Struck coin: raised rim, beads or legend, a figure in relief, tarnish."""
    s = Stage(c, size=(0.99, 1.46))
    dice = s.dice
    radius = 0.66 * s.size
    outline = disc(s.u, s.v, radius)
    base = metal(s)
    s.shadow(outline, 0.05)
    tarnish = 1 + 0.07 * c.noise(3, 3) + 0.03 * c.noise(40, 2)
    s.layer(outline, base, bevel=0.04 * s.size, depth=0.5, gloss=0.2, texture=tarnish)
    s.sheen(dice.uniform(0.05, 0.2))
    r, theta = s.polar()
    relief = smoothstep(0.0, 0.03, r - radius * 0.9) * (1 - smoothstep(-0.02, 0.0, outline))
    if dice.chance(0.5):
        beads = dice.integer(30, 60)
        phase = (theta * np.float32(beads / (2 * math.pi))) % 1 - 0.5
        pitch = 2 * math.pi * radius * 0.82 / beads
        relief = np.maximum(
            relief, 1 - smoothstep(0.15, 0.4, np.sqrt((phase * pitch) ** 2 + (r - radius * 0.82) ** 2) / pitch)
        )
    relief = np.maximum(relief, _figure(c, s, radius * 0.62))
    s.emboss(relief, dice.uniform(0.5, 0.9))
    s.image = mix(s.image, tone(s.image, 0.85 + 0.25 * relief), s.coverage)
    return s.scene()


def _figure(c: Canvas, s: Stage, radius: float) -> np.ndarray:
    """A head, a star, a number or a wreath in relief; [H, W] in [0, 1]."""
    dice = s.dice
    kind = dice.choice(("head", "star", "number", "shield"))
    r, theta = s.polar()
    if kind == "head":
        head = np.minimum(
            disc(s.u / 0.8, s.v, radius * 0.5, 0, -radius * 0.25),
            box(s.u, s.v - np.float32(radius * 0.45), radius * 0.28, radius * 0.35, 0.1),
        )
        nose = disc(s.u, s.v, radius * 0.16, radius * 0.42, -radius * 0.15)
        shape: np.ndarray = smoothstep(0.0, 0.07, -np.minimum(head, nose)) * (1 + 0.25 * np.tanh(c.noise(12, 2)))
        return shape
    if kind == "star":
        points = dice.integer(5, 9)
        edge = radius * (0.62 + 0.38 * np.cos(theta * points))
        return smoothstep(0.0, 0.1, edge - r)
    if kind == "number":
        return letters(c, s.u, s.v, dice.integer(1, 3), radius * 1.1)
    shield = np.maximum(
        box(s.u, s.v, radius * 0.6, radius * 0.75, 0.05), disc(s.u, s.v, radius * 0.95, 0, -radius * 0.2)
    )
    bars = 0.5 + 0.5 * np.cos(s.u * np.float32(18 / radius))
    return smoothstep(0.0, 0.04, -shield) * (0.5 + 0.5 * smoothstep(0.3, 0.7, bars))


def bottle_cap(c: Canvas) -> Scene:
    """Crown cap from above: fluted skirt, printed top."""
    s = Stage(c, size=(0.94, 1.40))
    dice = s.dice
    radius = 0.6 * s.size
    r, theta = s.polar()
    flutes = np.cos(theta * 21)
    outline = r - np.float32(radius) * (1 + 0.055 * flutes)
    base = any_colour(dice, (0.0, 0.9), (0.25, 0.95))
    s.shadow(outline, 0.1)
    skirt = smoothstep(radius * 0.78, radius * 0.95, r)
    s.layer(
        outline,
        base,
        bevel=0.16 * s.size,
        depth=0.5,
        gloss=0.25,
        texture=1 + 0.16 * flutes * skirt + 0.01 * c.noise(40),
    )
    second = any_colour(dice, (0.0, 0.9), (0.2, 0.95))
    soft = c.inside(np.abs(r - radius * dice.uniform(0.55, 0.7)) - dice.uniform(0.02, 0.06))
    kind = dice.choice(("ring", "star", "letters", "stripe", "plain"))
    if kind == "ring":
        s.stamp(second, soft)
    elif kind == "star":
        s.stamp(second, c.inside(r - radius * (0.38 + 0.2 * np.cos(theta * dice.integer(3, 7)))))
    elif kind == "letters":
        s.stamp(second, letters(c, s.u, s.v, dice.integer(2, 5), radius * 0.4))
        s.stamp(second, soft)
    elif kind == "stripe":
        s.stamp(second, c.inside(np.abs(s.v) - radius * 0.22) * c.inside(r - radius * 0.75))
    lx, ly = s.light
    glint = disc(s.u, s.v * 1.6, radius * 0.2, lx * radius * 0.4, ly * radius * 0.4 * 1.6)
    s.stamp(np.ones(3, np.float32), (1 - smoothstep(-0.1, 0.06, glint)) * np.float32(0.25))
    return s.scene()
