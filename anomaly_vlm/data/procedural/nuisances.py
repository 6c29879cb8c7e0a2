"""What the camera adds to normal and damaged pictures alike: light, lens, sensor, compression, orientation."""

from __future__ import annotations

import io
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageFilter

from .canvas import LUMA, Canvas
from .dice import Dice


@dataclass(frozen=True)
class Nuisances:
    """The drawn camera.

    Attributes:
        exposure, gamma: of the whole picture. tint: gains of the channels. grey: how much colour is lost, [0, 1].
        slope: change of brightness across the picture (x, y). vignette: loss of brightness in the corners.
        blur: deviation in canvas units. noise: deviation in [0, 1]. quality: of the JPEG, None without.
        turn: 0 to 7, one of the eight orientations of a square.
    """

    exposure: float
    gamma: float
    tint: tuple[float, float, float]
    grey: float
    slope: tuple[float, float]
    vignette: float
    blur: float
    noise: float
    quality: int | None
    turn: int
    dice: Dice = field(compare=False)

    @classmethod
    def drawn_from(cls, dice: Dice) -> Nuisances:
        warm, green = dice.uniform(-0.06, 0.06), dice.uniform(-0.02, 0.02)
        return cls(
            exposure=dice.uniform(0.75, 1.1),
            gamma=dice.log_uniform(0.8, 1.25),
            tint=(1 + warm, 1 + green, 1 - warm),
            grey=1.0 if dice.chance(0.08) else dice.uniform(0.0, 0.3),
            slope=(dice.uniform(-0.16, 0.16), dice.uniform(-0.16, 0.16)),
            vignette=dice.uniform(0.0, 0.25),
            blur=dice.uniform(0.0, 0.013),
            noise=dice.log_uniform(0.004, 0.025),
            quality=dice.integer(55, 96) if dice.chance(0.6) else None,
            turn=dice.integer(0, 8),
            dice=dice,
        )

    def apply(self, canvas: Canvas, image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The photograph of `image` [H, W, 3] in [0, 1], uint8, and the mask turned alike."""
        light = self.exposure * (1 + canvas.x * np.float32(self.slope[0]) + canvas.y * np.float32(self.slope[1]))
        light = light * (1 - np.float32(self.vignette / 2) * (canvas.x**2 + canvas.y**2))
        image = np.clip(image, 0, 1) ** np.float32(self.gamma) * light[..., None]
        image = image + (image @ LUMA)[..., None] * np.float32(self.grey) - image * np.float32(self.grey)
        image = image * np.asarray(self.tint, np.float32)
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


def turned(array: np.ndarray, turn: int) -> np.ndarray:
    """One of the eight orientations of a square array [S, S, ...]."""
    flipped = array[:, ::-1] if turn >= 4 else array
    return np.rot90(flipped, turn % 4)


def compressed(pixels: np.ndarray, quality: int) -> np.ndarray:
    """`pixels` uint8 [H, W, 3] after a round trip through JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return np.array(Image.open(buffer))
