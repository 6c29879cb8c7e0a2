"""What a metric needs of an engine, whatever the engine keeps; and the choice of the pixel engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, Self

import numpy as np
from torch import Tensor

from anomaly_vlm.metrics._engine.binned import BinnedEngine
from anomaly_vlm.metrics._engine.curves import Polygon
from anomaly_vlm.metrics._engine.exact import ExactEngine
from anomaly_vlm.metrics._engine.group import Group
from anomaly_vlm.metrics._engine.inputs import ArrayLike, Names
from anomaly_vlm.metrics._engine.ledger import Category, Ledger
from anomaly_vlm.metrics._engine.options import PixelOptions, Values
from anomaly_vlm.metrics._engine.pixel import PixelEngine


class Engine(Protocol):
    """The state of a metric on one process, and its values over all processes.

    Attributes:
        ledger: Which images were seen and which of them count.
    """

    ledger: Ledger

    def fresh(self) -> Self:
        """Returns an empty engine with the same options."""
        ...

    def add(
        self, scores: ArrayLike, targets: ArrayLike, category: Names = None, index: ArrayLike | None = None
    ) -> None:
        """Checks a batch and adds it.

        Args:
            scores: Maps or image scores.
            targets: Masks or image labels.
            category: One name an image, or one for all.
            index: `[B]` integers, the numbers in the data set.

        Raises:
            ValueError: Something in the batch is not accepted; the state is as before.
        """
        ...

    def results(self, group: Group, more: Sequence[Category] = ()) -> Values:
        """Returns all values by name, the same on every process; NaN where undefined.

        Args:
            group: The processes that share their states; each of them has to call this.
            more: Categories to name even if no image of them was seen.
        """
        ...

    def polygons(self, group: Group, category: Category) -> dict[str, Polygon]:
        """Returns the curves of a category by name; of all images for None. Every process of the group has to call this."""
        ...

    def check_merge(self, other: Self) -> None:
        """Checks that `merge` can take in another engine.

        Raises:
            ValueError: It cannot.
        """
        ...

    def merge(self, other: Self) -> None:
        """Takes in another engine's state as that of a process of higher rank, so that its repeated images drop out."""
        ...

    def follow(self, move: Callable[[Tensor], Tensor]) -> None:
        """Follows the metric to another device, if the state was asked to live on an accelerator.

        Args:
            move: What torch applies to every tensor of the metric.
        """
        ...

    def pack(self) -> dict[str, np.ndarray]:
        """Returns the state as arrays by name, for checkpoints."""
        ...

    def unpack(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Replaces the state by that of `pack`.

        Raises:
            ValueError: The stored state was made with other options.
        """
        ...


def pixel_engine(options: PixelOptions) -> PixelEngine:
    """Returns an empty pixel engine for the options."""
    return ExactEngine(options) if options.mode == "exact" else BinnedEngine(options)
