"""The rows of an index and the batches made of them: what every data set and every method agree on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

LabelKind = Literal["mask", "image", "semantic", "none"]
TENSORS = ("unencoded", "label", "mask", "index", "semantic")  # fields of a `Batch`
VOID, UNKNOWN = 255, 254  # labels: pixels that do not count; unknown objects in semantic labels


class Drawn(NamedTuple):
    """A drawn image.

    Attributes:
        image: uint8 [H, W, 3].
        mask: bool [H, W], True where anomalous; of a sample with `labels`, uint8 [H, W] of its labels.
        caption: One sentence about the picture.
    """

    image: np.ndarray
    mask: np.ndarray
    caption: str


class Drawing(Protocol):
    """An image that is drawn on demand instead of read from a file. Picklable; the same call gives the same pixels."""

    def draw(self) -> Drawn:
        """Draws the image and its mask; the same on every call."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One row of a data set's index.

    Attributes:
        path: Image file, or a readable virtual name (`procedural/test/gear/00012`) where `drawing` is set.
        category: Word for the text prompts and row of the results table.
        label: 0 normal, 1 anomalous, None unknown (prediction).
        masks: Mask files, whose anomalous pixels are united (several in MVTec LOCO); empty for normal samples, for samples
            without region and for sets without masks.
        defect: Defect type, `good` for normal samples.
        split: `train`, `val` or `test` as the data set's authors define it.
        dataset: Name of the data set.
        kind: What the labels are: `mask` (pixel masks), `image` (image labels only), `semantic` (train ids, 254 unknown
            objects, 255 void), `none`.
        mask_threshold: A mask value above it (0-255) is anomalous; None: as `data.masks` reads the file.
        drawing: Draws the image and its mask, for the procedural sets.
        lookup: 256 entries, value in the one mask file -> label (0 / 1 / 255, or train ids where `kind` is `semantic`),
            in place of the threshold.
        max_value: Value of white in image files of more than 8 bits; None: guessed for each file.
    """

    path: str
    category: str
    label: int | None
    masks: tuple[str, ...] = ()
    defect: str = "good"
    split: str = "test"
    dataset: str = ""
    kind: LabelKind = "mask"
    mask_threshold: int | None = None
    drawing: Drawing | None = None
    lookup: tuple[int, ...] | None = None
    max_value: float | None = None

    @property
    def labels(self) -> bool:
        """Whether the mask holds labels with void pixels, which are resized to the nearest, not thresholded."""
        return self.kind == "semantic" or self.lookup is not None


@dataclass(frozen=True)
class Preprocess:
    """How a method wants its pixels; the backbone fills size, mean and std, the method's protocol the rest.

    Attributes:
        size: Side of the square input in pixels; images are squash-resized to it (antialiased, PIL).
        mean: Per RGB channel, of values in [0, 1].
        std: Per RGB channel, of values in [0, 1].
        rgb: Convert to RGB `before` the resize (AdaCLIP) or `after` it (AnomalyCLIP); differs for palette images.
        mask_resize: `bilinear` on the 0/255 mask then `> 0.5` (the zero-shot protocol), or `nearest`.
        mask_size: Side of the masks that maps are compared with in an evaluation, where it is not that of the image
            (several few-shot codes, and SAA: 400).
        fit: `square`: to `size`; `short_side`: the shorter side to `size`, the other in proportion (the same for
            masks); `native`: every image and mask keeps its own size (road scenes).
        frame: With `native`, (height, width) to which all images are resized first, nearest for masks; None: as they
            are.
        interpolation: Interpolation of images: `bicubic` (CLIP's own) or `bilinear` (AnoVL); a `frame` is always
            bilinear.
        decode: `full`: the whole file, as the published codes do; `draft`: large JPEG files at a fraction of their size
            (`images.decode`), with `fit` `square`.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    rgb: Literal["before", "after"] = "before"
    mask_resize: Literal["bilinear", "nearest"] = "bilinear"
    mask_size: int | None = None
    fit: Literal["square", "short_side", "native"] = "square"
    frame: tuple[int, int] | None = None
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    decode: Literal["full", "draft"] = "full"

    @property
    def draft(self) -> int | None:
        """Side in pixels for which JPEG files may be decoded as drafts; None: not at all."""
        return self.size if self.decode == "draft" and self.fit == "square" else None

    @property
    def mask_side(self) -> int:
        """Side in pixels of the masks that maps are compared with."""
        return self.size if self.mask_size is None else self.mask_size


@dataclass
class Batch:
    """What a method sees.

    Attributes:
        unencoded: Normalised images [M, 3, H, W], float32, of the samples without `tokens`, in their order; all B where
            no cache serves any.
        label: [B] int64, 0 normal / 1 anomalous; -1 where unknown (prediction).
        mask: [B, H, W] uint8 of 0 / 1 / 255 (void), or None where the set has no pixel labels.
        category: B strings.
        path: B strings.
        index: [B] int64, position in the data set's index, so that repeats of a distributed sampler count once.
        key: B strings that name the exact pixels of each image, for caches of what a frozen tower makes of them; None
            where the pixels were augmented at random.
        tokens: B entries of the token cache, None where an image is given instead; None: no cache.
        semantic: [B, H, W] uint8 train ids of the known classes, 255 elsewhere; None where the set has no such labels.
    """

    unencoded: Tensor
    label: Tensor
    mask: Tensor | None
    category: list[str]
    path: list[str]
    index: Tensor
    key: list[str | None]
    tokens: list[dict[str, Tensor] | None] | None = None
    semantic: Tensor | None = None

    @property
    def image(self) -> Tensor:
        """Images [B, 3, H, W], float32, normalised.

        Raises:
            RuntimeError: A token cache serves some of them in place of their pixels; read `unencoded` and `tokens`.
        """
        if len(self.unencoded) != len(self):
            raise RuntimeError("some images of this batch come as frozen tokens: read `frozen_tokens(batch)`")
        return self.unencoded

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the input in pixels."""
        return self.unencoded.shape[-2], self.unencoded.shape[-1]

    def to(self, device: torch.device) -> Batch:
        """The batch on a device."""
        moved: dict[str, Any] = {
            name: value.to(device) for name in TENSORS if isinstance(value := getattr(self, name), Tensor)
        }
        tokens = self.tokens and [
            None if entry is None else {name: value.to(device) for name, value in entry.items()}
            for entry in self.tokens
        ]
        return replace(self, **moved, tokens=tokens)

    def __len__(self) -> int:
        return len(self.path)


PixelChange = Callable[[np.ndarray, int], np.ndarray]


@dataclass
class References:
    """The normal images of one category that a few-shot method compares with: its shots.

    Attributes:
        batch: The k images, all of the same category, in the order picked; `key` and `tokens` as in any batch.
        at_size: Side in pixels -> the same images squash-resized to that side, normalised, [k, 3, side, side].
        changed: (pixels uint8 [H, W, 3] at the image's own size, its number) -> changed pixels; called for each image,
            whose changed pixels are then resized and normalised as those of `batch`: k tensors [1, 3, H, W].
    """

    batch: Batch
    at_size: Callable[[int], Tensor]
    changed: Callable[[PixelChange], list[Tensor]]

    @property
    def category(self) -> str:
        """The one category of all images."""
        return self.batch.category[0]

    def __len__(self) -> int:
        return len(self.batch)
