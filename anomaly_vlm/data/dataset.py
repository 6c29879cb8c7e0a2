"""Samples as a map-style torch data set, and batches of its items."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from anomaly_vlm.caching.tokens import TokenCache
from anomaly_vlm.data.augment import TrainingAugmentation
from anomaly_vlm.data.class_aware import class_aware_view
from anomaly_vlm.data.images import as_rgb, read_bytes, shown_size
from anomaly_vlm.data.pixels import PixelCache, Pixels, is_usual, pixel_key
from anomaly_vlm.data.threads import side_by_side
from anomaly_vlm.data.transforms import (
    mosaic,
    normalise,
    read_region,
    read_resized,
    read_sample,
    resize_image,
    resize_labels,
    resize_mask,
)
from anomaly_vlm.data.types import UNKNOWN, VOID, Batch, Preprocess, Sample
from anomaly_vlm.errors import UserError

MOSAIC, AUGMENT, CROP, CLASS_AWARE = 1, 2, 3, 4  # streams of random numbers
StoredTokens = Callable[[str | None], dict[str, Tensor] | None]
Position = int | tuple[int, int]


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


class AnomalyDataset(Dataset[Item]):
    """Items of samples. `[i]` is sample i of epoch 0, `[epoch, i]` that of another epoch.

    Everything random comes from (seed, epoch, i): order, batches, threads and worker processes change nothing. A loader asks
    for a batch at once; where it has no worker processes, the samples of the batch are made by threads, one a core.

    Args:
        samples: Samples of one side.
        preprocess: The method's.
        seed: Seed of mosaics and augmentations.
        augment: What training images go through; None for none.
        cache: Cache of preprocessed pixels, or None.
        name: Name of this data set within the cache.
        stored_tokens: Key of an image's pixels -> its frozen tokens, where they are stored. None stores none.
        stored_pixels: Cache on disk of the resized images of files, so that later epochs and runs decode nothing; or None.
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
        stored_pixels: TokenCache | None = None,
    ) -> None:
        self.samples, self.preprocess = samples, preprocess
        self.seed, self.augment = seed, augment or TrainingAugmentation()
        self.cache, self.name, self.stored_tokens, self.stored_pixels = cache, name, stored_tokens, stored_pixels
        self._keys: dict[int, str] = {}
        self._usual: dict[int, bool] = {}
        self.has_masks = any(sample.kind in ("mask", "semantic") for sample in samples)
        self._category: dict[tuple[str, str], list[int]] = {}
        for i, sample in enumerate(samples):
            self._category.setdefault((sample.dataset, sample.category), []).append(i)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, position: Position) -> Item:
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: Sequence[Position]) -> list[Item]:
        """The items of a batch, or of several; made by threads, as decoding and resizing leave the interpreter free."""
        places = [position if isinstance(position, tuple) else (0, position) for position in positions]
        made = side_by_side(lambda place: self._made(*place) if self._is_usual(place[1]) else None, places)
        return [self._made(*place) if item is None else item for place, item in zip(places, made, strict=True)]

    def _made(self, epoch: int, i: int) -> Item:
        found = self._served(epoch, i)
        return found if isinstance(found, Item) else self._item(epoch, i, found or self._view(epoch, i))

    def _is_usual(self, i: int) -> bool:
        """Whether sample i may be made while others are."""
        if i not in self._usual:
            self._usual[i] = is_usual(self.samples[i])
        return self._usual[i]

    def _view(self, epoch: int, i: int) -> Pixels:
        """What is made of a sample in an epoch before its pixels are changed: a mosaic, a view by class, or the sample."""
        return self._tiles(epoch, i) or self._class_aware(epoch, i) or self._pixels(i)

    def _item(self, epoch: int, i: int, pixels: Pixels) -> Item:
        sample, operations, crop = self.samples[i], self.augment.operations, self.augment.crop
        image, mask, key = pixels.image.float().div_(255), self._mask(sample, pixels), pixels.key
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
        return np.asarray(as_rgb(read_sample(self.samples[i])[0]))

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
        made = self._stored(i) or self._decoded(i)
        if self.cache is not None:
            self.cache.put(place, made)
        return made

    def _stored(self, i: int) -> Pixels | None:
        """A file's pixels as an earlier epoch or run has resized and stored them; only its mask is decoded."""
        if self.stored_pixels is None or (entry := self.stored_pixels.get(self._key(i))) is None:
            return None
        sample = self.samples[i]
        mask = self._fitted(sample, read_region(sample)) if sample.masks else None
        return Pixels(entry["image"], mask, self._key(i))

    def _decoded(self, i: int) -> Pixels:
        sample = self.samples[i]
        pixels, mask = read_resized(sample, self.preprocess)
        key = self._key(i)
        if self.stored_pixels is not None:
            self.stored_pixels.put(key, {"image": pixels})
        region = None if mask is None else self._fitted(sample, mask)
        return Pixels(pixels, region, key or pixel_key(pixels.numpy().data, self.preprocess))

    def _fitted(self, sample: Sample, mask: Image.Image) -> Tensor:
        return (resize_labels if sample.labels else resize_mask)(mask, self.preprocess)

    def _key(self, i: int) -> str | None:
        """The key of a file's pixels, which need not be decoded; None for a drawn sample, whose pixels must be seen."""
        sample = self.samples[i]
        if sample.drawing is not None:
            return None
        if i not in self._keys:
            self._keys[i] = pixel_key(read_bytes(sample.path), self.preprocess, sample.max_value)
        return self._keys[i]

    def _served(self, epoch: int, i: int) -> Item | Pixels | None:
        """Sample i with its frozen tokens in place of the image, where the cache has them: a file is not even decoded.

        A drawn sample is drawn for its key; where no tokens are stored, its pixels are returned. Else None.
        """
        if self.stored_tokens is None or self._is_changed(epoch, i):
            return None
        sample, key = self.samples[i], self._key(i)
        drawn = self._pixels(i) if key is None else None
        key = key if drawn is None else drawn.key
        entry = self.stored_tokens(key)
        if entry is None:
            return drawn
        mask = self._region(i) if drawn is None else drawn.mask
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

    def _is_changed(self, epoch: int, i: int) -> bool:
        """Whether a sample's pixels differ from the file's in this epoch."""
        always = self.augment.operations is not None or self.augment.crop is not None
        return always or self._mosaic_draw(epoch, i) is not None or self._class_draw(epoch, i) is not None

    def _mosaic_draw(self, epoch: int, i: int) -> np.random.Generator | None:
        """What draws the sample's mosaic in this epoch; None where the first draw says that it gets none."""
        random = self._random(epoch, i, MOSAIC)
        if random.random() >= self.augment.mosaic or not self.augment.makes_mosaics_of(self.samples[i].dataset):
            return None
        return random

    def _tiles(self, epoch: int, i: int) -> Pixels | None:
        """The sample's mosaic in this epoch, where a draw says that it gets one."""
        sample, random = self.samples[i], self._mosaic_draw(epoch, i)
        if random is None:
            return None
        pool = self._category[sample.dataset, sample.category]
        tiles = [read_sample(self.samples[pool[j]]) for j in random.integers(len(pool), size=4)]
        image, mask = mosaic(tiles)
        return Pixels(resize_image(image, self.preprocess), self._fitted(sample, mask), None)

    def _class_draw(self, epoch: int, i: int) -> np.random.Generator | None:
        """What draws the sample's view by class in this epoch; None where it gets none."""
        sample, options = self.samples[i], self.augment.class_aware
        if not options.probability or sample.kind != "mask" or sample.labels:
            return None
        random = self._random(epoch, i, CLASS_AWARE)
        return None if random.random() >= options.probability else random

    def _class_aware(self, epoch: int, i: int) -> Pixels | None:
        """A mosaic or a cell of a sample with masks, where a draw says that it gets one in this epoch."""
        sample, options, random = self.samples[i], self.augment.class_aware, self._class_draw(epoch, i)
        if random is None:
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
