"""Screw, nut, washer, gear, bearing, key, bottle, cable: what a workshop holds."""

from __future__ import annotations

import math

import numpy as np

from ..canvas import Canvas, Scene, any_colour, colour, hsv, smoothstep
from ..stage import ObjectCanvas, box, disc, metal, polygon


def screw(c: Canvas) -> Scene:
    """Wood screw from the side: countersunk or round head, shank, slanted thread, tip."""
    s = ObjectCanvas(c, size=(0.99, 1.46), shift=0.06)
    draws = s.draws
    length, radius = 0.72 * s.size, draws.uniform(0.11, 0.16) * s.size
    u, v = s.u, s.v
    pitch = draws.uniform(0.085, 0.13) * s.size
    smooth = draws.uniform(-0.6, 0.0) * length  # where the thread starts
    tip = np.clip((length - u) / np.float32(0.3 * s.size), 0, 1)
    phase = (u / np.float32(pitch) + v / np.float32(radius) * 0.35) % 1
    crest = 1 - np.abs(phase * 2 - 1)
    threaded = c.inside(smooth - u, 3)
    body = radius * tip**0.6 * (1 - 0.26 * threaded * (1 - crest))
    shaft = np.maximum(np.abs(v) - body, np.maximum(-length - u, u - length))
    wide = radius * draws.uniform(1.9, 2.3)
    top, under = -length, -length + 0.2 * s.size
    cone = wide + (radius - wide) * np.clip((u - top) / np.float32(under - top), 0, 1)
    if draws.chance(0.5):
        cone = wide * np.sqrt(np.clip(1 - ((u - under) / np.float32(under - top)) ** 2, 0, 1))
    head = np.maximum(np.abs(v) - cone, np.maximum(np.float32(top) - u, u - np.float32(under)))
    outline = np.minimum(shaft, head)
    base = metal(s)
    s.shadow(outline, 0.08)
    across = np.clip(v / np.float32(radius * 1.1), -1.2, 1.2)
    facing = 0.8 * math.copysign(1, s.light[1])
    cylinder = 0.62 + 0.5 * np.exp(-(((across - facing * 0.45) / 0.42) ** 2)) - 0.22 * across**2
    texture = cylinder * (1 - threaded * 0.5 * (1 - smoothstep(0.1, 0.6, crest))) * (1 + 0.05 * c.noise(30, 2))
    texture = texture + 0.35 * threaded * np.exp(-(((phase - 0.62) / 0.1) ** 2)) * np.exp(
        -(((across - facing * 0.4) / 0.5) ** 2)
    )
    s.layer(shaft, base, bevel=0.02, depth=0.2, texture=texture)
    roll = np.clip(v / np.float32(wide), -1, 1)
    dome = 0.7 + 0.5 * np.exp(-(((roll - facing * 0.4) / 0.4) ** 2)) - 0.2 * roll**2
    s.layer(head, base, bevel=0.05, depth=0.35, gloss=0.2, texture=dome * (1 + 0.03 * c.noise(30, 2)))
    return s.scene()


def nut(c: Canvas) -> Scene:
    """Hexagon nut from above: chamfer circle, threaded bore."""
    s = ObjectCanvas(c, size=(0.94, 1.40))
    draws = s.draws
    inner = 0.56 * s.size
    hexagon = polygon(s.u, s.v, 6, inner, corner=0.03)
    base = metal(s)
    s.shadow(hexagon, 0.12)
    grain = 1 + 0.04 * c.noise(50, 1, stretch=draws.choice((1, 14)), angle=s.angle) + 0.05 * c.noise(3, 3)
    s.layer(hexagon, base, bevel=0.06 * s.size, depth=0.6, gloss=0.15, texture=grain * 0.85)
    s.layer(disc(s.u, s.v, inner * 0.97), base, bevel=0.07 * s.size, depth=0.45, gloss=0.25, texture=grain)
    s.sheen(draws.uniform(0.05, 0.2))
    bore = draws.uniform(0.48, 0.58) * inner
    _bore(c, s, bore, base)
    return s.scene()


def _bore(c: Canvas, s: ObjectCanvas, bore: float, base: np.ndarray) -> None:
    """Threaded hole: chamfer, a few turns of thread, the ground behind."""
    r, theta = s.polar()
    s.engrave(disc(s.u, s.v, bore * 1.08), 0.03, 0.5)
    wall = disc(s.u, s.v, bore)
    turns = 0.55 + 0.3 * np.sin((r / np.float32(bore) * 34) + theta)
    facing = -(s.u * s.light[0] + s.v * s.light[1]) / np.maximum(r, 0.02)
    s.layer(wall, base, bevel=0.01, depth=0.1, texture=turns * (0.75 + 0.4 * facing))
    s.opening(disc(s.u, s.v, bore * 0.8))


def washer(c: Canvas) -> Scene:
    """Flat ring, plain, toothed or split."""
    s = ObjectCanvas(c, size=(0.94, 1.46))
    draws = s.draws
    radius = 0.6 * s.size
    _, theta = s.polar()
    kind = draws.choice(("plain", "plain", "toothed"))
    outline = disc(s.u, s.v, radius)
    if kind == "toothed":
        outline = outline + 0.035 * s.size * smoothstep(-0.2, 0.2, np.cos(theta * draws.integer(10, 18)))
    base = metal(s)
    s.shadow(outline, 0.05)
    angle = draws.angle()
    grain = 1 + 0.05 * c.noise(60, 1, stretch=draws.choice((1, 20)), angle=angle) + 0.05 * c.noise(3, 3)
    s.layer(outline, base, bevel=0.03 * s.size, depth=0.55, gloss=0.25, texture=grain)
    s.sheen(draws.uniform(0.05, 0.25))
    if draws.chance(0.3):
        s.engrave(disc(s.u, s.v, radius * 0.8), 0.02, 0.3)
    hole = disc(s.u, s.v, radius * draws.uniform(0.4, 0.6))
    s.engrave(hole - 0.01, 0.018, 0.4)
    s.opening(hole)
    return s.scene()


def gear(c: Canvas) -> Scene:
    """Spur gear from above: teeth, web with round openings or spokes, hub, bore with keyway."""
    s = ObjectCanvas(c, size=(0.99, 1.42))
    draws = s.draws
    radius, count = 0.64 * s.size, draws.integer(12, 29)
    r, theta = s.polar()
    tooth = np.cos(theta * count)
    depth = min(0.11, 2.2 / count) * draws.uniform(0.8, 1.1)
    outline = r - np.float32(radius) * (1 + depth * (smoothstep(-0.45, 0.45, tooth) - 0.5))
    plastic = draws.chance(0.3)
    base = any_colour(draws, (0.0, 0.8), (0.3, 0.95)) if plastic else metal(s)
    s.shadow(outline, 0.1)
    grain = 1 + 0.04 * np.sin(r * np.float32(draws.uniform(60, 160))) + 0.04 * c.noise(4, 3) + 0.02 * c.noise(50)
    if plastic:
        grain = 1 + 0.015 * c.noise(40, 2)
    s.layer(outline, base, bevel=0.03 * s.size, depth=0.5, gloss=0.2, texture=grain)
    if not plastic:
        s.sheen(draws.uniform(0.05, 0.25))
    rim, hub = radius * draws.uniform(0.72, 0.8), radius * draws.uniform(0.3, 0.4)
    bore = hub * draws.uniform(0.5, 0.65)
    web = np.maximum(disc(s.u, s.v, rim), hub - r)
    s.layer(web, base * np.float32(draws.uniform(0.7, 0.95)), bevel=0.04, depth=-0.5, texture=grain)
    kind, number = draws.choice(("holes", "spokes", "solid", "holes")), draws.integer(3, 7)
    sector = 2 * math.pi / number
    folded = (theta / np.float32(sector) - np.floor(theta / np.float32(sector) + 0.5)) * np.float32(sector)
    middle, thick = (rim + hub) / 2, (rim - hub) / 2
    if kind == "holes":
        size = thick * draws.uniform(0.5, 0.72)
        hole = np.sqrt(np.maximum(r * r + middle**2 - 2 * r * middle * np.cos(folded), 0)) - np.float32(size)
    else:
        hole = np.maximum(np.abs(r - middle) - thick * 0.72, np.abs(folded) * r - (sector / 2 * r - 0.07 * s.size))
    if kind != "solid":
        s.engrave(hole - 0.01, 0.02, 0.35)
        s.opening(hole)
    s.engrave(disc(s.u, s.v, bore) - 0.012, 0.022, 0.4)
    shaft = disc(s.u, s.v, bore)
    if draws.chance(0.6):
        shaft = np.minimum(shaft, box(s.u - np.float32(bore), s.v, bore * 0.35, bore * 0.25))
    s.opening(shaft)
    return s.scene()


def bearing(c: Canvas) -> Scene:
    """Ball bearing: two rings, balls in a cage, or a shield with a mark."""
    s = ObjectCanvas(c, size=(0.99, 1.40))
    draws = s.draws
    radius = 0.64 * s.size
    outline = disc(s.u, s.v, radius)
    base = metal(s, "steel")
    s.shadow(outline, 0.1)
    r, theta = s.polar()
    turned = 1 + 0.03 * np.sin(r * 120) + 0.03 * c.noise(4, 2)
    s.layer(outline, base, bevel=0.03, depth=0.5, gloss=0.3, texture=turned)
    s.sheen(draws.uniform(0.1, 0.3))
    inner, outer = radius * 0.52, radius * 0.82
    race = np.maximum(disc(s.u, s.v, outer), inner - r)
    middle, thick = (inner + outer) / 2, (outer - inner) / 2
    if draws.chance(0.6):
        s.layer(race, base * np.float32(0.3), bevel=0.03, depth=-0.5)
        count = int(2 * math.pi * middle / (thick * draws.uniform(2.1, 2.8)))
        sector = np.float32(2 * math.pi / count)
        folded = (theta / sector - np.floor(theta / sector + 0.5)) * sector
        a, b = r * np.cos(folded) - np.float32(middle), r * np.sin(folded)
        ball = np.sqrt(a * a + b * b) - np.float32(thick * 0.85)
        s.layer(ball, base * np.float32(1.1), bevel=thick * 0.85, depth=0.5, gloss=0.5)
        cage = np.abs(r - middle) - thick * 0.25
        brass = colour(draws, (35, 50), (0.2, 0.6), (0.5, 0.75))
        s.layer(np.maximum(cage, -ball), brass, bevel=0.03, depth=0.4)
    else:
        cover = any_colour(draws, (0.0, 0.8), (0.1, 0.7)) if draws.chance(0.6) else base * np.float32(0.85)
        s.layer(race, cover, bevel=0.03, depth=0.35, texture=1 + 0.03 * np.sin(r * 90))
        s.engrave(r - np.float32(middle), 0.02, 0.25)
    s.opening(disc(s.u, s.v, radius * draws.uniform(0.33, 0.42)))
    return s.scene()


def key(c: Canvas) -> Scene:
    """Flat key: bow with a hole, grooved blade with cuts."""
    s = ObjectCanvas(c, size=(1.05, 1.46), shift=0.05)
    draws = s.draws
    u, v = s.u / np.float32(s.size), s.v / np.float32(s.size)
    shape = draws.choice(("round", "hexagon", "square"))
    bow = {
        "round": disc(u, v, 0.3, -0.45),
        "hexagon": polygon(u + np.float32(0.45), v, 6, 0.27, 0.03),
        "square": box(u + np.float32(0.45), v, 0.26, 0.28, 0.09),
    }[shape]
    blade = box(u - np.float32(0.25), v, 0.5, draws.uniform(0.085, 0.12), 0.02)
    table = draws.table(8)
    place = np.clip((u + np.float32(0.05)) * 10, 0, 7.99)
    left = place.astype(np.int32)
    part = np.abs((place - left) * 2 - 1)
    cut = 0.03 + 0.025 * np.clip(table.take(left) + 0.7, 0, 2) * (1 - smoothstep(0.5, 1.0, part))
    blade = np.maximum(blade, v - (0.105 - cut) * c.inside(np.float32(0.0) - u, 2) - 0.2 * c.inside(u, 2))
    outline = np.minimum(bow, blade) * np.float32(s.size)
    base = metal(s)
    s.shadow(outline, 0.05)
    grain = 1 + 0.05 * c.noise(60, 1, stretch=16, angle=s.angle) + 0.04 * c.noise(3, 3)
    s.layer(outline, base, bevel=0.035, depth=0.55, gloss=0.25, texture=grain)
    s.engrave(np.maximum(np.abs(v + np.float32(0.03)), -0.1 - u) * np.float32(s.size), 0.018, 0.6)
    if draws.chance(0.5):
        s.engrave(np.abs(bow + 0.07) * np.float32(s.size), 0.015, 0.4)
    s.opening(disc(u, v, draws.uniform(0.06, 0.09), draws.uniform(-0.62, -0.55)) * np.float32(s.size))
    return s.scene()


def bottle(c: Canvas) -> Scene:
    """Glass bottle from above: concentric rings of mouth, neck and shoulder, reflections."""
    s = ObjectCanvas(c, size=(0.99, 1.40), shift=0.06)
    draws = s.draws
    radius = 0.72 * s.size
    r, theta = s.polar()
    glass = colour(draws, draws.choice(((20, 40), (90, 150), (180, 220))), (0.3, 0.8), (0.2, 0.6))
    outline = disc(s.u, s.v, radius)
    s.shadow(outline, 0.06)
    s.layer(outline, glass, bevel=0.25 * s.size, depth=0.45, gloss=0.3, texture=1 + 0.03 * c.noise(3, 2))
    for _ in range(draws.integer(2, 5)):
        ring = draws.uniform(0.5, 0.95) * radius
        gain = draws.uniform(-0.5, 0.7)
        s.stamp(
            np.clip(glass * np.float32(1 + gain) + np.float32(0.1 * (gain > 0)), 0, 1),
            np.exp(-(((r - ring) / np.float32(draws.uniform(0.015, 0.05))) ** 2)) * np.float32(0.6),
        )
    mouth = draws.uniform(0.42, 0.55) * radius
    s.layer(disc(s.u, s.v, mouth), glass * np.float32(1.3) + np.float32(0.05), bevel=0.07, depth=0.5, gloss=0.6)
    s.layer(disc(s.u, s.v, mouth * 0.74), glass * np.float32(0.25), bevel=0.06, depth=-0.3)
    bottom = disc(s.u, s.v, mouth * 0.6)
    s.stamp(glass * np.float32(draws.uniform(0.3, 1.2)), (1 - smoothstep(-0.12, 0.0, bottom)) * np.float32(0.7))
    turn = draws.angle()
    for _ in range(draws.integer(1, 4)):
        off = np.cos(theta - np.float32(turn))
        arc = smoothstep(draws.uniform(0.8, 0.97), 1.0, off) * np.exp(
            -(((r - draws.uniform(0.6, 0.9) * radius) / 0.03) ** 2)
        )
        s.stamp(np.ones(3, np.float32), arc * np.float32(draws.uniform(0.4, 0.9)))
        turn += draws.uniform(0.6, 2.5)
    return s.scene()


def cable(c: Canvas) -> Scene:
    """Cut cable: sheath, filler, three to five insulated cores with strands of copper."""
    s = ObjectCanvas(c, size=(0.99, 1.40))
    draws = s.draws
    radius = 0.68 * s.size
    outline = disc(s.u, s.v, radius) + 0.008 * c.noise(3)
    sheath = any_colour(draws, (0.0, 0.5), draws.choice(((0.08, 0.3), (0.6, 0.95))))
    s.shadow(outline, 0.1)
    s.layer(outline, sheath, bevel=0.03, depth=0.4, texture=1 + 0.05 * c.noise(40, 2))
    inner = radius * draws.uniform(0.8, 0.88)
    filler = any_colour(draws, (0.0, 0.25), (0.5, 0.85))
    s.layer(disc(s.u, s.v, inner), filler, bevel=0.03, depth=-0.3, texture=1 + 0.12 * c.noise(20, 3))
    count = draws.integer(3, 6)
    part = math.sin(math.pi / count)
    core = inner * part / (1 + part) * 0.97
    hue = draws.uniform(0, 360)
    for i in range(count):
        turn = 2 * math.pi * i / count
        x, y = math.cos(turn) * (inner - core), math.sin(turn) * (inner - core)
        insulation = hsv(
            hue + 360 * i / count + draws.uniform(-15, 15), draws.uniform(0.4, 0.9), draws.uniform(0.35, 0.9)
        )
        s.layer(disc(s.u, s.v, core, x, y), insulation, bevel=0.03, depth=0.4, texture=1 + 0.03 * c.noise(30))
        copper = disc(s.u, s.v, core * 0.62, x, y)
        strand = core * 0.19
        a, b = (s.u - np.float32(x)) / np.float32(strand), (s.v - np.float32(y)) / np.float32(strand * 0.87)
        row = np.floor(b + 0.5)
        a = a + 0.5 * (row % 2)
        da, db = a - np.floor(a + 0.5), (b - row) * 0.87
        wires = np.sqrt(da * da + db * db)
        shade = 1.15 - 1.6 * wires**2 * 1.4 + 0.3 * (da * s.light[0] + db * s.light[1])
        s.layer(copper, metal(s, "copper"), bevel=0.02, depth=0.1, texture=np.clip(shade, 0.25, 1.3))
    return s.scene()
