"""The pixel metrics without torchmetrics: checked updates, a state for each category, values over processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from anomaly_vlm.metrics._engine.curves import Polygon
from anomaly_vlm.metrics._engine.group import Alone
from anomaly_vlm.metrics._engine.inputs import Image, pack_image, split_images, unpack_image
from anomaly_vlm.metrics._engine.ledger import Category, Ledger, pack_text, part_of, unpack_text
from anomaly_vlm.metrics._engine.options import PixelOptions, Values


class PixelEngine:
    """State of one process; `ExactEngine` and `BinnedEngine` say of what kind.

    `prepare` checks and changes nothing, `commit` cannot fail. Where the state cannot subtract, the newest image is kept
    apart until the next one comes: it may be one with which a distributed sampler pads its last batch.
    """

    def __init__(self, options: PixelOptions) -> None:
        self.options = options
        self.moves = options.device is not None  # else states stay on the CPU, wherever the metric is moved
        self.ledger = Ledger()
        self.newest: Image | None = None

    # ---- what a kind of state defines ----------------------------------------------------------------------------------

    def can_subtract(self, image: Image) -> bool:
        """Whether the state can leave the image out later."""
        raise NotImplementedError

    def absorb(self, image: Image) -> None:
        """Copies an image into the state of its category."""
        raise NotImplementedError

    def absorb_other(self, other: Any, repeats: set[int]) -> None:
        """Adds another engine's states, but not its images in `repeats`."""
        raise NotImplementedError

    def results(self, group: Alone, more: Sequence[Category] = ()) -> Values:
        """All values by name; NaN where undefined.

        Args:
            more: categories to name although no pixel of them may have been seen.
        """
        raise NotImplementedError

    def polygons(self, group: Alone, category: Category) -> dict[str, Polygon]:
        """ROC, PR and PRO of a category, of all images for None."""
        raise NotImplementedError

    def pack_states(self) -> dict[str, np.ndarray]:
        """The states by category number, as arrays."""
        raise NotImplementedError

    def unpack_states(self, arrays: Mapping[str, np.ndarray]) -> None:
        raise NotImplementedError

    # ---- common --------------------------------------------------------------------------------------------------------

    def fresh(self) -> PixelEngine:
        """An empty engine with the same options."""
        return type(self)(self.options)

    def prepare(self, maps: Any, masks: Any, category: Any = None, index: Any = None) -> list[Image]:
        """See `split_images`."""
        options = self.options
        images = split_images(maps, masks, category, index, round_to_half=options.half, device=options.device)
        self.ledger.check_categories(image.category for image in images)
        return images

    def commit(self, images: list[Image]) -> None:
        """Copies checked images into the state."""
        for image in images:
            if not self.ledger.enter(image.category, image.index):
                continue
            self._settle()
            if image.index is None or self.can_subtract(image):
                self.absorb(image)
            else:
                mask = None if image.mask is None else image.mask.copy()
                self.newest = replace(image, scores=image.scores.copy(), mask=mask)

    def _settle(self) -> None:
        """The newest image becomes part of its category's state."""
        if self.newest is not None:
            assert self.newest.index is not None
            self.absorb(self.newest)
            self.ledger.merged.add(self.newest.index)
            self.newest = None

    def newest_of(self, category: Category, repeats: set[int]) -> Image | None:
        """The newest image if it is of this category and counts here."""
        newest = self.newest
        return newest if newest and newest.category == category and newest.index not in repeats else None

    def check_merge(self, other: PixelEngine) -> None:
        """Raises `ValueError` where `merge` could not take `other` up."""
        if self.options != other.options:
            raise ValueError(
                f"cannot merge a metric of {other.options.describe()} into one of {self.options.describe()}"
            )
        self.ledger.check_merge(other.ledger)

    def merge(self, other: PixelEngine) -> None:
        """Takes another engine's state up as that of a higher rank."""
        repeats = self.ledger.merge(other.ledger)
        self._settle()
        self.absorb_other(other, repeats)
        if other.newest is not None and other.newest.index not in repeats:
            self.newest = other.newest

    def to(self, device: torch.device) -> None:
        """Follows a metric to a device, if states were asked to live on one."""

    def pack(self) -> dict[str, np.ndarray]:
        """The state as arrays, for checkpoints."""
        out = {"options": pack_text(self.options.describe())}
        out.update({f"ledger.{key}": array for key, array in self.ledger.pack().items()})
        out.update(self.pack_states())
        if self.newest is not None:
            out.update({f"newest.{key}": array for key, array in pack_image(self.newest).items()})
        return out

    def unpack(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Replaces the state. Raises `ValueError` if it was made with other options."""
        made_with = unpack_text(arrays["options"])
        if made_with != self.options.describe():
            raise ValueError(f"the stored metric was made with {made_with}, this one with {self.options.describe()}")
        self.ledger = Ledger.unpack(part_of(arrays, "ledger"))
        self.unpack_states(arrays)
        newest = part_of(arrays, "newest")
        self.newest = unpack_image(newest) if newest else None
