"""What the camera adds to normal and damaged pictures alike: light, lens, sensor, compression, orientation."""

from __future__ import annotations

import io
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageFilter

from .canvas import LUMA, Canvas, smoothstep
from .dice import Dice


@dataclass(frozen=True)
class Nuisances:
    """The drawn camera.

    Attributes:
        exposure: Exposure of the whole picture.
        gamma: Gamma of the whole picture.
        tint: Gains of the channels.
        grey: How much colour is lost, [0, 1].
        slope: Change of brightness across the picture (x, y).
        vignette: Loss of brightness in the corners.
        shade: A shadow that falls across (direction, place, softness, darkness), None without.
        glare: A soft reflection (x, y, radius, strength), None without.
        blur: Deviation in canvas units.
        noise: Deviation in [0, 1].
        quality: Quality of the JPEG, None without.
        turn: 0 to 7, one of the eight orientations of a square.
    """

    exposure: float
    gamma: float
    tint: tuple[float, float, float]
    grey: float
    slope: tuple[float, float]
    vignette: float
    shade: tuple[float, float, float, float] | None
    glare: tuple[float, float, float, float] | None
    blur: float
    noise: float
    quality: int | None
    turn: int
    dice: Dice = field(compare=False)

    @classmethod
    def drawn_from(cls, dice: Dice) -> Nuisances:
        """Draws the effects of one picture."""
        warm, green = dice.uniform(-0.06, 0.06), dice.uniform(-0.02, 0.02)
        return cls(
            exposure=dice.uniform(0.75, 1.1),
            gamma=dice.log_uniform(0.8, 1.25),
            tint=(1 + warm, 1 + green, 1 - warm),
            grey=1.0 if dice.chance(0.08) else dice.uniform(0.0, 0.3),
            slope=(dice.uniform(-0.16, 0.16), dice.uniform(-0.16, 0.16)),
            vignette=dice.uniform(0.0, 0.25),
            shade=_shade(dice) if dice.chance(0.4) else None,
            glare=_glare(dice) if dice.chance(0.4) else None,
            blur=dice.uniform(0.0, 0.013),
            noise=dice.log_uniform(0.004, 0.025),
            quality=dice.integer(55, 96) if dice.chance(0.6) else None,
            turn=dice.integer(0, 8),
            dice=dice,
        )

    def seen(self, image: np.ndarray) -> np.ndarray:
        """Tone, exposure and colour of the camera alone; float32 [H, W, 3] -> [H, W, 3]."""
        image = np.clip(image, 0, 1) ** np.float32(self.gamma)
        image = image + ((image @ LUMA)[..., None] - image) * np.float32(self.grey)
        exposed: np.ndarray = image * (np.asarray(self.tint, np.float32) * np.float32(self.exposure))
        return exposed

    def apply(self, canvas: Canvas, image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The photograph of `image` [H, W, 3] in [0, 1], uint8, and the mask turned alike."""
        light = 1 + canvas.x * np.float32(self.slope[0]) + canvas.y * np.float32(self.slope[1])
        light = light * (1 - np.float32(self.vignette / 2) * (canvas.x**2 + canvas.y**2))
        if self.shade is not None:
            direction, place, softness, darkness = self.shade
            _, across = canvas.turned(direction)
            light = light * (1 - np.float32(darkness) * smoothstep(place - softness, place + softness, across))
        image = self.seen(image) * light[..., None]
        if self.glare is not None:
            x, y, radius, strength = self.glare
            away = (canvas.x - np.float32(x)) ** 2 + (canvas.y - np.float32(y)) ** 2
            image = image + (np.float32(strength) * np.exp(-away / np.float32(radius**2)))[..., None]
        grain = self.dice.grain(*canvas.shape)
        image = image * np.float32(255)
        photo = Image.fromarray(np.clip(image + np.float32(0.5), 0, 255).astype(np.uint8))
        if self.blur > 0.25 * canvas.pixel:
            photo = photo.filter(ImageFilter.GaussianBlur(self.blur / canvas.pixel))
        noisy = np.asarray(photo, np.float32) + (grain * np.float32(255 * self.noise))[..., None]
        pixels = np.clip(noisy + np.float32(0.5), 0, 255).astype(np.uint8)
        pixels, mask = (np.ascontiguousarray(turned(a, self.turn)) for a in (pixels, mask))
        if self.quality is not None:
            pixels = compressed(pixels, self.quality)
        return pixels, mask


def _shade(dice: Dice) -> tuple[float, float, float, float]:
    return dice.angle(), dice.uniform(-0.6, 0.6), dice.log_uniform(0.04, 0.4), dice.uniform(0.1, 0.5)


def _glare(dice: Dice) -> tuple[float, float, float, float]:
    return dice.uniform(-0.9, 0.9), dice.uniform(-0.9, 0.9), dice.log_uniform(0.25, 0.8), dice.uniform(0.05, 0.35)


def turned(array: np.ndarray, turn: int) -> np.ndarray:
    """One of the eight orientations of a square array [S, S, ...]."""
    flipped = array[:, ::-1] if turn >= 4 else array
    return np.rot90(flipped, turn % 4)


def compressed(pixels: np.ndarray, quality: int) -> np.ndarray:
    """`pixels` uint8 [H, W, 3] after a round trip through JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return np.array(Image.open(buffer))
