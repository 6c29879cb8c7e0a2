"""Metal, plastic, panels, meshes and boards: what a machine made."""

from __future__ import annotations

import math

import numpy as np

from ..canvas import Canvas, any_colour, colour, mix, rgb, smoothstep, tone


def brushed_metal(c: Canvas) -> np.ndarray:
    """Sheet with fine lines in one direction and broad bands of reflected light."""
    draws = c.draws
    angle = draws.angle()
    base = colour(draws, draws.choice(((200, 230), (200, 230), (25, 45))), (0.0, 0.2), (0.5, 0.8))
    lines = 0.7 * c.noise(70, 1, stretch=60, angle=angle) + 0.5 * c.noise(22, 2, stretch=50, angle=angle)
    _, v = c.turned(angle)
    band = np.cos(v * draws.uniform(0.8, 2.5) + draws.angle()) * draws.uniform(0.03, 0.16)
    return tone(base, 1 + band + draws.uniform(0.04, 0.1) * lines + 0.02 * c.noise(3, 2))


def plastic(c: Canvas) -> np.ndarray:
    """Moulded plastic: orange-peel relief, soft gloss, sometimes ribs or moulded lines."""
    draws = c.draws
    base = any_colour(draws, (0.0, 0.8), (0.15, 0.95))
    height = c.noise(draws.uniform(14, 34), 2) * np.float32(draws.uniform(0.001, 0.004)) + 0.01 * c.noise(2, 1)
    along, across = c.turned(draws.angle())
    if draws.chance(0.4):
        pitch = draws.uniform(0.25, 0.7)
        away = np.abs((across / np.float32(pitch)) % 1 - 0.5) * pitch
        height = height + draws.sign() * 0.012 * (1 - smoothstep(0.01, 0.035, away))
    slope = c.slope(height)
    gloss = draws.uniform(0.02, 0.2) * smoothstep(0.02, 0.45, slope + 0.12 * along)
    return tone(base, 1 + draws.uniform(0.4, 1.0) * np.clip(slope, -0.8, 0.8)) + gloss[..., None]


def painted_panel(c: Canvas) -> np.ndarray:
    """Lacquered sheet metal with seams and rivets."""
    draws = c.draws
    base = any_colour(draws, (0.0, 0.7), (0.25, 0.95))
    shade = 1 + 0.012 * c.noise(60, 1) + draws.uniform(0.01, 0.05) * c.noise(2, 2)
    turn = draws.uniform(-0.12, 0.12)
    u, v = c.turned(turn)
    height: np.ndarray = np.zeros(c.shape, np.float32)
    seams = [(u, draws.uniform(-0.8, 0.8)), (v, draws.uniform(-0.8, 0.8))][: draws.integer(1, 3)]
    width = draws.uniform(0.012, 0.03)
    for axis, place in seams:
        away = np.abs(axis - np.float32(place))
        shade = shade * (1 - 0.6 * c.inside(away - width, 2))
        height = height + 0.01 * smoothstep(width, width * 3, away)
    if draws.chance(0.6):
        pitch, side = draws.uniform(0.22, 0.45), draws.uniform(0.09, 0.16) * draws.sign()
        along, across = (v, u - seams[0][1] - side)
        du = ((along / np.float32(pitch)) % 1 - 0.5) * pitch
        size = draws.uniform(0.03, 0.05)
        dome = np.sqrt(np.clip(1 - (du * du + across * across) / np.float32(size**2), 0, 1))
        height = height + dome * np.float32(size * 0.5)
    slope = np.clip(c.slope(height), -1.2, 1.2)
    return tone(base, shade * (1 + 0.4 * slope)) + (0.35 * smoothstep(0.5, 1.1, slope))[..., None]


def corrugated(c: Canvas) -> np.ndarray:
    """Corrugated sheet: rounded waves of metal or board."""
    draws = c.draws
    turn = draws.choice((0.0, math.pi / 2)) + draws.uniform(-0.4, 0.4)
    _, v = c.turned(turn)
    pitch = draws.uniform(0.14, 0.34)
    wave = np.cos(v * np.float32(2 * math.pi / pitch) + 0.15 * c.noise(1.5))
    facing = math.cos(turn + math.pi / 2) * c.light[0] + math.sin(turn + math.pi / 2) * c.light[1]
    lean = np.sin(v * np.float32(2 * math.pi / pitch)) * (0.25 + 0.2 * abs(facing)) * (1 if facing >= 0 else -1)
    base = any_colour(draws, (0.0, 0.5), (0.4, 0.85))
    grain = c.noise(60, 1, stretch=draws.choice((1.0, 12.0)), angle=turn)
    shade = 0.95 + 0.14 * wave + lean + draws.uniform(0.02, 0.06) * grain + 0.03 * c.noise(3, 3)
    gloss = draws.uniform(0.0, 0.3) * smoothstep(
        0.75, 1.0, np.cos(v * np.float32(2 * math.pi / pitch) - math.copysign(0.9, facing))
    )
    return tone(base, shade) + gloss[..., None]


def rubber_mat(c: Canvas) -> np.ndarray:
    """Dark rubber with raised round or bar-shaped studs."""
    draws = c.draws
    u, v = c.turned(draws.choice((0.0, math.pi / 4)) + draws.uniform(-0.1, 0.1))
    pitch = draws.uniform(0.2, 0.36)
    column, row = np.floor(u / pitch), np.floor(v / pitch)
    du, dv = u - (column + 0.5) * pitch, v - (row + 0.5) * pitch
    if draws.chance(0.5):
        away = np.sqrt(du * du + dv * dv) - np.float32(pitch * draws.uniform(0.25, 0.36))
    else:
        flip = (column + row) % 2 > 0
        du, dv = np.where(flip, dv, du), np.where(flip, du, dv)
        away = np.sqrt(np.maximum(np.abs(du) - pitch * 0.3, 0) ** 2 + dv * dv) - np.float32(pitch * 0.13)
    height = (1 - smoothstep(-0.03, 0.01, away)) * np.float32(0.03)
    slope = np.clip(c.slope(height), -1.2, 1.2)
    base = any_colour(draws, (0.0, 0.4), (0.15, 0.5))
    shade = 1 + 0.45 * slope - 0.15 * np.exp(-((away / 0.03) ** 2)) + 0.05 * c.noise(60, 1) + 0.04 * c.noise(3, 2)
    return tone(base, shade) + (0.12 * smoothstep(0.4, 1.1, slope))[..., None]


def mesh(c: Canvas) -> np.ndarray:
    """Woven or welded wire in front of a dark or pale ground."""
    draws = c.draws
    angle = draws.choice((0.0, math.pi / 4)) + draws.uniform(-0.12, 0.12)
    lean = draws.uniform(math.pi / 3, math.pi / 2)
    pitch = draws.uniform(0.18, 0.34)
    width = pitch * draws.uniform(0.1, 0.2)
    ground = colour(draws, (0, 360), (0.0, 0.3), draws.choice(((0.03, 0.25), (0.03, 0.25), (0.6, 0.9))))
    image = tone(np.broadcast_to(ground, (*c.shape, 3)), 1 + 0.08 * c.noise(4, 3))
    wire = colour(draws, draws.choice(((200, 230), (20, 40), (100, 160))), (0.0, 0.4), (0.45, 0.9))
    axes = [c.turned(turn)[1] + np.float32(0.006) * c.noise(3) for turn in (angle, angle + lean)]
    layers = []
    for axis in axes:
        cell = np.floor(axis / pitch)
        across = axis - (cell + 0.5) * pitch
        layers.append((cell, across, c.inside(np.abs(across) - width)))
    (row, a, first), (column, b, second) = layers
    over = (row + column) % 2 > 0
    for top in (False, True):  # each wire once below and once above the other
        for across, cover, upper in ((a, first, over), (b, second, ~over)):
            round_ = np.sqrt(np.clip(1 - (across / width) ** 2, 0, 1))
            shade = 0.35 + 0.65 * round_ + 0.25 * across / width * (c.light[0] + c.light[1])
            shade = shade + 0.25 * np.exp(-(((across / width + 0.3) / 0.25) ** 2)) + 0.03 * c.noise(50)
            image = mix(image, tone(wire, shade), cover * (upper if top else 1))
    return image


def perforated(c: Canvas) -> np.ndarray:
    """Sheet with a raster of round, square or slotted holes."""
    draws = c.draws
    turn = draws.choice((0.0, math.pi / 4)) + draws.uniform(-0.15, 0.15)
    u, v = c.turned(turn, draws.uniform(-0.1, 0.1), draws.uniform(-0.1, 0.1))
    pitch = draws.uniform(0.2, 0.38)
    row = np.floor(v / pitch)
    u = u + (row % 2) * np.float32(pitch * draws.choice((0.0, 0.5)))
    column = np.floor(u / pitch)
    du, dv = u - (column + 0.5) * pitch, v - (row + 0.5) * pitch
    size = pitch * draws.uniform(0.2, 0.34)
    kind = draws.choice(("round", "round", "square", "slot"))
    if kind == "round":
        away = np.sqrt(du * du + dv * dv) - np.float32(size)
    elif kind == "square":
        away = np.maximum(np.abs(du), np.abs(dv)) - np.float32(size)
    else:
        away = np.sqrt(np.maximum(np.abs(du) - size * 0.6, 0) ** 2 + dv * dv) - np.float32(size * 0.6)
    while draws.chance(0.3):  # a plain margin, or a strip without holes
        axis, place = draws.choice((u, v)), draws.uniform(-0.8, 0.8)
        away = np.where(np.abs(axis - np.float32(place)) < pitch * draws.uniform(0.6, 1.0), np.float32(0.05), away)
    metal = draws.chance(0.6)
    base = colour(draws, (200, 230), (0.0, 0.15), (0.5, 0.85)) if metal else any_colour(draws, (0.0, 0.7), (0.3, 0.95))
    grain = c.noise(70, 1, stretch=draws.choice((1.0, 20.0)), angle=turn)
    image = tone(base, 1 + draws.uniform(0.01, 0.05) * grain + 0.04 * c.noise(2, 2))
    slope = np.clip(c.slope(smoothstep(0.0, 0.025, away) * np.float32(0.012)), -1, 1)
    image = tone(image, 1 + 0.5 * slope)
    below = (
        base * np.float32(draws.uniform(0.05, 0.3))
        if draws.chance(0.75)
        else any_colour(draws, (0.0, 0.5), (0.6, 0.95))
    )
    depth = np.clip(0.8 - (du * c.light[0] + dv * c.light[1]) / np.float32(size) * 0.4, 0.2, 1.3)
    return mix(image, tone(below, depth), c.inside(away, 1.4))


def circuit_board(c: Canvas) -> np.ndarray:
    """Solder mask over copper traces, with pads, vias and small parts on a raster."""
    draws = c.draws
    turn = draws.uniform(-0.1, 0.1) + draws.choice((0.0, math.pi / 2))
    mask = colour(draws, draws.choice(((120, 150), (120, 150), (205, 225), (350, 370))), (0.5, 0.9), (0.2, 0.5))
    image = tone(np.broadcast_to(mask, (*c.shape, 3)), 1 + 0.03 * c.noise(60, 1) + 0.04 * c.noise(2, 2))
    cell = draws.uniform(0.1, 0.15)
    cos, sin = math.cos(turn), math.sin(turn)
    frame = np.array([[cos, sin], [-sin, cos]])
    traces, pads, holes, bodies = c.ink(), c.ink(), c.ink(), c.ink()
    used: set[tuple[int, int]] = set()
    steps = np.array([[1, 0], [1, 1], [0, 1], [-1, 1], [-1, 0], [-1, -1], [0, -1], [1, -1]])
    limit = int(1.5 / cell)
    for _ in range(draws.integer(16, 30)):
        point = np.array([draws.integer(-limit, limit), draws.integer(-limit, limit)])
        heading = 2 * draws.integer(0, 4)
        path = [point]
        used.add((int(point[0]), int(point[1])))
        for _ in range(draws.integer(2, 6)):
            heading = (heading + draws.choice((-1, 0, 0, 1))) % 8
            for _ in range(draws.integer(1, 5)):
                step = path[-1] + steps[heading]
                if (int(step[0]), int(step[1])) in used:
                    break
                used.add((int(step[0]), int(step[1])))
                path.append(step)
        points = np.array(path) * cell @ frame
        traces.line(points, cell * 0.3)
        for x, y in (points[0], points[-1]):
            traces.disc(x, y, cell * 0.4)
            pads.disc(x, y, cell * 0.36)
            holes.disc(x, y, cell * 0.14)
    box = np.array([[-1, -0.5], [1, -0.5], [1, 0.5], [-1, 0.5]])
    for _ in range(draws.integer(3, 9)):
        point = np.array([draws.integer(-limit, limit), draws.integer(-limit, limit)]) * cell
        form = box if draws.chance(0.5) else box[:, ::-1]
        pads.polygon((point + form * cell * 1.25) @ frame)
        bodies.polygon((point + form * cell * np.where(np.abs(form[0]) == 1, 0.75, 1.1)) @ frame)
    image = mix(image, mask * np.float32(1.45) + np.float32(0.04), traces.coverage() * np.float32(0.8))
    plate = colour(draws, (38, 48), (0.1, 0.6), (0.75, 0.95))
    image = mix(image, tone(plate, 1 + 0.05 * c.noise(50)), pads.coverage())
    body = draws.choice((rgb(0.12, 0.12, 0.13), rgb(0.6, 0.5, 0.38), rgb(0.35, 0.33, 0.3)))
    image = mix(image, body * np.float32(0.25), holes.coverage())
    cover = bodies.coverage()
    image = mix(image, body, cover)
    return tone(image, 1 + 0.3 * np.clip(c.slope(cover * np.float32(0.03)), -1, 1))


def solar_cell(c: Canvas) -> np.ndarray:
    """Silicon with crystal grains, fine fingers, busbars and the gap to the next cell."""
    draws = c.draws
    turn = draws.choice((0.0, math.pi / 2)) + draws.uniform(-0.05, 0.05)
    u, v = c.turned(turn)
    base = colour(draws, (205, 240), (0.3, 0.75), (0.25, 0.6))
    scale = draws.uniform(3, 7)
    cells = c.cells(u * scale + 0.25 * c.noise(8), v * scale + 0.25 * c.noise(8), jitter=1.0)
    contrast = draws.choice((0.0, draws.uniform(0.1, 0.35)))
    image = tone(base, 1 + contrast * (cells.number - 0.5) + 0.04 * c.noise(2, 2) + 0.02 * c.noise(60))
    silver = colour(draws, (200, 230), (0.0, 0.1), (0.7, 0.9))
    finger = draws.uniform(0.06, 0.1)
    image = mix(image, silver, c.inside(np.abs((v / finger) % 1 - 0.5) * finger - 0.008) * np.float32(0.55))
    bar = draws.uniform(0.55, 0.85)
    image = mix(
        image, silver, c.inside(np.abs((u / bar + draws.uniform(0, 1)) % 1 - 0.5) * bar - draws.uniform(0.02, 0.035))
    )
    if draws.chance(0.5):
        gap = np.abs((u if draws.chance(0.5) else v) - np.float32(draws.uniform(-0.8, 0.8))) - draws.uniform(
            0.015, 0.035
        )
        image = mix(image, rgb(0.85, 0.87, 0.9), c.inside(gap, 1.5))
    return image
