"""Groups of VL4AD's options: passes at test time, and what an untrained backbone needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from anomaly_vlm.options import PositiveFloat, PositiveInt, Range


@dataclass(frozen=True)
class PassOptions:
    """Passes over an image at test time, see `SlidingWindow`.

    Args:
        scales: Factors on the image, one pass each.
        window: Height and width of sliding windows in pixels; None for the whole image at once.
        overlap: Overlap of windows, as a fraction of their sides.
        chunk: Masks that exist at full size at a time. It changes the memory needed and nothing else.
    """

    scales: Sequence[PositiveFloat] = (1.0,)
    window: Sequence[PositiveInt] | None = None
    overlap: Annotated[float, Range(low=0, high=1, open_high=True)] = 0.25
    chunk: PositiveInt = 16


@dataclass(frozen=True)
class UntrainedOptions:
    """What an untrained backbone needs; the paper does neither. None: exactly where the backbone's weights are random.

    Args:
        center_text: Whether the mean of the class texts is subtracted from all texts.
        train_backbone: Whether the trunk is trained along.
    """

    center_text: bool | None = None
    train_backbone: bool | None = None
