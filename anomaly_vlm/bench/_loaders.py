"""Files, the plain data set and the pieces whose memory is measured, for the benchmark of the loader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from anomaly_vlm.data.dataset import AnomalyDataset
from anomaly_vlm.data.types import Preprocess, Sample

PIXELS = Preprocess(518, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
LARGE_SIDE = 8000


class PlainDataset(Dataset[tuple[Tensor, Tensor]]):
    """PIL and torchvision as the published codes use them: normalised image `[3, S, S]`, mask `[S, S]` of 0 and 1."""

    def __init__(self, samples: list[Sample]) -> None:
        from torchvision.transforms import Compose, InterpolationMode, Normalize, Resize, ToTensor

        side = (PIXELS.size, PIXELS.size)
        resize = Resize(side, interpolation=InterpolationMode.BICUBIC)
        self.samples = samples
        self.image = Compose([resize, ToTensor(), Normalize(PIXELS.mean, PIXELS.std)])
        self.mask = Compose([Resize(side), ToTensor()])

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        sample = self.samples[i]
        image = self.image(Image.open(sample.path).convert("RGB"))
        if not sample.masks:
            return image, torch.zeros(PIXELS.size, PIXELS.size)
        return image, (self.mask(Image.open(sample.masks[0]).convert("L"))[0] > 0.5).float()


def picture(seed: int, size: tuple[int, int]) -> Image.Image:
    """Something like a photograph, (width, height): soft shapes with some noise, so that it compresses as one."""
    random = np.random.default_rng(seed)
    coarse = random.integers(30, 225, (max(2, size[1] // 64), max(2, size[0] // 64), 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))
    noise = random.integers(0, 9, (*smooth.shape[:2], 1), dtype=np.uint8)
    return Image.fromarray(smooth // 2 + smooth // 4 + noise)


def write_set(folder: Path, suffix: str, size: tuple[int, int], count: int) -> list[Sample]:
    """Image files of one size, each second with a mask."""
    folder.mkdir(parents=True)
    samples = []
    for i in range(count):
        path, region = folder / f"{i:03}{suffix}", folder / f"{i:03}_mask.png"
        picture(i, size).save(path, quality=92)
        if i % 2:
            write_mask(region, size)
        samples.append(Sample(str(path), "part", i % 2, (str(region),) if i % 2 else (), dataset="bench"))
    return samples


def write_mask(path: Path, size: tuple[int, int]) -> None:
    """A mask with a rectangle in it."""
    mask = np.zeros(size[::-1], np.uint8)
    mask[size[1] // 4 : size[1] // 3, size[0] // 4 : size[0] // 2] = 255
    Image.fromarray(mask).save(path)


def large_file(folder: Path, suffix: str) -> tuple[str, str]:
    """An image of `LARGE_SIDE` pixels a side and its mask."""
    size = (LARGE_SIDE, LARGE_SIDE)
    path, region = folder / f"large{suffix}", folder / f"large{suffix[1:]}_mask.png"
    picture(0, size).save(path, quality=90, compress_level=1)
    write_mask(region, size)
    return str(path), str(region)


def _twice(image: str, mask: str) -> list[Sample]:
    return [Sample(image, "part", 1, (mask,), dataset="bench")] * 2


def plain(image: str, mask: str) -> Callable[[], dict[str, Any]]:
    """Reads a large image and its mask twice, as the published codes do."""
    dataset = PlainDataset(_twice(image, mask))
    return lambda: {"shapes": [list(dataset[i][0].shape) for i in range(2)]}


def ours(image: str, mask: str, decode: Literal["full", "draft"] = "full") -> Callable[[], dict[str, Any]]:
    """Reads a batch of twice the same large image."""
    pixels = Preprocess(PIXELS.size, PIXELS.mean, PIXELS.std, decode=decode)
    dataset = AnomalyDataset(_twice(image, mask), pixels)
    return lambda: {"shapes": [list(item.image.shape) for item in dataset.__getitems__([0, 1])]}
