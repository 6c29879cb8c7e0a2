"""Images, masks and tokens that the training benchmark draws for itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from anomaly_vlm.data.types import Batch, Preprocess, Sample
from anomaly_vlm.methods.anomalyclip.dual_path import DualPathMethod

SIDE = 512  # of the files, in pixels


def preprocess(method: DualPathMethod) -> Preprocess:
    """The shipped configurations' pixels."""
    clip = method.backbone
    return Preprocess(size=clip.image_size, mean=clip.mean, std=clip.std, rgb="after")


def draw_samples(folder: Path, count: int) -> list[Sample]:
    """Files of smooth noise; the second of each two has a bright square, and a mask of it."""
    folder.mkdir()
    samples = []
    for i in range(count):
        random = np.random.default_rng(i)
        noise = Image.fromarray(random.integers(0, 150, (32, 32, 3), dtype=np.uint8)).resize((SIDE, SIDE))
        pixels, mask = np.array(noise), np.zeros((SIDE, SIDE), np.uint8)
        path, region = folder / f"{i:03}.png", folder / f"{i:03}_mask.png"
        if i % 2:
            top, left = random.integers(0, SIDE - 100, 2)
            mask[top : top + 80, left : left + 80] = 255
            pixels[mask > 0] += 50
            Image.fromarray(mask).save(region)
        Image.fromarray(pixels).save(path)
        samples.append(Sample(str(path), "noise", i % 2, (str(region),) if i % 2 else (), dataset="bench"))
    return samples


def random_batch(method: DualPathMethod, size: int, *, served: bool) -> Batch:
    """`size` images of noise, or their tokens in place of them; the second of each two has a mask."""
    clip, generator = method.backbone, torch.Generator().manual_seed(0)
    side, count = clip.image_size, (clip.image_size // clip.patch_size) ** 2
    label = torch.arange(size) % 2
    mask = torch.zeros(size, side, side, dtype=torch.uint8)
    mask[1::2, 50:90, 60:120] = 1
    image = torch.randn(0 if served else size, 3, side, side, generator=generator)
    tokens: list[Any] = []
    for _ in range(size if served else 0):
        cls, patches = (torch.randn(*s, clip.embed_dim, generator=generator) for s in ((), (len(method.layers), count)))
        tokens.append({"cls": F.normalize(cls, dim=-1), "patches": F.normalize(patches, dim=-1)})
    names = [f"image {i}" for i in range(size)]
    return Batch(image, label, mask, ["noise"] * size, names, torch.arange(size), list(names), tokens or None)
