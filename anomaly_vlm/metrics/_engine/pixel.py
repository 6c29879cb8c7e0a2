"""What the pixel engines have in common: checked updates, repeated images, merging and packing, without torchmetrics."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from anomaly_vlm.metrics._engine.columns import histogram
from anomaly_vlm.metrics._engine.curves import Polygon
from anomaly_vlm.metrics._engine.group import Group
from anomaly_vlm.metrics._engine.inputs import ArrayLike, CheckedImage, Names, PixelOptions, Values, check_maps
from anomaly_vlm.metrics._engine.ledger import Category, Ledger, pack_text, select_prefix, unpack_text


class PixelEngine:
    """The state of pixel metrics on one process; `ExactEngine` and `BinnedEngine` define what kind of state it is.

    `prepare` checks a batch and changes nothing; `commit` adds it and cannot fail. If an image cannot be removed from the
    state later, the newest image is kept apart until the next one comes, because it may be one with which a distributed
    sampler pads its last batch.

    Args:
        options: Options of the pixel metrics.
    """

    def __init__(self, options: PixelOptions) -> None:
        self.options = options
        self.moves = options.device is not None  # else states stay on the CPU, wherever the metric is moved
        self.ledger = Ledger()
        self.newest: CheckedImage | None = None

    # ---- what a kind of state defines ----------------------------------------------------------------------------------

    def can_remove(self, image: CheckedImage) -> bool:
        """Returns whether the state can leave the image out later."""
        raise NotImplementedError

    def add_image(self, image: CheckedImage) -> None:
        """Copies an image into the state of its category."""
        raise NotImplementedError

    def merge_states(self, other: Self, repeats: set[int]) -> None:
        """Adds another engine's states without the images of index in `repeats`."""
        raise NotImplementedError

    def results(self, group: Group, more: Sequence[Category] = ()) -> Values:
        """Returns all values by name; NaN where undefined.

        Args:
            group: The processes that share their states.
            more: Categories to name even if no pixel of them was seen.
        """
        raise NotImplementedError

    def polygons(self, group: Group, category: Category) -> dict[str, Polygon]:
        """Returns ROC, PR and PRO of a category; of all images for None."""
        raise NotImplementedError

    def all_polygons(self, group: Group) -> Iterator[tuple[Category, dict[str, Polygon]]]:
        """Yields ROC, PR and PRO of every category, and of all images for None, from one count."""
        raise NotImplementedError

    def pack_states(self) -> dict[str, np.ndarray]:
        """Returns the states as arrays, named by the number of the category."""
        raise NotImplementedError

    def unpack_states(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Replaces the states by those of `pack_states`."""
        raise NotImplementedError

    # ---- common --------------------------------------------------------------------------------------------------------

    def fresh(self) -> Self:
        """Returns an empty engine with the same options."""
        return type(self)(self.options)

    def add(
        self, scores: ArrayLike, targets: ArrayLike, category: Names = None, index: ArrayLike | None = None
    ) -> None:
        """Checks a batch of maps and masks and adds it; see `check_maps`."""
        self.commit(self.prepare(scores, targets, category, index))

    def prepare(
        self, maps: ArrayLike, masks: ArrayLike, category: Names = None, index: ArrayLike | None = None
    ) -> list[CheckedImage]:
        """Checks a batch and returns its images, for `commit`; see `check_maps`.

        Raises:
            ValueError: Something in the batch is not accepted; the state is as before.
        """
        options = self.options
        images = check_maps(maps, masks, category, index, round_to_half=options.half, device=options.device)
        self.ledger.check_categories(image.category for image in images)
        return images

    def commit(self, images: list[CheckedImage]) -> None:
        """Copies checked images into the state."""
        for image in images:
            if not self.ledger.enter(image.category, image.index):
                continue
            self._add_newest()
            if image.index is None or self.can_remove(image):
                self.add_image(image)
            else:
                mask = None if image.mask is None else image.mask.copy()
                self.newest = replace(image, scores=image.scores.copy(), mask=mask)

    def _add_newest(self) -> None:
        """Makes the newest image a part of its category's state, from which it cannot be removed."""
        if self.newest is not None:
            assert self.newest.index is not None
            self.add_image(self.newest)
            self.ledger.merged.add(self.newest.index)
            self.newest = None

    def newest_of(self, category: Category, repeats: set[int]) -> CheckedImage | None:
        """Returns the newest image if it is of this category and its index is not in `repeats`."""
        newest = self.newest
        return newest if newest and newest.category == category and newest.index not in repeats else None

    def check_merge(self, other: Self) -> None:
        """Checks that `merge` can take in another engine.

        Raises:
            ValueError: The options differ, or `Ledger.check_merge` refuses.
        """
        if self.options != other.options:
            raise ValueError(
                f"cannot merge a metric of {other.options.describe()} into one of {self.options.describe()}"
            )
        self.ledger.check_merge(other.ledger)

    def merge(self, other: Self) -> None:
        """Takes in another engine's state as that of a process of higher rank, so that its repeated images drop out."""
        repeats = self.ledger.merge(other.ledger)
        self._add_newest()
        self.merge_states(other, repeats)
        if other.newest is not None and other.newest.index not in repeats:
            self.newest = other.newest

    def to(self, device: torch.device) -> None:
        """Moves the states to a device, if they were asked to live on an accelerator."""

    def follow(self, move: Callable[[Tensor], Tensor]) -> None:
        """Follows the metric to another device, if the states were asked to live on an accelerator.

        Args:
            move: What torch applies to every tensor of the metric.
        """
        if self.moves:
            self.to(move(torch.zeros(1, device=self.options.device or "cpu")).device)

    def pack(self) -> dict[str, np.ndarray]:
        """Returns the state as arrays by name, for checkpoints."""
        out = {"options": pack_text(self.options.describe())}
        out.update({f"ledger.{key}": array for key, array in self.ledger.pack().items()})
        out.update(self.pack_states())
        if self.newest is not None:
            out.update({f"newest.{key}": array for key, array in _pack_image(self.newest).items()})
        return out

    def unpack(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Replaces the state by that of `pack`.

        Raises:
            ValueError: The stored state was made with other options.
        """
        made_with = unpack_text(arrays["options"])
        if made_with != self.options.describe():
            raise ValueError(f"the stored metric was made with {made_with}, this one with {self.options.describe()}")
        self.ledger = Ledger.unpack(select_prefix(arrays, "ledger"))
        self.unpack_states(arrays)
        newest = select_prefix(arrays, "newest")
        self.newest = _unpack_image(newest) if newest else None


def _pack_image(image: CheckedImage) -> dict[str, np.ndarray]:
    """Returns an image on the CPU as arrays by name."""
    names = ("kind", "category", "index", "has_void", "low", "high")
    facts = {name: getattr(image, name) for name in names}
    out = {"facts": pack_text(json.dumps(facts)), "scores": image.scores}
    return out if image.mask is None else {**out, "mask": image.mask}


def _unpack_image(arrays: Mapping[str, np.ndarray]) -> CheckedImage:
    """Returns the image of `_pack_image`."""
    facts, scores = json.loads(unpack_text(arrays["facts"])), arrays["scores"]
    counts = None if facts["kind"] == "float32" else histogram(scores)
    return CheckedImage(scores=scores, mask=arrays.get("mask"), counts=counts, **facts)
