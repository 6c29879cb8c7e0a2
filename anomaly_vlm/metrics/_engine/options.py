"""Options of the pixel metrics, checked once, and the names under which `compute` returns its values."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

import torch
from torch import Tensor

Mode = Literal["exact", "binned"]
Values = dict[str, float]  # values by name
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
    key = f"{level}_auroc"
    undefined = [
        name.removesuffix(key).rstrip("/") for name, value in values.items() if name.endswith(key) and math.isnan(value)
    ]
    if not undefined:
        return False
    named = ", ".join(f"'{category}'" for category in undefined if category not in ("", "mean", "pooled"))
    warnings.warn(
        f"the {level} values{' of ' + named if named else ''} are undefined (NaN): they need anomalous and normal {level}s",
        UserWarning,
        stacklevel=2,
    )
    return True
