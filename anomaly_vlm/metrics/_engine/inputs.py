"""What the pixel metrics accept: maps and masks are checked and become checked images before any state changes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from anomaly_vlm.metrics._engine.columns import Kind, histogram, non_finite

Array = np.ndarray
ArrayLike = Tensor | Array | Sequence[object]
Names = str | Sequence[str | None] | None  # of categories: one for all images, or one an image

FINITE_SCORES = "every score must be finite (float64 is cast to float32 first)"  # the end of an error message
FLOAT_DTYPES = "give float16, bfloat16, float32 or float64"  # likewise


@dataclass
class CheckedImage:
    """One image whose scores and mask have been checked.

    Attributes:
        scores: `[H, W]` float32, or the uint16 bit patterns of a half-precision map; may share memory with the caller's map.
        mask: `[H, W]` uint8 of 0 (normal), 1 (anomalous) and 255 (void); None where every pixel is normal.
        kind: Dtype of the scores.
        has_void: Whether the mask holds 255.
        low: Smallest score, void pixels included; 0 for half-precision maps, whose tables give it.
        high: Largest score, as `low`.
        category: Name of the category, or None where the caller gave none.
        index: Number in the data set, or None where the caller gave none.
        counts: `[65536]` int64, how often each bit pattern occurs in a half-precision map; None for float32.
        on_device: The scores as a tensor where states live on an accelerator; `scores` is empty then.
    """

    scores: Array
    mask: Array | None
    kind: Kind
    has_void: bool
    low: float
    high: float
    category: str | None
    index: int | None
    counts: Array | None = None
    on_device: Tensor | None = None


def as_names(category: Names, count: int) -> list[str | None]:
    """Returns one category name (or None) for each of `count` images.

    Args:
        category: One name an image; a single string, or None, stands for all.
        count: Number of images.

    Raises:
        ValueError: The number of names differs from the number of images, or a name is not a string, is empty, or is one
            that the names of values use themselves (`mean`, `mean_count`, `pooled`).
    """
    if category is None or isinstance(category, str):
        names: list[str | None] = [category] * count
    else:
        names = list(category)
    if len(names) != count:
        raise ValueError(f"category has {len(names)} names for {count} images: give one a image, or one string for all")
    for name in names:
        if name is not None and (not isinstance(name, str) or name in ("mean", "mean_count", "pooled", "")):
            raise ValueError(f"category is {name!r}: give a non-empty string other than mean, mean_count and pooled")
    return names


def as_index(index: ArrayLike | None, count: int) -> Array | None:
    """Returns the numbers of `count` images in the data set as int64 `[count]`, or None where none were given.

    Raises:
        ValueError: The number of entries differs from `count`, or the entries are not integers.
    """
    if index is None:
        return None
    array = to_numpy(index).reshape(-1)
    if array.shape[0] != count or array.dtype.kind not in "iu":
        raise ValueError(
            f"index has shape {tuple(array.shape)} and dtype {array.dtype} for {count} images: give one integer an image"
        )
    return array.astype(np.int64)


def to_numpy(values: object) -> Array:
    """Returns a NumPy view where possible, else a copy; a bfloat16 tensor gives its bit patterns as int16."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        array: Array = values.view(torch.int16).numpy() if values.dtype == torch.bfloat16 else values.numpy()
        return array
    return np.asarray(values)


def widen_bfloat16(values: ArrayLike) -> ArrayLike:
    """Returns a bfloat16 tensor as float32, since NumPy has no bfloat16; everything else as it is."""
    return values.float() if isinstance(values, Tensor) and values.dtype == torch.bfloat16 else values


def check_maps(
    maps: ArrayLike,
    masks: ArrayLike,
    category: Names = None,
    index: ArrayLike | None = None,
    *,
    round_to_half: bool = False,
    device: torch.device | None = None,
) -> list[CheckedImage]:
    """Checks a batch of maps and masks and returns its images.

    Args:
        maps: `[B, H, W]`, `[B, 1, H, W]`, `[1, H, W]` or `[H, W]` of any float dtype, or a list of `[H, W]` of any sizes.
        masks: Like `maps`; bool, integer or float that hold 0 (normal), 1 (anomalous) and 255 (void) only.
        category: One name an image, or one for all.
        index: `[B]` integers, the numbers in the data set.
        round_to_half: Whether to round float32 and float64 maps to float16.
        device: Accelerator to keep float32 scores on; None keeps them on the CPU.

    Raises:
        ValueError: Something in the batch is not accepted; the message names the first bad image and the value found.
    """
    score_list = [as_image(item, "map") for item in _images_of(maps, "map")]
    mask_list = [as_image(item, "mask") for item in _images_of(masks, "mask")]
    if len(score_list) != len(mask_list):
        raise ValueError(f"{len(score_list)} maps but {len(mask_list)} masks: give one mask a map")
    names, numbers = as_names(category, len(score_list)), as_index(index, len(score_list))
    images = []
    for i, (scores, mask, name) in enumerate(zip(score_list, mask_list, names, strict=True)):
        if tuple(scores.shape) != tuple(mask.shape):
            raise ValueError(
                f"image {i}: the map is {_size(scores)} but the mask is {_size(mask)}: give both at the same size"
            )
        number = None if numbers is None else int(numbers[i])
        images.append(_check_image(i, scores, mask, name, number, round_to_half, device))
    return images


def _check_image(
    i: int,
    scores: Tensor | Array,
    mask: Tensor | Array,
    name: str | None,
    number: int | None,
    round_to_half: bool,
    device: torch.device | None,
) -> CheckedImage:
    """Checks image `i` of a batch; see `check_maps`."""
    kind, array, tensor = _as_scores(i, scores, round_to_half, device)
    low = high = 0.0
    counts = None
    if kind != "float32":
        counts = histogram(array)
        bad = non_finite(counts, kind)
    else:
        low, high = _span(array if tensor is None else tensor)
        bad = next((value for value in (low, high) if not math.isfinite(value)), None)
    if bad is not None:
        raise ValueError(f"image {i}: the map holds {bad}: {FINITE_SCORES}")
    labels, has_void = _as_mask(i, mask)
    return CheckedImage(array, labels, kind, has_void, low, high, name, number, counts, tensor)


def _span(scores: Tensor | Array) -> tuple[float, float]:
    """Returns the smallest and the largest score; both are NaN if any score is."""
    if not math.prod(scores.shape):
        return 0.0, 0.0
    if isinstance(scores, Tensor):
        low, high = torch.aminmax(scores)
        return float(low), float(high)
    return float(scores.min()), float(scores.max())


def _as_scores(
    i: int, scores: Tensor | Array, round_to_half: bool, device: torch.device | None
) -> tuple[Kind, Array, Tensor | None]:
    """Brings the scores of image `i` into the form in which they are kept.

    Returns:
        The dtype, the contiguous float32 scores or bit patterns `[H, W]`, and the tensor where scores stay on a device.
    """
    if not isinstance(scores, Tensor):
        if scores.dtype.kind != "f" or scores.dtype.itemsize not in (2, 4, 8):
            raise ValueError(f"image {i}: the map is {scores.dtype}: {FLOAT_DTYPES}")
        if device is not None:
            scores = torch.from_numpy(np.array(scores))
    elif scores.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise ValueError(f"image {i}: the map is {scores.dtype}: {FLOAT_DTYPES}")
    if isinstance(scores, Tensor):
        scores = scores.detach()
        half = scores.dtype in (torch.float16, torch.bfloat16)
        if device is not None and not half and not round_to_half:
            return "float32", np.empty((0, 0), np.float32), scores.to(device, torch.float32, copy=True)
        kind: Kind = "bfloat16" if scores.dtype == torch.bfloat16 else "float16"
    else:
        half, kind = scores.dtype.itemsize == 2, "float16"
    array = to_numpy(scores)
    if not half and not round_to_half:
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows becomes infinite and is found as such
            return "float32", np.ascontiguousarray(array, np.float32), None
    if not half:  # torch converts to float16 20 times as fast as NumPy
        array = torch.from_numpy(np.ascontiguousarray(array)).to(torch.float16).numpy()
    return kind, np.ascontiguousarray(array).view(np.uint16), None


def _as_mask(i: int, mask: Tensor | Array) -> tuple[Array | None, bool]:
    """Returns the mask of image `i` as uint8 `[H, W]` (None if all is normal), and whether it holds void pixels."""
    array = to_numpy(widen_bfloat16(mask))
    if array.dtype.kind not in "buif":
        raise ValueError(f"image {i}: the mask is {array.dtype}: give bool, integer or float")
    if array.dtype == np.bool_:
        labels = np.ascontiguousarray(array).view(np.uint8)
    elif array.dtype == np.uint8:
        labels = np.ascontiguousarray(array)
    else:
        with np.errstate(invalid="ignore"):
            labels = np.ascontiguousarray(array.astype(np.uint8))
        if not np.array_equal(labels, array):  # a fraction, NaN, or a value outside of uint8
            raise _mask_error(i, array)
    largest = int(labels.max()) if labels.size else 0
    if largest == 0:
        return None, False
    if largest == 1:
        return labels, False
    if largest != 255 or np.count_nonzero(labels > 1) != np.count_nonzero(labels == 255):
        raise _mask_error(i, array)
    return labels, True


def _mask_error(i: int, array: Array) -> ValueError:
    bad = array[~np.isin(array, (0, 1, 255))].reshape(-1)[0]
    return ValueError(f"image {i}: the mask holds {bad}: expected 0 (normal), 1 (anomalous) and 255 (void) only")


def as_image(item: object, what: str) -> Tensor | Array:
    """Returns one `[H, W]` array or tensor of an item of shape `[H, W]` or `[1, H, W]`.

    Args:
        item: The array-like of one image.
        what: `map` or `mask`, for the message.

    Raises:
        ValueError: The item has another shape.
    """
    array = item if isinstance(item, Tensor) else np.asarray(item)
    if array.ndim == 3 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != 2:
        raise ValueError(f"the {what} of an image has shape {tuple(array.shape)}: expected [H, W] or [1, H, W]")
    return array


def _images_of(batch: ArrayLike, what: str) -> Iterable[object]:
    """Returns the images of a batch: `[H, W]` and `[1, H, W]` are one image, else the first axis counts images."""
    if isinstance(batch, list | tuple):
        return batch
    array = batch if isinstance(batch, Tensor) else np.asarray(batch)
    if array.ndim == 2:
        return [array]
    if array.ndim == 3 or (array.ndim == 4 and array.shape[1] == 1):
        return array
    raise ValueError(f"the {what}s have shape {tuple(array.shape)}: expected [B, H, W], [B, 1, H, W] or [H, W]")


def _size(array: Tensor | Array) -> str:
    return "x".join(str(side) for side in array.shape)
