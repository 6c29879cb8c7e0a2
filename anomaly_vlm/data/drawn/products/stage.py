"""Objects in front of a background: placement, signed distances, layers with bevel, gloss and shadow."""

from __future__ import annotations

import math

import numpy as np

from .canvas import Canvas, Scene, any_colour, colour, mix, moved, smoothstep, tone
from .markings import marked
from .textures import made, mineral, organic, woven

Colour = np.ndarray  # [3], or [H, W, 3] for a pattern


class Stage:
    """The object's own axes on a canvas with a background; layers are painted from bottom to top.

    Attributes:
        u: float32 [H, W], first coordinate turned and shifted with the object, canvas units.
        v: float32 [H, W], second such coordinate.
        size: Drawn scale of the object; shapes multiply their lengths by it.
        image: As in `Scene`, so far.
        coverage: As in `Scene`, so far.
        background: As in `Scene`, so far.
    """

    def __init__(
        self, c: Canvas, *, size: tuple[float, float] = (0.95, 1.4), turn: float = math.pi, shift: float = 0.1
    ) -> None:
        self.c, self.dice = c, c.dice
        self.angle = c.dice.uniform(-turn, turn)
        self.size = c.dice.uniform(*size)
        self.u, self.v = c.turned(self.angle, c.dice.uniform(-shift, shift), c.dice.uniform(-shift, shift))
        squash = c.dice.uniform(0.95, 1.0)  # the camera does not look down exactly
        self.u = self.u / np.float32(squash)
        self.background = ground(c)
        self.image = self.background
        self.coverage = np.zeros(c.shape, np.float32)
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        lx, ly = c.light
        self.light = (lx * cos + ly * sin, ly * cos - lx * sin)  # in the object's axes

    def shadow(self, distance: np.ndarray, height: float = 0.08) -> None:
        """The shadow that a body of outline `distance` [H, W] casts away from the light onto the background."""
        blur = height * self.dice.uniform(0.6, 1.4)
        darkness = self.dice.uniform(0.25, 0.6)
        lx, ly = self.c.light
        cast = moved(distance, -lx * height * 0.7 / self.c.pixel, -ly * height * 0.7 / self.c.pixel)
        shade = 1 - np.float32(darkness) * (1 - smoothstep(-blur * 0.6, blur, cast))
        self.background = tone(self.background, shade)
        self.image = self.background

    def layer(
        self,
        distance: np.ndarray,
        paint: Colour,
        *,
        bevel: float = 0.05,
        depth: float = 0.5,
        gloss: float = 0.0,
        texture: np.ndarray | float = 1.0,
        hole: bool = False,
    ) -> np.ndarray:
        """Paints the set where `distance` [H, W] is negative; returns its coverage [H, W].

        Args:
            distance: Signed distance [H, W] to the outline in canvas units, negative inside.
            paint: Colour.
            bevel: Width of the rounded edge, canvas units.
            depth: How strongly the edge is shaded.
            gloss: Strength of the highlight where the surface faces the light.
            texture: Brightness factor, a number or [H, W].
            hole: The layer shows what is behind the object, which is no part of it.
        """
        c = self.c
        cover = c.inside(distance)
        t = np.clip(1 + distance / np.float32(bevel), 0, 1)
        slope = c.slope(np.sqrt(1 - 0.95 * t * t) * np.float32(bevel))
        shaded = tone(paint, (1 + np.float32(depth) * np.clip(slope, -1.5, 1.5)) * texture)
        if gloss:
            shaded = shaded + (np.float32(gloss) * smoothstep(0.35, 1.1, slope))[..., None]
        self.image = mix(self.image, shaded, cover)
        self.coverage = self.coverage * (1 - cover) if hole else np.maximum(self.coverage, cover)
        return cover

    def opening(self, distance: np.ndarray) -> None:
        """A hole through the object: the background, darkened by the rim on the side of the light."""
        cover = self.c.inside(distance)
        shade = 1 - 0.45 * np.exp(np.clip(distance, -1, 0) / np.float32(0.06))
        self.image = mix(self.image, tone(self.background, shade), cover)
        self.coverage = self.coverage * (1 - cover)

    def engrave(self, distance: np.ndarray, width: float, depth: float = 0.4) -> None:
        """A groove along `distance` = 0, `width` wide: dark, with one lit wall."""
        profile = np.exp(-((distance / np.float32(width)) ** 2))
        slope = np.clip(self.c.slope(-profile * np.float32(width)), -1, 1)
        self.image = mix(self.image, tone(self.image, (1 - 0.6 * depth * profile) * (1 + depth * slope)), self.coverage)

    def emboss(self, relief: np.ndarray, depth: float) -> None:
        """Raised figures: `relief` [H, W] in [0, 1], lit as a height of 0.03 units."""
        slope = np.clip(self.c.slope(relief * np.float32(0.03)), -1.2, 1.2)
        self.image = mix(self.image, tone(self.image, 1 + depth * slope), self.coverage)

    def stamp(self, ink: np.ndarray, alpha: np.ndarray) -> None:
        """Colour `ink` printed where `alpha` [H, W] is 1, on the object only."""
        self.image = mix(self.image, ink, alpha * self.coverage)

    def polar(self) -> tuple[np.ndarray, np.ndarray]:
        """Radius and angle of the object's axes, each [H, W]."""
        return np.sqrt(self.u * self.u + self.v * self.v), np.arctan2(self.v, self.u)

    def sheen(self, strength: float) -> None:
        """Streak of reflected light that depends on the direction from the middle, as on turned metal."""
        _, theta = self.polar()
        turn = np.float32(self.dice.angle())
        gain = 1 + np.float32(strength) * np.cos(2 * (theta - turn)) ** 3
        self.image = mix(self.image, tone(self.image, gain), self.coverage)

    def scene(self) -> Scene:
        """The picture painted so far, as a scene."""
        return Scene(self.image, self.coverage, self.background)


SURFACES = (
    woven.fabric, woven.felt, woven.carbon_fibre, organic.wood, organic.paper, organic.cork, organic.marble,
    mineral.concrete, mineral.granite, made.brushed_metal, made.plastic, made.painted_panel, made.rubber_mat,
)  # fmt: skip


def ground(c: Canvas) -> np.ndarray:
    """What an object lies on: paper, cloth, conveyor, board, metal, any material of the training side; [H, W, 3]."""
    dice = c.dice
    image: np.ndarray
    if dice.chance(0.5):
        image = np.clip(dice.choice(SURFACES)(c), 0, 1)
        mean = image.mean(axis=(0, 1))
        image = mean + (image - mean) * np.float32(dice.uniform(0.4, 1.0))
    else:
        image = _plain_ground(c)
    if dice.chance(0.35):
        image = marked(c, np.clip(image, 0, 1), np.ones(c.shape, np.float32), 0.9, (0.1, 0.3))
    if dice.chance(0.45):  # the rim of a tray or the end of the table
        _, across = c.turned(dice.angle())
        far = across - np.float32(dice.uniform(0.55, 0.95))
        beyond = any_colour(dice, (0.0, 0.4), (0.05, 0.9))
        shade = 1 - 0.35 * np.exp(-np.clip(far, 0, 3) / np.float32(0.05))
        image = mix(image, tone(beyond, shade), c.inside(-far, dice.uniform(1, 4)))
    return image


def _plain_ground(c: Canvas) -> np.ndarray:
    dice = c.dice
    kind = dice.choice(("plain", "plain", "dark", "cloth", "board", "metal", "speckle"))
    base = any_colour(dice, (0.0, 0.45), (0.35, 0.97))
    angle = dice.angle()
    if kind == "plain":
        shade = 1 + dice.uniform(0.0, 0.08) * c.noise(1.5, 2) + dice.uniform(0.0, 0.02) * c.noise(60, 1)
    elif kind == "dark":
        base = any_colour(dice, (0.0, 0.4), (0.03, 0.22))
        shade = 1 + dice.uniform(0.0, 0.25) * c.noise(3, 3)
    elif kind == "cloth":
        u, v = c.turned(angle)
        pitch = np.float32(dice.uniform(40, 70))
        shade = 1 + dice.uniform(0.03, 0.09) * (np.sin(u * pitch) * np.sin(v * pitch) + 0.5 * c.noise(30, 2))
    elif kind == "board":
        base = colour(dice, (24, 40), (0.2, 0.5), (0.4, 0.85))
        shade = 1 + dice.uniform(0.03, 0.1) * c.noise(7, 3, stretch=12, angle=angle)
    elif kind == "metal":
        base = colour(dice, (200, 230), (0.0, 0.12), (0.4, 0.8))
        shade = 1 + dice.uniform(0.02, 0.06) * c.noise(60, 1, stretch=30, angle=angle) + 0.03 * c.noise(2, 2)
    else:
        shade = 1 + dice.uniform(0.02, 0.08) * c.noise(30, 2) - 0.12 * smoothstep(1.8, 2.4, c.noise(36, 1))
    return tone(base, shade)


def disc(u: np.ndarray, v: np.ndarray, radius: float, x: float = 0.0, y: float = 0.0) -> np.ndarray:
    """Signed distance to a disc, negative inside; [H, W]."""
    du, dv = u - np.float32(x), v - np.float32(y)
    return np.sqrt(du * du + dv * dv) - np.float32(radius)


def box(u: np.ndarray, v: np.ndarray, width: float, height: float, corner: float = 0.0) -> np.ndarray:
    """Signed distance to a rectangle of half sides `width`, `height` with rounded corners."""
    a, b = np.abs(u) - np.float32(width - corner), np.abs(v) - np.float32(height - corner)
    outside = np.sqrt(np.maximum(a, 0) ** 2 + np.maximum(b, 0) ** 2)
    distance: np.ndarray = outside + np.minimum(np.maximum(a, b), 0) - np.float32(corner)
    return distance


def rod(u: np.ndarray, v: np.ndarray, half: float, radius: float) -> np.ndarray:
    """Signed distance to a rod along u: a segment from -half to half, thickened by `radius`."""
    distance: np.ndarray = np.sqrt(np.maximum(np.abs(u) - np.float32(half), 0) ** 2 + v * v) - np.float32(radius)
    return distance


def polygon(u: np.ndarray, v: np.ndarray, sides: int, inner: float, corner: float = 0.0) -> np.ndarray:
    """Signed distance (exact inside) to a regular polygon of inner radius `inner`, corners slightly rounded."""
    theta = np.arctan2(v, u)
    sector = np.float32(2 * math.pi / sides)
    radius = np.sqrt(u * u + v * v)
    flat: np.ndarray = radius * np.cos((theta / sector - np.floor(theta / sector + 0.5)) * sector) - np.float32(inner)
    if corner:
        flat = np.maximum(flat, radius - np.float32(inner * (1 / math.cos(math.pi / sides) - corner)))
    return flat


def metal(stage: Stage, kind: str | None = None) -> np.ndarray:
    """A metal's colour, float32 [3]."""
    dice = stage.dice
    kinds = {"steel": ((200, 230), (0.0, 0.1), (0.5, 0.75)), "brass": ((40, 50), (0.3, 0.55), (0.6, 0.85))}
    kinds |= {"copper": ((16, 26), (0.4, 0.6), (0.55, 0.8)), "dark": ((200, 240), (0.0, 0.15), (0.22, 0.4))}
    return colour(dice, *kinds[kind or dice.choice(("steel", "steel", "brass", "copper", "dark"))])
