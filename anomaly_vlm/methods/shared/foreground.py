"""Which patches of an image show the object: a mask from the first principal component of the image's own patch tokens.

Damm et al., AnomalyDINO (arXiv 2405.14529, section 3.3); SubspaceAD (arXiv 2602.23013) offers the same mask.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_vlm.options import AtLeast, Fraction, PositiveInt, Range


@dataclass(frozen=True)
class MaskOptions:
    """How a foreground mask is made.

    Attributes:
        threshold: Smallest score of a foreground patch, in units of the tokens; 10 was set for DINOv2-S after its norm.
        kernel: Odd side in patches of the square of dilation and closing.
        border: Share of the sides that the centre window leaves out on each side, below one half.
        coverage: Where no more than this share of the centre window is foreground, the sign of the component is turned.
        morphology: `grid`: dilation and closing on the grid, as the paper describes. `column`: on the flattened patches, so
            that the mask grows sideways only and over the ends of rows, as the published code does.
        sign: What makes the sign of the component definite: the largest `loading` (scikit-learn from 1.5 on) or the largest
            `score` (before) is positive.
    """

    threshold: Annotated[float, AtLeast(0)] = 10.0
    kernel: PositiveInt = 3
    border: Annotated[float, Range(low=0, high=0.5, open_high=True)] = 0.2
    coverage: Fraction = 0.35
    morphology: Literal["grid", "column"] = "grid"
    sign: Literal["loading", "score"] = "loading"


class Foreground(NamedTuple):
    """The mask of an image, and what it was made from.

    Attributes:
        component: Scores `[rows, columns]` of the first principal component, in its definite sign, not turned for coverage.
        raw: Bool `[rows, columns]` before dilation and closing.
        mask: Bool `[rows, columns]`.
    """

    component: Tensor
    raw: Tensor
    mask: Tensor


def foreground(tokens: Tensor, options: MaskOptions) -> Foreground:
    """Finds the foreground patches of an image.

    Args:
        tokens: Patches `[rows, columns, D]`, not normalised. Where all are equal, nothing is foreground.
        options: How.
    """
    rows, columns = tokens.shape[:2]
    if rows * columns == 1:  # no component, so all of it counts
        everything = torch.ones(1, 1, dtype=torch.bool, device=tokens.device)
        return Foreground(tokens.new_zeros(1, 1), everything, everything)
    component = first_component(tokens.flatten(0, 1), sign=options.sign).view(rows, columns)
    raw = component > options.threshold
    window = raw[_centre(rows, options.border), _centre(columns, options.border)]
    if window.sum() <= options.coverage * window.numel():
        raw = -component > options.threshold
    grown = raw.float()[None, None]
    if options.morphology == "column":
        grown = grown.view(1, 1, -1, 1)
    grown = _dilated(grown, options.kernel)
    closed = -_dilated(-_dilated(grown, options.kernel), options.kernel)
    return Foreground(component, raw, closed.view(rows, columns) > 0.5)


def first_component(tokens: Tensor, *, sign: Literal["loading", "score"] = "loading") -> Tensor:
    """Scores `[n]` of the first principal component of tokens `[n, D]`; see `MaskOptions` for its sign."""
    x = tokens.double()
    x = x - x.mean(dim=0)
    count, width = x.shape
    wide = count < width
    values, vectors = torch.linalg.eigh(x @ x.T if wide else x.T @ x)
    if not values[-1] > 1e-12 * max(1.0, float(tokens.double().square().sum())):
        return tokens.new_zeros(count)
    loading = x.T @ vectors[:, -1] if wide else vectors[:, -1]
    loading = loading / loading.norm()
    scores = x @ loading
    decisive = loading if sign == "loading" or wide else scores  # scikit-learn always took the loading of wide data
    definite: Tensor = scores * decisive[decisive.abs().argmax()].sign()
    return definite.to(tokens.dtype)


def _centre(side: int, border: float) -> slice:
    return slice(math.floor(side * border), math.floor(side * (1 - border)))


def _dilated(values: Tensor, kernel: int) -> Tensor:
    """The largest value within a square; outside the array nothing counts."""
    return F.max_pool2d(values, kernel, stride=1, padding=kernel // 2)
