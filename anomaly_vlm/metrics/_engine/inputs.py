"""What the metrics are given, checked before any state changes: options, and maps and masks as checked images."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor

from anomaly_vlm.metrics._engine.columns import Kind, histogram, non_finite

Mode = Literal["exact", "binned"]
Values = dict[str, float]  # values by name
VoidOnly = Literal["refuse", "warn", "ignore"]  # masks of 0 and 255; ignored where 255 is known to be void
MAX_THREADS = 16  # each sorting thread has a block of memory of its own
STATE_OPTIONS = ("mode", "bins", "aupro_limits", "connectivity", "recall", "legacy", "half")
NO_MEAN = ("threshold", "num_", "shift", "bins")  # a mean of values with these in their names would say nothing


def recall_name(recall: float) -> str:
    """Returns the name of the false-positive rate at a recall: `fpr95` for 0.95."""
    return f"fpr{100 * recall:g}"


def checked_recall(recall: float) -> float:
    """Returns the recall as a float.

    Raises:
        ValueError: The recall is not in (0, 1].
    """
    if not 0 < recall <= 1:
        raise ValueError(f"recall is {recall}: give a number in (0, 1]")
    return float(recall)


@dataclass(frozen=True)
class PixelOptions:
    """The options of `PixelMetrics`, which explains them; `checked` makes them of what a user gives.

    The number of threads and the device do not change the values, so they take no part in comparisons.
    """

    mode: Mode
    bins: int
    aupro_limits: tuple[float, ...]
    connectivity: tuple[int, ...]
    recall: float
    legacy: bool
    half: bool
    workers: int | None = field(compare=False)
    device: torch.device | None = field(compare=False)

    @staticmethod
    def checked(
        mode: str = "exact",
        bins: int = 65536,
        aupro_limits: float | Sequence[float] = (0.3,),
        connectivity: int | Sequence[int] = 8,
        recall: float = 0.95,
        legacy: bool = False,
        half: bool = False,
        workers: int | None = None,
        device: str | torch.device | None = None,
    ) -> PixelOptions:
        """Checks the options and brings them into one form; for their meaning see `PixelMetrics`.

        Raises:
            ValueError: An option is out of its range, or options exclude each other.
        """
        if mode not in ("exact", "binned"):
            raise ValueError(f"mode is {mode!r}: choose exact or binned")
        if int(bins) != bins or bins < 2:
            raise ValueError(f"bins is {bins}: give an integer of at least 2")
        limits = tuple(float(limit) for limit in _as_list(aupro_limits))
        for limit in limits:
            if not 0 < limit <= 1:
                raise ValueError(f"aupro_limits holds {limit}: give false-positive rates in (0, 1]")
        neighbours = tuple(int(count) for count in _as_list(connectivity))
        if not neighbours or len(set(neighbours)) != len(neighbours) or any(n not in (4, 8) for n in neighbours):
            raise ValueError(f"connectivity is {connectivity}: choose 8, 4 or (8, 4)")
        if legacy and mode == "binned":
            raise ValueError("legacy=True needs every score: use mode='exact' (binned maps keep intervals only)")
        if legacy and 8 not in neighbours:
            raise ValueError(f"legacy=True is defined for 8-connected regions: add 8 to connectivity={connectivity}")
        if half and mode == "binned":
            raise ValueError(
                "half=True is a state of its own kind: use mode='exact' (binned is exact for half maps anyway)"
            )
        if workers is not None and workers < 1:
            raise ValueError(f"workers is {workers}: give at least 1, or None for torch's number of threads")
        accelerator = torch.device(device) if device is not None else None
        if accelerator is not None and accelerator.type == "cpu":
            accelerator = None
        if accelerator is not None and mode == "binned":
            raise ValueError(f"device is {accelerator}: binned states live on the CPU; leave device out")
        return PixelOptions(
            mode=cast(Mode, mode),
            bins=int(bins),
            aupro_limits=limits,
            connectivity=tuple(sorted(neighbours, reverse=True)),
            recall=checked_recall(recall),
            legacy=bool(legacy),
            half=bool(half),
            workers=workers,
            device=accelerator,
        )

    @property
    def threads(self) -> int:
        """The number of threads that sort."""
        return min(self.workers or torch.get_num_threads(), MAX_THREADS)

    def describe(self) -> str:
        """Returns the options that two states must share to be merged or loaded, as text."""
        return ", ".join(f"{name}={getattr(self, name)}" for name in STATE_OPTIONS)

    def aupro_names(self) -> list[tuple[str, int, float]]:
        """Returns the name, the row of the region weights and the limit of every AUPRO value."""
        return [
            (_aupro_name(neighbours, limit), row, limit)
            for row, neighbours in enumerate(self.connectivity)
            for limit in self.aupro_limits
        ]


def _aupro_name(neighbours: int, limit: float) -> str:
    """Returns the name of an AUPRO value; the usual connectivity (8) and limit (0.3) are not named."""
    return f"pixel_aupro{'' if neighbours == 8 else f'_conn{neighbours}'}{'' if limit == 0.3 else f'_limit{limit:g}'}"


def _as_list(value: float | Iterable[float]) -> list[float]:
    return [value] if isinstance(value, int | float) else list(value)


def has_mean(name: str) -> bool:
    """Returns whether the mean over categories of the value of this name says something."""
    return not any(word in name for word in NO_MEAN)


def with_means(categories: Mapping[str | None, Values], pooled: Values) -> Values:
    """Names the values of all categories, their means and the pooled values, as `compute` returns them.

    A mean is taken over the categories where the value is defined.

    Args:
        categories: Values of each category by name; the key None stands for images without a category.
        pooled: Values of all images as one category.

    Returns:
        Plain names if no category was given; else `<category>/<name>`, `mean/<name>`, `mean_count/<name>` (over how many
        categories the mean is) and `pooled/<name>`.
    """
    if list(categories) == [None] or not categories:
        return dict(pooled)
    out = {f"{category}/{name}": value for category, values in categories.items() for name, value in values.items()}
    for name in filter(has_mean, pooled):
        defined = [values[name] for values in categories.values() if not math.isnan(values[name])]
        out[f"mean/{name}"] = math.fsum(defined) / len(defined) if defined else math.nan
        if not name.endswith(("/lower", "/upper")):
            out[f"mean_count/{name}"] = float(len(defined))
    out.update({f"pooled/{name}": value for name, value in pooled.items()})
    return out


def as_tensors(values: Values) -> dict[str, Tensor]:
    """Returns the values as zero-dimensional float64 CPU tensors."""
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}


def warn_undefined(values: Values, level: str) -> bool:
    """Warns once if values are undefined because there are only normal or only anomalous items.

    Args:
        values: All values by name.
        level: `pixel` or `image`.

    Returns:
        Whether the warning was given.
    """
    telling = [name for name in values if name.endswith(f"{level}_auroc")]  # another value may be NaN for other reasons
    undefined = [name for name in telling or filter(has_mean, values) if math.isnan(values[name])]
    if not undefined:
        return False
    normal = "image" if undefined[0].endswith("aupimo") else level
    categories = dict.fromkeys(
        name.removesuffix("/lower").removesuffix("/upper").rpartition("/")[0] for name in undefined
    )
    named = ", ".join(f"'{category}'" for category in categories if category not in ("", "mean", "pooled"))
    warnings.warn(
        f"the {level} values{' of ' + named if named else ''} are undefined (NaN): they need anomalous and normal {normal}s",
        UserWarning,
        stacklevel=2,
    )
    return True


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


@dataclass
class MaskKinds:
    """How many masks hold what, to notice 255, which means void, where 1 is meant.

    Attributes:
        plain: Masks that hold 1 and no 255.
        mixed: Masks that hold both.
        void_only: Masks of nothing but 0 and 255: of normal images with void pixels, or by an author who writes 255 for 1.
    """

    plain: int = 0
    mixed: int = 0
    void_only: int = 0

    def add(self, images: Iterable[CheckedImage]) -> None:
        """Counts the masks of checked images."""
        for mask, has_void in ((image.mask, image.has_void) for image in images if image.mask is not None):
            anomalous = not has_void or bool((mask == 1).any())
            self.plain += not has_void
            self.mixed += has_void and anomalous
            self.void_only += has_void and not anomalous and not mask.all()

    def add_counts(self, other: MaskKinds) -> None:
        """Adds the counts of further masks."""
        self.plain, self.mixed = self.plain + other.plain, self.mixed + other.mixed
        self.void_only += other.void_only

    @property
    def no_anomaly(self) -> str:
        """What to say where no pixel is anomalous, but some masks hold 255, as if it stood for that; else empty."""
        if not self.void_only or self.plain or self.mixed:
            return ""
        return (
            f"no pixel of any mask is 1, but {self.void_only} masks hold 255, which means void: give masks of 0 and 1, such"
            " as mask // 255"
        )

    @property
    def two_kinds(self) -> str:
        """What to say where some masks hold 1 and others 255 alone, as if both stood for anomalous; else empty."""
        if not self.void_only or not self.plain or self.mixed:
            return ""
        return (
            f"{self.void_only} masks hold 0 and 255 only, {self.plain} others hold 1: 255 means void, so that the former"
            " have no anomalous pixel; where it stands for one, give mask // 255"
        )

    def refuse(self) -> None:
        """Refuses masks without an anomalous pixel that hold 255, and warns of two kinds of masks.

        Raises:
            ValueError: No pixel is anomalous, and some masks hold void pixels alone.
        """
        if self.no_anomaly:
            raise ValueError(self.no_anomaly)
        if self.two_kinds:
            warnings.warn(self.two_kinds, UserWarning, stacklevel=4)


def refuse_void_only(images: Iterable[CheckedImage]) -> None:
    """Refuses and warns as `MaskKinds.refuse`, of all images together."""
    kinds = MaskKinds()
    kinds.add(images)
    kinds.refuse()
