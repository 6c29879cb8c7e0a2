"""Options of the pixel metrics, checked once, and the names of the values that they give."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

Mode = Literal["exact", "binned"]


def recall_name(recall: float) -> str:
    """`fpr95` for 0.95."""
    return f"fpr{100 * recall:g}"


def checked_recall(recall: float) -> float:
    if not 0 < recall <= 1:
        raise ValueError(f"recall is {recall}: give a number in (0, 1]")
    return float(recall)


@dataclass(frozen=True)
class PixelOptions:
    """See `PixelMetrics`; `make` checks and normalises what a user gives."""

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
    def make(
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
        """Raises `ValueError` for an option out of its range or options that exclude each other."""
        if mode not in ("exact", "binned"):
            raise ValueError(f"mode is {mode!r}: choose exact or binned")
        if int(bins) != bins or bins < 2:
            raise ValueError(f"bins is {bins}: give an integer of at least 2")
        limits = tuple(float(limit) for limit in _as_sequence(aupro_limits))
        for limit in limits:
            if not 0 < limit <= 1:
                raise ValueError(f"aupro_limits holds {limit}: give false-positive rates in (0, 1]")
        kinds = tuple(int(kind) for kind in _as_sequence(connectivity))
        if not kinds or len(set(kinds)) != len(kinds) or any(kind not in (4, 8) for kind in kinds):
            raise ValueError(f"connectivity is {connectivity}: choose 8, 4 or (8, 4)")
        if legacy and mode == "binned":
            raise ValueError("legacy=True needs every score: use mode='exact' (binned maps keep intervals only)")
        if legacy and 8 not in kinds:
            raise ValueError(f"legacy=True is defined for 8-connected regions: add 8 to connectivity={connectivity}")
        if half and mode == "binned":
            raise ValueError(
                "half=True is a state of its own kind: use mode='exact' (binned is exact for half maps anyway)"
            )
        if workers is not None and workers < 1:
            raise ValueError(f"workers is {workers}: give at least 1, or None for torch's number of threads")
        place = torch.device(device) if device is not None else None
        if place is not None and place.type == "cpu":
            place = None
        if place is not None and mode == "binned":
            raise ValueError(f"device is {place}: binned states live on the CPU; leave device out")
        return PixelOptions(
            mode,  # type: ignore[arg-type]
            int(bins),
            limits,
            tuple(sorted(kinds, reverse=True)),
            checked_recall(recall),
            bool(legacy),
            bool(half),
            workers,
            place,
        )

    @property
    def threads(self) -> int:
        """Threads that sort; each has a block of memory of its own, so there are at most 16."""
        return min(self.workers or torch.get_num_threads(), 16)

    def describe(self) -> str:
        """What two states must share to be merged or loaded."""
        return ", ".join(f"{name}={getattr(self, name)}" for name in _STATE_OPTIONS)

    def aupro_names(self) -> list[tuple[str, int, float]]:
        """Name, row of the weights and limit of every AUPRO value."""
        return [
            (
                f"pixel_aupro{'' if kind == 8 else f'_conn{kind}'}{'' if limit == 0.3 else f'_limit{limit:g}'}",
                row,
                limit,
            )
            for row, kind in enumerate(self.connectivity)
            for limit in self.aupro_limits
        ]


def _as_sequence(value: float | Iterable[float]) -> list[float]:
    return [value] if isinstance(value, int | float) else list(value)


_STATE_OPTIONS = ("mode", "bins", "aupro_limits", "connectivity", "recall", "legacy", "half")


Values = dict[str, float]
NO_MEAN = ("threshold", "num_", "shift", "bins")  # parts of names of which a mean would say nothing


def has_mean(name: str) -> bool:
    return not any(part in name for part in NO_MEAN)


def with_means(categories: Mapping[str | None, Values], pooled: Values) -> Values:
    """Plain names where no category was given; else `<category>/`, `mean/`, `mean_count/` and `pooled/` names.

    The mean is over the categories where the value is defined.
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
    """0-dim float64 CPU tensors."""
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}


def warn_undefined(values: Values, what: str) -> bool:
    """One warning that names where values are undefined because one class is missing; whether it was given."""
    key = f"{what}_auroc"
    places = [
        name.removesuffix(key).rstrip("/") for name, value in values.items() if name.endswith(key) and math.isnan(value)
    ]
    if not places:
        return False
    named = ", ".join(f"'{place}'" for place in places if place not in ("", "mean", "pooled"))
    warnings.warn(
        f"the {what} values{' of ' + named if named else ''} are undefined (NaN): they need anomalous and normal {what}s",
        UserWarning,
        stacklevel=2,
    )
    return True
