"""From values of each category to the dict that `compute` returns."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

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
