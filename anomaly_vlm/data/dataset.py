"""Samples as a map-style torch data set, and batches of its items."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from anomaly_vlm.data.augment import TrainingAugmentation
from anomaly_vlm.data.class_aware import class_aware_view
from anomaly_vlm.data.images import read_bytes, shown_size
from anomaly_vlm.data.transforms import (
    mosaic,
    normalise,
    read_region,
    read_sample,
    resize_image,
    resize_labels,
    resize_mask,
)
from anomaly_vlm.data.types import UNKNOWN, VOID, Batch, Preprocess, Sample
from anomaly_vlm.errors import UserError

MOSAIC, AUGMENT, CROP, CLASS_AWARE = 1, 2, 3, 4  # streams of random numbers
StoredTokens = Callable[[str | None], dict[str, Tensor] | None]


@dataclass
class Item:
    """One sample as a method sees it: fields of `Batch` without the batch axis.

    The image has no rows ([0, 3, S, S]) where its frozen tokens are there instead.
    """

    image: Tensor
    label: int
    mask: Tensor | None
    category: str
    path: str
    index: int
    key: str | None
    tokens: dict[str, Tensor] | None = None
    semantic: Tensor | None = None


class Pixels(NamedTuple):
    """A preprocessed sample.

    Attributes:
        image: uint8 [3, S, S].
        mask: uint8 [S, S] (the semantic labels of a sample that has some), or None.
        key: Key of the exact pixels, or None.
        label: Label of the pixels where it may differ from the sample's; else None.
    """

    image: Tensor
    mask: Tensor | None
    key: str | None
    label: int | None = None


class PixelCache:
    """Preprocessed pixels in memory, up to a number of bytes, so that later epochs neither read nor draw them again.

    What came first stays: under cyclic access, throwing out the oldest would throw out everything.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0
        self._entries: dict[tuple[object, ...], Pixels] = {}

    def get(self, key: tuple[object, ...]) -> Pixels | None:
        """The pixels stored under a key, or None."""
        return self._entries.get(key)

    def put(self, key: tuple[object, ...], pixels: Pixels) -> None:
        """Stores pixels under a key, unless they would exceed the limit."""
        size = pixels.image.nbytes + (0 if pixels.mask is None else pixels.mask.nbytes)
        if self.used + size <= self.limit:
            self._entries[key] = pixels
            self.used += size


class AnomalyDataset(Dataset[Item]):
    """Items of samples. `[i]` is sample i of epoch 0, `[epoch, i]` that of another epoch.

    Everything random comes from (seed, epoch, i): order, batches and worker processes change nothing.

    Args:
        samples: Samples of one side.
        preprocess: The method's.
        seed: Seed of mosaics and augmentations.
        augment: What training images go through; None for none.
        cache: Cache of preprocessed pixels, or None.
        name: Name of this data set within the cache.
        stored_tokens: Key of an image's pixels -> its frozen tokens, where they are stored. None stores none.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        preprocess: Preprocess,
        *,
        seed: int = 0,
        augment: TrainingAugmentation | None = None,
        cache: PixelCache | None = None,
        name: str = "",
        stored_tokens: StoredTokens | None = None,
    ) -> None:
        self.samples, self.preprocess = samples, preprocess
        self.seed, self.augment = seed, augment or TrainingAugmentation()
        self.cache, self.name, self.stored_tokens = cache, name, stored_tokens
        self._keys: dict[int, str] = {}
        self.has_masks = any(sample.kind in ("mask", "semantic") for sample in samples)
        self._category: dict[tuple[str, str], list[int]] = {}
        for i, sample in enumerate(samples):
            self._category.setdefault((sample.dataset, sample.category), []).append(i)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, position: int | tuple[int, int]) -> Item:
        epoch, i = position if isinstance(position, tuple) else (0, position)
        sample = self.samples[i]
        tiles = self._tiles(epoch, i) or self._class_aware(epoch, i)
        operations, crop = self.augment.operations, self.augment.crop
        if tiles is None and operations is None and crop is None and (served := self._served(i)) is not None:
            return served
        pixels = tiles or self._pixels(i)
        image, mask, key = pixels.image.float().div(255), self._mask(sample, pixels), pixels.key
        if crop is not None:
            image, mask = crop(image, mask, self._random(epoch, i, CROP), self.preprocess.mean)
            key = None
        if operations is not None:
            image, mask = operations(image, mask, int(self._random(epoch, i, AUGMENT).integers(2**63)))
            key = None
        label = -1 if sample.label is None else sample.label if pixels.label is None else pixels.label
        item = Item(normalise(image, self.preprocess), label, mask, sample.category, sample.path, i, key)
        if sample.kind == "semantic" and mask is not None:
            item.mask = torch.where(mask == UNKNOWN, 1, torch.where(mask == VOID, VOID, 0)).to(torch.uint8)
            item.semantic = mask.masked_fill(mask == UNKNOWN, VOID)
        return item

    def picture(self, i: int) -> np.ndarray:
        """The pixels of sample i as the method sees them, uint8 [S, S, 3], whether or not its tokens are stored."""
        return self._pixels(i).image.permute(1, 2, 0).numpy()

    def original(self, i: int) -> np.ndarray:
        """The pixels of sample i at its own size, uint8 [H, W, 3]."""
        return np.asarray(read_sample(self.samples[i])[0].convert("RGB"))

    def own_size(self, i: int) -> tuple[int, int]:
        """Width and height in pixels of sample i at its own size, where it lies in a file."""
        with Image.open(self.samples[i].path) as file:
            return shown_size(file)

    def _random(self, *key: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *key])

    def _pixels(self, i: int) -> Pixels:
        place = (self.name, self.preprocess, i)
        if self.cache is not None and (found := self.cache.get(place)) is not None:
            return found
        image, mask = read_sample(self.samples[i])
        pixels = resize_image(image, self.preprocess)
        key = self._key(i) or self._named(pixels.numpy().data)
        made = Pixels(pixels, None if mask is None else self._fitted(self.samples[i], mask), key)
        if self.cache is not None:
            self.cache.put(place, made)
        return made

    def _fitted(self, sample: Sample, mask: Image.Image) -> Tensor:
        return (resize_labels if sample.labels else resize_mask)(mask, self.preprocess)

    def _named(self, content: bytes | memoryview) -> str:
        return pixel_key(content, self.preprocess)

    def _key(self, i: int) -> str | None:
        """The key of a file's pixels, from its bytes alone; None for a drawn sample, whose pixels must be seen."""
        if self.samples[i].drawing is not None:
            return None
        if i not in self._keys:
            self._keys[i] = self._named(read_bytes(self.samples[i].path))
        return self._keys[i]

    def _served(self, i: int) -> Item | None:
        """Sample i with its frozen tokens in place of the image, where the cache has them: a file is not even decoded."""
        if self.stored_tokens is None:
            return None
        sample, key = self.samples[i], self._key(i)
        key, mask = (self._pixels(i).key, self._pixels(i).mask) if key is None else (key, None)
        entry = self.stored_tokens(key)
        if entry is None:
            return None
        mask = self._region(i) if mask is None else mask
        label = -1 if sample.label is None else sample.label
        empty = torch.empty(0, 3, self.preprocess.size, self.preprocess.size)
        mask = self._mask(sample, Pixels(empty, mask, key))
        return Item(empty, label, mask, sample.category, sample.path, i, key, entry)

    def _region(self, i: int) -> Tensor | None:
        """The mask of a file sample, uint8 [S, S], without its image."""
        sample = self.samples[i]
        if not sample.masks or sample.drawing is not None:
            return None
        place = (self.name, self.preprocess, i, "mask")
        if self.cache is not None and (found := self.cache.get(place)) is not None:
            return found.mask
        mask = self._fitted(sample, read_region(sample))
        if self.cache is not None:
            self.cache.put(place, Pixels(torch.empty(0, dtype=torch.uint8), mask, None))
        return mask

    def _tiles(self, epoch: int, i: int) -> Pixels | None:
        """The sample's mosaic in this epoch, where a draw says that it gets one."""
        sample, random = self.samples[i], self._random(epoch, i, MOSAIC)
        if random.random() >= self.augment.mosaic or not self.augment.makes_mosaics_of(sample.dataset):
            return None
        pool = self._category[sample.dataset, sample.category]
        tiles = [read_sample(self.samples[pool[j]]) for j in random.integers(len(pool), size=4)]
        image, mask = mosaic(tiles)
        return Pixels(resize_image(image, self.preprocess), self._fitted(sample, mask), None)

    def _class_aware(self, epoch: int, i: int) -> Pixels | None:
        """A mosaic or a cell of a sample with masks, where a draw says that it gets one in this epoch."""
        sample, options = self.samples[i], self.augment.class_aware
        if not options.probability or sample.kind != "mask" or sample.labels:
            return None
        random = self._random(epoch, i, CLASS_AWARE)
        if random.random() >= options.probability:
            return None
        pool = [j for j in self._category[sample.dataset, sample.category] if sample.label or not self.samples[j].label]

        def draw_other() -> tuple[tuple[Image.Image, Image.Image | None], bool]:
            other = self.samples[pool[int(random.integers(len(pool)))]]
            return read_sample(other), bool(other.label)

        grid = int(random.choice(list(options.grids)))
        view = class_aware_view(read_sample(sample), bool(sample.label), draw_other, grid, random)
        return Pixels(resize_image(view.image, self.preprocess), self._fitted(sample, view.mask), None, view.label)

    def _mask(self, sample: Sample, pixels: Pixels) -> Tensor | None:
        if not self.has_masks:
            return None
        if pixels.mask is not None:
            return pixels.mask
        # In a set with pixel masks, regions of an anomalous image that has an image label only are unknown.
        unknown = sample.kind != "mask" and sample.label != 0
        as_image = self.preprocess.fit != "square" and self.preprocess.mask_size is None
        size = tuple(pixels.image.shape[-2:]) if as_image else (self.preprocess.mask_side,) * 2
        return torch.full(size, VOID if unknown else 0, dtype=torch.uint8)


def pixel_key(content: bytes | memoryview, preprocess: Preprocess) -> str:
    """Names the pixels that a preprocessing makes of the content of a file, or of drawn pixels."""
    digest = hashlib.blake2b(content, digest_size=16)
    digest.update(repr(replace(preprocess, mask_resize="bilinear", mask_size=None)).encode())
    return digest.hexdigest()


def collate(items: Sequence[Item]) -> Batch:
    """Items of one data set as a batch.

    Raises:
        UserError: Images that keep their own sizes, and differ.
    """
    sizes = {tuple(item.image.shape[-2:]) for item in items}
    if len(sizes) > 1:
        shown = " and ".join("x".join(map(str, size)) for size in sorted(sizes)[:2])
        raise UserError(
            f"images of {shown} pixels in one batch: set eval_batch_size=1 (in training: augment.crop, or batch_size=1)"
        )
    masks, semantic = [item.mask for item in items], [item.semantic for item in items]
    return Batch(
        unencoded=torch.cat([item.image if item.image.ndim == 4 else item.image[None] for item in items]),
        label=torch.tensor([item.label for item in items]),
        mask=None if masks[0] is None else torch.stack([mask for mask in masks if mask is not None]),
        category=[item.category for item in items],
        path=[item.path for item in items],
        index=torch.tensor([item.index for item in items]),
        key=[item.key for item in items],
        tokens=[item.tokens for item in items] if any(item.tokens is not None for item in items) else None,
        semantic=None if semantic[0] is None else torch.stack([part for part in semantic if part is not None]),
    )
