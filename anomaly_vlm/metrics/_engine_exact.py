"""Exact mode: scores of every category, and their values over several processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from anomaly_vlm.metrics._curves import Polygon, exact_polygons
from anomaly_vlm.metrics._exact import ExactStore, View
from anomaly_vlm.metrics._group import Alone
from anomaly_vlm.metrics._inputs import Image
from anomaly_vlm.metrics._ledger import Category, part_of, pick
from anomaly_vlm.metrics._names import Values, with_means
from anomaly_vlm.metrics._options import PixelOptions
from anomaly_vlm.metrics._pixel import PixelEngine
from anomaly_vlm.metrics._pixel_exact import count_categories, values


class ExactEngine(PixelEngine):
    """Exact state; see `ExactStore` for its memory."""

    def __init__(self, options: PixelOptions) -> None:
        super().__init__(options)
        self.stores: dict[Category, ExactStore] = {}

    def can_subtract(self, image: Image) -> bool:
        return image.kind == "float32"

    def absorb(self, image: Image) -> None:
        self._store(image.category).add(image)

    def absorb_other(self, other: ExactEngine, repeats: set[int]) -> None:
        for name, store in other.stores.items():
            self._store(name).merge(store, repeats)

    def _store(self, category: Category) -> ExactStore:
        if category not in self.stores:
            self.stores[category] = ExactStore(self.options)
        return self.stores[category]

    def views(self, group: Alone, more: Sequence[Category] = ()) -> dict[Category, View]:
        """What this process knows of every category; the same categories in the same order on every process."""
        repeats = self.ledger.repeats(group)
        out = {}
        for name in self.ledger.order(group, more) or [None]:
            store = self.stores.get(name) or ExactStore(self.options)
            newest = self.newest_of(name, repeats)
            out[name] = (store if newest is None else store.with_image(newest)).view(repeats)
        return out

    def results(self, group: Alone, more: Sequence[Category] = ()) -> Values:
        counted, pooled = count_categories(self.views(group, more), self.options, group)
        named = {name: values(one, self.options) for name, one in counted.items()}
        return with_means(named, values(pooled, self.options))

    def polygons(self, group: Alone, category: Category) -> dict[str, Polygon]:
        counted, pooled = count_categories(self.views(group), self.options, group)
        one = pick(counted, pooled, category)
        regions = one.facts.regions
        return exact_polygons(one.points, one.above, one.facts.normals, int(regions[0]) if regions.size else None)

    def to(self, device: torch.device) -> None:
        if self.moves:
            self.options = replace(self.options, device=None if device.type == "cpu" else device)
            for store in self.stores.values():
                store.to(self.options)

    def pack_states(self) -> dict[str, np.ndarray]:
        return {
            f"store{i}.{key}": array
            for i, name in enumerate(self.ledger.categories)
            if name in self.stores
            for key, array in self.stores[name].pack().items()
        }

    def unpack_states(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.stores = {}
        for i, name in enumerate(self.ledger.categories):
            if parts := part_of(arrays, f"store{i}"):
                self._store(name).unpack(parts)
