"""Images turned about their centre at their own size: more views of a few normal reference images.

AnomalyDINO (arXiv 2405.14529) fills the corners by reflection, SubspaceAD (arXiv 2602.23013) with black.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from PIL import Image

Warp = Literal["exact", "quantised"]


def turn_reflected(image: np.ndarray, degrees: float, *, warp: Warp = "exact") -> np.ndarray:
    """Turns an image counter-clockwise about (W / 2, H / 2) by bilinear interpolation; outside pixels are reflections.

    Args:
        image: uint8 `[H, W, 3]`.
        degrees: Angle.
        warp: Positions between pixels: `exact` (OpenCV 5), or `quantised` to 1/32 of a pixel (OpenCV up to 4.x).

    Returns:
        uint8 `[H, W, 3]`, values rounded half up.
    """
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float64)
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    shift_x = width / 2 - cosine * width / 2 + sine * height / 2
    shift_y = height / 2 - sine * width / 2 - cosine * height / 2
    if warp == "quantised":
        source_x = _in_parts(shift_x - sine * y, cosine * x)
        source_y = _in_parts(shift_y + cosine * y, sine * x)
    else:
        source_x, source_y = cosine * x - sine * y + shift_x, sine * x + cosine * y + shift_y
    left, top = np.floor(source_x), np.floor(source_y)
    across, down = (source_x - left)[..., None], (source_y - top)[..., None]
    columns = [_reflected(left + step, width) for step in (0, 1)]
    rows = [_reflected(top + step, height) for step in (0, 1)]
    pixels = image.astype(np.float64)
    upper = (1 - across) * pixels[rows[0], columns[0]] + across * pixels[rows[0], columns[1]]
    lower = (1 - across) * pixels[rows[1], columns[0]] + across * pixels[rows[1], columns[1]]
    turned: np.ndarray = np.floor((1 - down) * upper + down * lower + 0.5).clip(0, 255).astype(np.uint8)
    return turned


def turn_black(image: np.ndarray, degrees: float) -> np.ndarray:
    """Turns an image counter-clockwise about its centre, every pixel its nearest one; what comes from outside is black.

    Args:
        image: uint8 `[H, W, 3]`.
        degrees: Angle.

    Returns:
        uint8 `[H, W, 3]`.
    """
    return np.asarray(Image.fromarray(image).rotate(degrees, Image.Resampling.NEAREST))


def _in_parts(along_y: np.ndarray, along_x: np.ndarray) -> np.ndarray:
    """The sum of both parts of a coordinate as OpenCV 4 has it, in whole 1/32 of a pixel."""
    parts: np.ndarray = np.floor((np.rint(1024 * along_y) + 16 + np.rint(1024 * along_x)) / 32) / 32
    return parts


def _reflected(index: np.ndarray, size: int) -> np.ndarray:
    """Indices of any size as ones below `size`, reflected at the edge pixels, which are not repeated."""
    if size == 1:
        return np.zeros_like(index, dtype=np.int64)
    folded = index.astype(np.int64) % (2 * (size - 1))
    return np.minimum(folded, 2 * (size - 1) - folded)
