"""Images as Grounding DINO wants them: shorter side fixed, longer side bounded, ImageNet statistics."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

LONGEST = 1333
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def resized(width: int, height: int, short_side: int) -> tuple[int, int]:
    """(width, height) with the shorter side at `short_side`, or less where the longer one would exceed 1333 pixels."""
    short, long = min(width, height), max(width, height)
    if long / short * short_side > LONGEST:
        short_side = round(LONGEST * short / long)
    if width == short:
        return short_side, int(short_side * height / width)
    return int(short_side * width / height), short_side


def as_tensor(image: Image.Image, short_side: int) -> Tensor:
    """RGB image -> [3, h, w], bilinear on PIL, normalised."""
    small = image.resize(resized(*image.size, short_side), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.asarray(small, dtype=np.float32) / 255).permute(2, 0, 1)
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (pixels - mean) / std
