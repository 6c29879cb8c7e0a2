"""The pixel metrics without torchmetrics: checked updates, a state for each category, values over processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from anomaly_vlm.metrics._exact import ExactStore, View
from anomaly_vlm.metrics._group import Alone
from anomaly_vlm.metrics._inputs import Image, pack_image, split_images, unpack_image
from anomaly_vlm.metrics._ledger import Category, Ledger, pack_text, part_of, unpack_text
from anomaly_vlm.metrics._names import Values, with_means
from anomaly_vlm.metrics._options import PixelOptions
from anomaly_vlm.metrics._pixel_exact import count_categories, values


class PixelEngine:
    """State of one process. `prepare` checks and changes nothing, `commit` cannot fail."""

    what = "pixel"

    def __init__(self, options: PixelOptions) -> None:
        self.options = options
        self.moves = options.device is not None  # else states stay on the CPU, wherever the metric is moved
        self.ledger = Ledger()
        self.stores: dict[Category, ExactStore] = {}
        self.newest: Image | None = None  # kept apart where the state cannot subtract: it may be a sampler's repeat

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
                self._store(image.category).add(image)
            else:
                mask = None if image.mask is None else image.mask.copy()
                self.newest = replace(image, scores=image.scores.copy(), mask=mask)

    def can_subtract(self, image: Image) -> bool:
        """Whether the state can leave the image out later."""
        return image.kind == "float32"

    def _settle(self) -> None:
        """The newest image becomes part of its category's state."""
        if self.newest is not None:
            assert self.newest.index is not None
            self._store(self.newest.category).add(self.newest)
            self.ledger.merged.add(self.newest.index)
            self.newest = None

    def _store(self, category: Category) -> ExactStore:
        if category not in self.stores:
            self.stores[category] = ExactStore(self.options)
        return self.stores[category]

    def _complete(self, category: Category, repeats: set[int]) -> ExactStore:
        """The state of a category with the newest image, unless that is a repeat; nothing changes."""
        store = self.stores.get(category) or ExactStore(self.options)
        newest = self.newest
        if newest is not None and newest.category == category and newest.index not in repeats:
            return store.with_image(newest)
        return store

    def views(self, group: Alone, more: Sequence[Category] = ()) -> dict[Category, View]:
        """What this process knows of every category; the same categories in the same order on every process."""
        repeats = self.ledger.repeats(group)
        names = self.ledger.order(group, more) or [None]
        return {name: self._complete(name, repeats).view(repeats) for name in names}

    def results(self, group: Alone, more: Sequence[Category] = ()) -> Values:
        """All values by name; NaN where undefined.

        Args:
            more: categories to name although no pixel of them may have been seen.
        """
        counted, pooled = count_categories(self.views(group, more), self.options, group)
        return with_means(
            {name: values(one, self.options) for name, one in counted.items()}, values(pooled, self.options)
        )

    def pack(self) -> dict[str, np.ndarray]:
        """The state as arrays, for checkpoints."""
        out = {"options": pack_text(self.options.describe())}
        out.update({f"ledger.{key}": array for key, array in self.ledger.pack().items()})
        for i, name in enumerate(self.ledger.categories):
            if name in self.stores:
                out.update({f"store{i}.{key}": array for key, array in self.stores[name].pack().items()})
        if self.newest is not None:
            out.update({f"newest.{key}": array for key, array in pack_image(self.newest).items()})
        return out

    def unpack(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Replaces the state. Raises `ValueError` if it was made with other options."""
        made_with = unpack_text(arrays["options"])
        if made_with != self.options.describe():
            raise ValueError(f"the stored metric was made with {made_with}, this one with {self.options.describe()}")
        self.ledger = Ledger.unpack(part_of(arrays, "ledger"))
        self.stores, self.newest = {}, None
        for i, name in enumerate(self.ledger.categories):
            parts = part_of(arrays, f"store{i}")
            if parts:
                self._store(name).unpack(parts)
        newest = part_of(arrays, "newest")
        if newest:
            self.newest = unpack_image(newest)

    def to(self, device: torch.device) -> None:
        """Moves states that were asked to live on an accelerator."""
        if self.moves:
            self.options = replace(self.options, device=None if device.type == "cpu" else device)
            for store in self.stores.values():
                store.to(self.options)

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
        for name, store in other.stores.items():
            self._store(name).merge(store, repeats)
        newest = other.newest
        if newest is not None and newest.index not in repeats:
            self.newest = newest
