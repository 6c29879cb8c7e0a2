"""What `update` accepts: maps, masks, scores and labels checked and taken apart into images before any state changes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anomaly_vlm.metrics._engine.columns import Kind, histogram, non_finite

Array = np.ndarray
ArrayLike = Tensor | Array | Sequence[Any]


@dataclass
class Image:
    """One checked image.

    Attributes:
        scores: [H, W] float32, or the uint16 bit patterns of a half-precision map; shares memory with the caller's map.
        mask: [H, W] uint8 of 0 / 1 / 255, or None where every pixel is normal.
        kind: dtype of the scores.
        has_void: whether the mask holds 255.
        low, high: smallest and largest score, void pixels included.
        category: name, or None where the caller gave none.
        index: number in the data set, or None where the caller gave none.
        counts: [65536] how often each bit pattern occurs, for half-precision maps.
        on_device: the scores as a tensor, where states live on an accelerator; `scores` is then empty.
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


def as_names(category: str | Sequence[str] | None, count: int) -> list[str | None]:
    """One name an image; a single string stands for all."""
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
    """[count] int64 numbers in the data set."""
    if index is None:
        return None
    array = to_numpy(index).reshape(-1)
    if array.shape[0] != count or array.dtype.kind not in "iu":
        raise ValueError(
            f"index has shape {tuple(array.shape)} and dtype {array.dtype} for {count} images: give one integer an image"
        )
    return array.astype(np.int64)


def to_numpy(values: Any) -> Array:
    """A NumPy view where possible; a bfloat16 tensor gives its bit patterns as int16."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return values.view(torch.int16).numpy() if values.dtype == torch.bfloat16 else values.numpy()
    return np.asarray(values)


def split_images(
    maps: ArrayLike,
    masks: ArrayLike,
    category: str | Sequence[str] | None = None,
    index: ArrayLike | None = None,
    *,
    round_to_half: bool = False,
    device: torch.device | None = None,
) -> list[Image]:
    """Checks a batch and takes it apart.

    Args:
        maps: [B, H, W], [B, 1, H, W], [1, H, W] or [H, W] of any float dtype, or a sequence of [H, W] of any sizes.
        masks: like `maps`; bool, integer or float holding only 0, 1 and 255 (void).
        category: one name an image, or one for all.
        index: [B] integers.
        round_to_half: round float32 and float64 maps to float16.
        device: keep the scores there; None: on the CPU.

    Raises:
        ValueError: names the first bad image and the value found.
    """
    score_list = [as_image(part, "map") for part in _parts(maps, "map")]
    mask_list = [as_image(part, "mask") for part in _parts(masks, "mask")]
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
        images.append(_check(i, scores, mask, name, number, round_to_half, device))
    return images


def _check(
    i: int,
    scores: Tensor | Array,
    mask: Tensor | Array,
    name: str | None,
    number: int | None,
    round_to_half: bool,
    device: torch.device | None,
) -> Image:
    kind, array, tensor = _as_scores(i, scores, round_to_half, device)
    low = high = 0.0  # a half-precision map's table knows them
    counts = None
    if kind != "float32":
        counts = histogram(array)
        bad = non_finite(counts, kind)
    else:
        low, high = _span(array if tensor is None else tensor)
        bad = next((value for value in (low, high) if not math.isfinite(value)), None)
    if bad is not None:
        raise ValueError(f"image {i}: the map holds {bad}: {_FINITE}")
    labels, has_void = _as_mask(i, mask)
    return Image(array, labels, kind, has_void, low, high, name, number, counts, tensor)


def _span(scores: Tensor | Array) -> tuple[float, float]:
    """Smallest and largest score; NaN if there is one."""
    if not math.prod(scores.shape):
        return 0.0, 0.0
    if isinstance(scores, Tensor):
        low, high = torch.aminmax(scores)
        return float(low), float(high)
    return float(scores.min()), float(scores.max())


_FINITE = "every score must be finite (float64 is cast to float32 first)"


def _as_scores(
    i: int, scores: Tensor | Array, round_to_half: bool, device: torch.device | None
) -> tuple[Kind, Array, Tensor | None]:
    """Kind, contiguous float32 array or bit patterns, and the tensor on the device if states live there."""
    if not isinstance(scores, Tensor):
        if scores.dtype.kind != "f" or scores.dtype.itemsize not in (2, 4, 8):
            raise ValueError(f"image {i}: the map is {scores.dtype}: give float16, bfloat16, float32 or float64")
        if device is not None:
            scores = torch.from_numpy(np.array(scores))
    elif scores.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise ValueError(f"image {i}: the map is {scores.dtype}: give float16, bfloat16, float32 or float64")
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
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is found as infinite
            return "float32", np.ascontiguousarray(array, np.float32), None
    if not half:  # torch converts 20 times as fast as NumPy
        array = torch.from_numpy(np.ascontiguousarray(array)).to(torch.float16).numpy()
    return kind, np.ascontiguousarray(array).view(np.uint16), None


def _as_mask(i: int, mask: Tensor | Array) -> tuple[Array | None, bool]:
    """uint8 [H, W] (None if all normal), and whether it holds void pixels."""
    array = to_numpy(_widened(mask))
    if array.dtype.kind not in "buif":
        raise ValueError(f"image {i}: the mask is {array.dtype}: give bool, integer or float")
    if array.dtype == np.bool_:
        labels = np.ascontiguousarray(array).view(np.uint8)
    elif array.dtype == np.uint8:
        labels = np.ascontiguousarray(array)
    else:
        with np.errstate(invalid="ignore"):
            labels = np.ascontiguousarray(array.astype(np.uint8))
        if not np.array_equal(labels, array):  # a fraction, NaN, or outside uint8
            raise _mask_error(i, array)
    top = int(labels.max()) if labels.size else 0
    if top == 0:
        return None, False
    if top == 1:
        return labels, False
    if top != 255 or np.count_nonzero(labels > 1) != np.count_nonzero(labels == 255):
        raise _mask_error(i, array)
    return labels, True


def _mask_error(i: int, array: Array) -> ValueError:
    bad = array[~np.isin(array, (0, 1, 255))].reshape(-1)[0]
    return ValueError(f"image {i}: the mask holds {bad}: expected 0 (normal), 1 (anomalous) and 255 (void) only")


def as_image(part: Any, what: str) -> Tensor | Array:
    """One [H, W] array of [H, W] or [1, H, W]."""
    array = part if isinstance(part, Tensor) else np.asarray(part)
    if array.ndim == 3 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != 2:
        raise ValueError(f"the {what} of an image has shape {tuple(array.shape)}: expected [H, W] or [1, H, W]")
    return array


def _parts(batch: Any, what: str) -> Iterable[Any]:
    """The images of a batch: [H, W] and [1, H, W] are one image, else the first axis counts images."""
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


def pack_image(image: Image) -> dict[str, Array]:
    """An image on the CPU as arrays."""
    facts = {
        "kind": image.kind,
        "category": image.category,
        "index": image.index,
        "has_void": image.has_void,
        "low": image.low,
        "high": image.high,
    }
    out = {"facts": np.frombuffer(json.dumps(facts).encode(), np.uint8).copy(), "scores": image.scores}
    return out if image.mask is None else {**out, "mask": image.mask}


def unpack_image(arrays: Mapping[str, Array]) -> Image:
    facts, scores = json.loads(arrays["facts"].tobytes()), arrays["scores"]
    counts = None if facts["kind"] == "float32" else histogram(scores)
    return Image(scores=scores, mask=arrays.get("mask"), counts=counts, **facts)


def check_image_scores(scores: ArrayLike, labels: ArrayLike) -> tuple[Array, Array]:
    """[B] float32 scores (`-0.0` as `+0.0`) and [B] bool labels.

    Raises:
        ValueError: a score is not finite, a label is not 0 / 1, or the lengths differ.
    """
    values, marks = (to_numpy(_widened(part)).reshape(-1) for part in (scores, labels))
    if values.dtype.kind not in "fiu" and values.size:
        raise ValueError(f"the image scores are {values.dtype}: give a float dtype")
    with np.errstate(over="ignore", invalid="ignore"):
        values = values.astype(np.float32) + np.float32(0.0)
    if values.shape != marks.shape:
        raise ValueError(f"{values.shape[0]} image scores but {marks.shape[0]} labels: give one label a score")
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise ValueError(f"image {bad[0]}: the score is {values[bad[0]]}: {_FINITE}")
    anomalous = marks == 1
    bad = np.flatnonzero(~(anomalous | (marks == 0)))
    if bad.size:
        raise ValueError(f"image {bad[0]}: the label is {marks[bad[0]]}: expected 0 (normal) or 1 (anomalous)")
    return values, anomalous


def _widened(values: Any) -> Any:
    """bfloat16, which NumPy does not know, as float32."""
    return values.float() if isinstance(values, Tensor) and values.dtype == torch.bfloat16 else values
