"""From a sample to the pixels a method sees: CLIP's own transform, masks, mosaics."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from anomaly_vlm.data.images import as_rgb, decode, eight_bit, mask_size_error, open_image, open_labels
from anomaly_vlm.data.masks import open_mask
from anomaly_vlm.data.types import Preprocess, Sample


def read_sample(sample: Sample) -> tuple[Image.Image, Image.Image | None]:
    """Image and mask (mode L, 0 / 255, or labels) of a sample at their own size; no mask where the sample has no region.

    Raises:
        ReadError: A file cannot be read, or a mask has another size than its image.
    """
    if sample.drawing is not None:
        drawn = sample.drawing.draw()
        if sample.labels:
            return Image.fromarray(drawn.image), Image.fromarray(drawn.mask)
        return Image.fromarray(drawn.image), _grey(drawn.mask) if sample.kind == "mask" and drawn.mask.any() else None
    image = open_image(sample.path, sample.max_value)
    return image, read_region(sample, image.size) if sample.masks else None


def read_resized(sample: Sample, preprocess: Preprocess) -> tuple[Tensor, Image.Image | None]:
    """What `resize_image` makes of a sample's image, and its mask at its own size, as `read_sample` gives it.

    Of a file, the image is let go before the mask is read, and decoded as `preprocess.decode` says: 8,000 x 8,000 pixels are
    256 MB.

    Raises:
        ReadError: A file cannot be read, or a mask has another size than its image.
    """
    if sample.drawing is not None:
        image, mask = read_sample(sample)
        return resize_image(image, preprocess), mask
    decoded = decode(sample.path, draft=preprocess.draft, max_value=sample.max_value)
    size, image = decoded.size, eight_bit(decoded.image, sample.path, sample.max_value)
    pixels = resize_image(image, preprocess)
    del decoded, image
    return pixels, read_region(sample, size) if sample.masks else None


def read_region(sample: Sample, size: tuple[int, int] | None = None) -> Image.Image:
    """The union of a file sample's masks (mode L, 0 / 255), or its labels.

    Args:
        sample: A sample that lies in files.
        size: (width, height) of the image; None: that of the first mask.

    Raises:
        ReadError: A mask cannot be read or has another size.
    """
    if sample.labels:
        return _labels(sample, size)
    union: np.ndarray | None = None
    for path in sample.masks:
        mask = open_mask(path, sample.mask_threshold)
        expected = size if union is None else union.shape[::-1]
        if expected is not None and mask.shape != expected[::-1]:
            raise mask_size_error(path, mask.shape[::-1], expected)
        union = mask if union is None else union | mask
    assert union is not None
    return _grey(union)


def _labels(sample: Sample, size: tuple[int, int] | None) -> Image.Image:
    (path,) = sample.masks
    values = open_labels(path)
    if size is not None and values.shape != size[::-1]:
        raise mask_size_error(path, values.shape[::-1], size)
    return Image.fromarray(values if sample.lookup is None else np.array(sample.lookup, np.uint8)[values])


def _grey(mask: np.ndarray) -> Image.Image:
    grey = (mask != 0).view(np.uint8)  # the bytes of True may be others than 1
    grey *= np.uint8(255)
    return Image.fromarray(grey)  # which holds the array itself


def resize_image(image: Image.Image, preprocess: Preprocess) -> Tensor:
    """uint8 [3, S, S]: squash-resized, antialiased (PIL); or [3, H, W]: as `preprocess.fit` says."""
    if preprocess.fit == "native":
        image = as_rgb(image)
        if preprocess.frame is not None:
            image = image.resize(preprocess.frame[::-1], Image.Resampling.BILINEAR)
        return _channels_first(image)
    size = _short_side(image.size, preprocess.size) if preprocess.fit == "short_side" else (preprocess.size,) * 2
    if preprocess.rgb == "before":
        image = as_rgb(image)
    bilinear = preprocess.interpolation == "bilinear"
    return _channels_first(
        as_rgb(image.resize(size, Image.Resampling.BILINEAR if bilinear else Image.Resampling.BICUBIC))
    )


def _channels_first(image: Image.Image) -> Tensor:
    """uint8 [3, H, W], in memory of its own. NumPy copies, as threads call this and torch would start more of them."""
    return torch.from_numpy(np.array(np.asarray(image).transpose(2, 0, 1), order="C"))


def resize_mask(mask: Image.Image, preprocess: Preprocess) -> Tensor:
    """Mode L of 0 / 255 -> uint8 [S, S] of 0 / 1: resized with the protocol's filter, then above one half."""
    nearest = preprocess.mask_resize == "nearest"
    filtered = mask.resize(
        _mask_size(mask, preprocess), Image.Resampling.NEAREST if nearest else Image.Resampling.BILINEAR
    )
    return torch.from_numpy((np.asarray(filtered) > 127).astype(np.uint8))


def resize_labels(labels: Image.Image, preprocess: Preprocess) -> Tensor:
    """Mode L -> uint8 [S, S] (or its own size) of the same values: each pixel the nearest one's."""
    size = _mask_size(labels, preprocess)
    if labels.size != size:
        labels = labels.resize(size, Image.Resampling.NEAREST)
    return torch.from_numpy(np.array(labels))


def _mask_size(mask: Image.Image, preprocess: Preprocess) -> tuple[int, int]:
    """(width, height) that a mask gets: one that `mask_size` asks for, else that of its image."""
    if preprocess.mask_size is None and preprocess.fit == "native":
        return mask.size if preprocess.frame is None else (preprocess.frame[1], preprocess.frame[0])
    if preprocess.mask_size is None and preprocess.fit == "short_side":
        return _short_side(mask.size, preprocess.size)
    return preprocess.mask_side, preprocess.mask_side


def _short_side(size: tuple[int, int], side: int) -> tuple[int, int]:
    """(width, height) with the shorter one at `side`, the other cut to whole pixels, as torchvision's `Resize(side)`."""
    width, height = size
    return (int(side * width / height), side) if width > height else (side, int(side * height / width))


def normalise(image: Tensor, preprocess: Preprocess) -> Tensor:
    """float32 [3, S, S] in [0, 1] -> zero mean and unit deviation of the weights' training images; in place."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preprocess.mean, preprocess.std))
    return image.sub_(mean).div_(std)


def preprocessed(pixels: np.ndarray, preprocess: Preprocess) -> Tensor:
    """RGB pixels uint8 [H, W, 3] as a method sees them: resized and normalised, float32 [1, 3, S, S]."""
    resized = resize_image(Image.fromarray(pixels), preprocess)
    return normalise(resized.float().div(255), preprocess)[None]


def mosaic(tiles: Sequence[tuple[Image.Image, Image.Image | None]]) -> tuple[Image.Image, Image.Image]:
    """Four images and masks -> one of 2 x 2 tiles, each of the first image's size (AdaCLIP, published code)."""
    width, height = tiles[0][0].size
    image, mask = Image.new("RGB", (2 * width, 2 * height)), Image.new("L", (2 * width, 2 * height))
    for i, (tile, region) in enumerate(tiles):
        corner = (i % 2 * width, i // 2 * height)
        tile = as_rgb(tile)
        if tile.size != (width, height):
            tile = tile.resize((width, height), Image.Resampling.BICUBIC)
        image.paste(tile, corner)
        if region is not None:
            mask.paste(region.resize((width, height), Image.Resampling.NEAREST), corner)
    return image, mask
