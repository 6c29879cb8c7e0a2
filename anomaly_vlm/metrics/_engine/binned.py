"""Binned mode: a sketch for every category and one buffer for all, whatever the number of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from anomaly_vlm.metrics._engine.binned_state import Sketch
from anomaly_vlm.metrics._engine.binned_values import binned_values
from anomaly_vlm.metrics._engine.columns import half_values
from anomaly_vlm.metrics._engine.curves import Polygon, binned_polygons
from anomaly_vlm.metrics._engine.group import Alone
from anomaly_vlm.metrics._engine.inputs import Image
from anomaly_vlm.metrics._engine.ledger import Category, part_of, pick
from anomaly_vlm.metrics._engine.options import PixelOptions, Values, with_means
from anomaly_vlm.metrics._engine.pixel import PixelEngine
from anomaly_vlm.metrics._engine.regions import split

FLUSH = 2 << 20  # buffered pixels


class Pending:
    """Buffered pixels of one category."""

    def __init__(self, connectivities: int) -> None:
        self.spans: list[tuple[int, int]] = []  # of its normal scores in the buffer
        self.scores: list[np.ndarray] = []
        self.weights: list[np.ndarray] = []
        self.regions = np.zeros(connectivities, np.int64)


class BinnedEngine(PixelEngine):
    """Binned state: at most 32 B x `bins` a category, and 8 MB of buffered scores for all."""

    def __init__(self, options: PixelOptions) -> None:
        super().__init__(options)
        self.connectivities = len(options.connectivity)
        self.sketches: dict[Category, Sketch] = {}
        self.buffer = np.empty(FLUSH, np.float32)  # memory that is never touched is never taken
        self.used = 0
        self.found = 0  # buffered anomalous pixels
        self.pending: dict[Category, Pending] = {}

    def can_subtract(self, image: Image) -> bool:
        return False

    def absorb(self, image: Image) -> None:
        parts = split(image, self.options)
        for piece in parts.normals:
            self._buffer(image, piece)  # type: ignore[arg-type]
        if parts.scores.size:
            self._pending(image.category).regions += np.array(parts.regions, np.int64)
        for start in range(0, parts.scores.size, FLUSH // 4):
            some = slice(start, start + FLUSH // 4)
            pending = self._pending(image.category)
            pending.scores.append(as_float32(parts.scores[some], image))
            pending.weights.append(parts.weights[:, some])
            self.found += pending.scores[-1].size
            if self.used + 4 * self.found >= FLUSH:  # their sort needs more room
                self.flush()

    def _buffer(self, image: Image, piece: np.ndarray) -> None:
        done = 0
        while done < piece.size:
            if self.used == FLUSH:
                self.flush()
            take = min(FLUSH - self.used, piece.size - done)
            stop = self.used + take
            self.buffer[self.used : stop] = as_float32(piece[done : done + take], image)
            spans = self._pending(image.category).spans
            if spans and spans[-1][1] == self.used:
                spans[-1] = (spans[-1][0], stop)
            else:
                spans.append((self.used, stop))
            self.used, done = stop, done + take

    def _pending(self, category: Category) -> Pending:
        if category not in self.pending:
            self.pending[category] = Pending(self.connectivities)
        return self.pending[category]

    def flush(self) -> None:
        """Moves the buffer into the sketches. The state stays the same: it depends on the multiset of scores alone."""
        for name, pending in self.pending.items():
            pieces = [self.buffer[start:stop] for start, stop in pending.spans]
            normals = pieces[0] if len(pieces) == 1 else np.concatenate([_NO_SCORES, *pieces])
            normals += np.float32(0.0)  # -0.0 becomes +0.0
            weights = np.concatenate([np.empty((self.connectivities, 0)), *pending.weights], axis=1)
            anomalous = np.concatenate([_NO_SCORES, *pending.scores])
            if name not in self.sketches:
                self.sketches[name] = self._empty()
            self.sketches[name].add(normals, anomalous, weights, pending.regions)
        self.used, self.found, self.pending = 0, 0, {}

    def _empty(self) -> Sketch:
        return Sketch(self.options.bins, self.connectivities)

    def absorb_other(self, other: BinnedEngine, repeats: set[int]) -> None:
        self.flush()
        other.flush()
        for name, sketch in other.sketches.items():
            mine = self.sketches.setdefault(name, self._empty())
            mine.merge([sketch])

    def sketches_of(self, group: Alone, more: Sequence[Category] = ()) -> dict[Category, Sketch]:
        """The sketch of every category over all processes, the same on each."""
        repeats = self.ledger.repeats(group)
        self.flush()
        out = {}
        for name in self.ledger.order(group, more) or [None]:
            mine = self.sketches.get(name, self._empty()).copy()
            newest = self.newest_of(name, repeats)
            if newest is not None:
                parts = split(newest, self.options)
                normals = as_float32(np.concatenate(parts.normals), newest) + np.float32(0.0)
                anomalous = as_float32(parts.scores, newest)
                mine.add(normals, anomalous, parts.weights, np.array(parts.regions, np.int64))
            out[name] = self._gathered(mine, group)
        return out

    def _gathered(self, mine: Sketch, group: Alone) -> Sketch:
        """All ranks' sketches as one, merged in rank order."""
        if group.size == 1:
            return mine
        rows = {key: array for key, array in mine.pack().items() if key != "weights"}
        gathered = {key: group.gather(array) for key, array in rows.items()}
        weights = [group.gather(row) for row in mine.bins.weights]
        parts = []
        for rank in range(group.size):
            part = self._empty()
            arrays = {key: arrays[rank] for key, arrays in gathered.items()}
            size = arrays["normals"].size
            arrays["weights"] = np.array([row[rank] for row in weights]).reshape(self.connectivities, size)
            part.unpack(arrays)
            parts.append(part)
        total = self._empty()
        total.merge(parts)
        return total

    def results(self, group: Alone, more: Sequence[Category] = ()) -> Values:
        sketches = self.sketches_of(group, more)
        named = {name: binned_values(sketch, self.options) for name, sketch in sketches.items()}
        return with_means(named, binned_values(self._pooled(sketches), self.options))

    def _pooled(self, sketches: Mapping[Category, Sketch]) -> Sketch:
        out = self._empty()
        out.merge(list(sketches.values()))
        return out

    def polygons(self, group: Alone, category: Category) -> dict[str, Polygon]:
        sketches = self.sketches_of(group)
        return binned_polygons(pick(sketches, self._pooled(sketches), category))

    def pack_states(self) -> dict[str, np.ndarray]:
        self.flush()
        return {
            f"sketch{i}.{key}": array
            for i, name in enumerate(self.ledger.categories)
            if name in self.sketches
            for key, array in self.sketches[name].pack().items()
        }

    def unpack_states(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.used, self.found, self.pending, self.sketches = 0, 0, {}, {}
        for i, name in enumerate(self.ledger.categories):
            if parts := part_of(arrays, f"sketch{i}"):
                self.sketches[name] = self._empty()
                self.sketches[name].unpack(parts)

    def __getstate__(self) -> dict[str, object]:
        self.flush()
        return {**self.__dict__, "buffer": None}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state, buffer=np.empty(FLUSH, np.float32))


def as_float32(scores: np.ndarray, image: Image) -> np.ndarray:
    """Scores of a half-precision image's bit patterns; float32 ones as they are."""
    return scores if image.kind == "float32" else half_values(scores, image.kind)


_NO_SCORES = np.empty(0, np.float32)
