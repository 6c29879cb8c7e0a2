"""Puts one defect of a given kind into a scene: place, draw, set its visibility, mask, check, redraw."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from ..canvas import Canvas, Scene
from ..dice import Dice
from ..nuisances import Nuisances
from .catalogue import KINDS, Kind
from .spot import Spot, find, local_contrast

log = logging.getLogger("anomaly_vlm")

ATTEMPTS = 8
# Mean change over the mask that a defect aims at, besides what the material's own contrast asks for.
CONTRAST = {"texture": (0.065, 0.185), "object": (0.08, 0.22)}
LIVELY = 1.5  # how much of the material's own contrast is added to the aim
FLOOR = 0.6  # share of the lowest aim below which a defect counts as invisible and is drawn again
AREA = (0.001, 0.12)  # share of the picture that a mask may cover


@dataclass(frozen=True)
class Damage:
    """A scene with its defect, before the camera.

    Attributes:
        image: float32 [H, W, 3].
        mask: bool [H, W].
        attempts: How often the defect was drawn.
        visible: Whether the chosen draw passed the check.
        numbers: All integers drawn for it, those of discarded draws included.
    """

    image: np.ndarray
    mask: np.ndarray
    attempts: int
    visible: bool
    numbers: tuple[int, ...]


def damage(
    canvas: Canvas, scene: Scene, kind: str, key: tuple[int, ...], camera: Nuisances, contrast: tuple[float, float]
) -> Damage:
    """Draws a defect of `kind`, up to eight times until it is visible; the most visible draw counts if none is.

    Args:
        canvas: Canvas of the picture; the defect is drawn in its units.
        scene: The undamaged scene.
        kind: Kind of defect.
        key: Key of the random draws.
        camera: Effects of the camera that will follow; the change has to be visible through it.
        contrast: Range of the mean change that the defect aims at (`CONTRAST`).
    """
    best: tuple[float, Spot, np.ndarray, np.ndarray] | None = None
    numbers: list[int] = []
    for attempt in range(ATTEMPTS):
        dice = Dice(*key, attempt)
        spot, after, mask, visibility = _draw(canvas, scene, KINDS[kind], dice, camera, contrast)
        numbers += dice.drawn
        if best is None or visibility > best[0]:
            best = visibility, spot, after, mask
        if visibility >= 1:
            break
    assert best is not None
    visibility, spot, after, mask = best
    if visibility < 1:
        log.debug("a %s stayed faint after %d draws (visibility %.2f)", kind, ATTEMPTS, visibility)
    image, full = scene.image.copy(), np.zeros(canvas.shape, bool)
    image[spot.window], full[spot.window] = after, mask
    return Damage(image, full, attempt + 1, visibility >= 1, tuple(numbers))


def _draw(
    canvas: Canvas, scene: Scene, kind: Kind, dice: Dice, camera: Nuisances, contrast: tuple[float, float]
) -> tuple[Spot, np.ndarray, np.ndarray, float]:
    """One draw: (spot, window's new image, window's mask, visibility; 1 is enough)."""
    x, y, radius, heading = find(canvas, scene, dice, kind.place, kind.extent, 0.75)
    local, window = canvas.around(x, y, 1.7 * radius + 0.05, dice)
    crop = scene.crop(window)
    near = (local.x**2 + local.y**2 < radius**2) * (crop.coverage + np.float32(1e-3))
    mean = (crop.image * near[..., None]).sum(axis=(0, 1)) / near.sum()
    spot = Spot(local, crop, window, radius, heading, mean)
    lively = local_contrast(camera.seen(crop.image), crop.coverage, 0.04 / canvas.pixel)
    aim = dice.log_uniform(*contrast) + LIVELY * lively + camera.noise
    change = np.clip(kind.draw(spot), 0, 1) - crop.image
    _, level = _mask(crop.image, change, kind.grain / canvas.pixel, camera)
    gain = float(np.clip(aim / max(level, 1e-6), *kind.gain))
    after = np.clip(crop.image + np.float32(gain) * change, 0, 1)
    mask, level = _mask(crop.image, after - crop.image, kind.grain / canvas.pixel, camera)
    area = mask.sum() / canvas.shape[0] / canvas.shape[1]
    visibility = level / (FLOOR * (contrast[0] + LIVELY * lively + camera.noise))
    if not AREA[0] <= area <= AREA[1]:
        visibility *= 0.2
    return spot, after, mask, visibility


def _mask(before: np.ndarray, change: np.ndarray, sigma: float, camera: Nuisances) -> tuple[np.ndarray, float]:
    """What changed visibly: bool [H, W], and the mean change over it as the camera sees it, in [0, 1]."""
    amount = np.abs(camera.seen(before + change) - camera.seen(before)).max(axis=2)
    smooth = gaussian_filter(amount, max(sigma, 0.5), mode="nearest")
    peak = float(smooth.max())
    mask = smooth >= min(max(0.35 * peak, 0.03), peak)
    return mask, float(amount[mask].mean())
