"""Masks without weights: what differs from a box's surroundings. Not part of any paper; results say so."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from anomaly_vlm.detectors.segmenter import Segmenter
from anomaly_vlm.errors import UserError

BINS = 64


class ContrastSegmenter(Segmenter):
    """In each box the pixels whose colour is far from the median of a ring round it, above Otsu's threshold (Otsu 1979).

    A box without surroundings, or of one colour, is its own mask.

    Args:
        ring: Width of the ring, as a share of the box's sides.

    Raises:
        UserError: `ring` is not above 0.
    """

    name: ClassVar[str] = "contrast"
    replaces: ClassVar[bool] = True

    def __init__(self, ring: float = 0.25) -> None:
        super().__init__()
        if not ring > 0:
            raise UserError(f"segmenter.ring is {ring}: give a share of the box's sides above 0, such as 0.25")
        self.ring = ring

    def identity(self) -> dict[str, Any]:
        """What the masks depend on: the ring."""
        return {"segmenter": self.name, "ring": self.ring}

    def look(self, image: Tensor, boxes: Tensor) -> Tensor:
        """Masks bool [n, H, W] of boxes [n, 4] in an image uint8 [3, H, W]."""
        pixels = image.permute(1, 2, 0).numpy().astype(np.float32)
        return torch.from_numpy(np.stack([self._mask(pixels, box) for box in boxes.numpy()]))

    def _mask(self, pixels: np.ndarray, box: np.ndarray) -> np.ndarray:
        height, width = pixels.shape[:2]
        mask = np.zeros((height, width), bool)
        left, top, right, bottom = _inside(box, width, height)
        if right <= left or bottom <= top:
            return mask
        margin = np.maximum(1, self.ring * np.array([box[2] - box[0], box[3] - box[1]]))
        x0, y0, x1, y1 = _inside(np.concatenate([box[:2] - margin, box[2:] + margin]), width, height)
        around = np.zeros((height, width), bool)
        around[y0:y1, x0:x1] = True
        around[top:bottom, left:right] = False
        inside = pixels[top:bottom, left:right]
        if not around.any():
            mask[top:bottom, left:right] = True
            return mask
        distances = np.linalg.norm(inside - np.median(pixels[around], axis=0), axis=-1)
        mask[top:bottom, left:right] = distances > otsu(distances) if distances.max() > distances.min() else True
        return mask


def _inside(box: np.ndarray, width: int, height: int) -> tuple[int, int, int, int]:
    """Whole pixels that a box touches, within the image."""
    left, top = (max(0, int(np.floor(value))) for value in box[:2])
    return left, top, min(width, int(np.ceil(box[2]))), min(height, int(np.ceil(box[3])))


def otsu(values: np.ndarray) -> float:
    """The threshold that splits values (not all equal) into the two classes farthest apart: Otsu's, on 64 bins."""
    counts, edges = np.histogram(values, bins=BINS)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1]
    above = counts.sum() - below
    sums = np.cumsum(counts * centres)
    low, high = sums[:-1] / np.maximum(below, 1), (sums[-1] - sums[:-1]) / np.maximum(above, 1)
    return float(edges[1:-1][np.argmax(below.astype(np.float64) * above * (high - low) ** 2)])
