"""Binned mode: a sketch for every category and one buffer of pixels for all, whatever the number of images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Self

import numpy as np

from anomaly_vlm.metrics._engine.columns import half_values
from anomaly_vlm.metrics._engine.curves import Polygon, binned_polygons
from anomaly_vlm.metrics._engine.group import Group
from anomaly_vlm.metrics._engine.inputs import CheckedImage, PixelOptions, Values, with_means
from anomaly_vlm.metrics._engine.ledger import Category, select_category, select_prefix
from anomaly_vlm.metrics._engine.pixel import PixelEngine
from anomaly_vlm.metrics._engine.regions import split_image
from anomaly_vlm.metrics._engine.sketch import Sketch, binned_values

FLUSH = 2 << 20  # pixels in the buffer
NO_SCORES = np.empty(0, np.float32)


class BufferedPixels:
    """The pixels of one category that are not in its sketch yet; C connectivities.

    Args:
        connectivities: Number of connectivities.

    Attributes:
        spans: Where its normal scores lie in the engine's buffer.
        scores: Arrays `[M]` float32 of anomalous scores.
        weights: Arrays `[C, M]` float64 of their weights.
        regions: `[C]` int64 number of regions.
    """

    def __init__(self, connectivities: int) -> None:
        self.spans: list[tuple[int, int]] = []
        self.scores: list[np.ndarray] = []
        self.weights: list[np.ndarray] = []
        self.regions = np.zeros(connectivities, np.int64)


class BinnedEngine(PixelEngine):
    """Pixel engine with sketches: at most 32 B x `bins` a category, and 8 MB of buffered scores for all.

    Args:
        options: Options of the pixel metrics.
    """

    def __init__(self, options: PixelOptions) -> None:
        super().__init__(options)
        self.connectivities = len(options.connectivity)
        self.sketches: dict[Category, Sketch] = {}
        self.buffer = np.empty(FLUSH, np.float32)  # the system gives no memory to pages that were never written
        self.used = 0  # normal scores in the buffer
        self.num_anomalous = 0  # anomalous pixels that are buffered
        self.buffered: dict[Category, BufferedPixels] = {}

    def can_remove(self, image: CheckedImage) -> bool:
        """Returns False: bins only have sums."""
        return False

    def add_image(self, image: CheckedImage) -> None:
        """Buffers an image; the sketches change when the buffer is full."""
        pixels = split_image(image, self.options)
        for normals in pixels.normals:
            assert isinstance(normals, np.ndarray)  # binned states live on the CPU
            self._buffer_normals(image, normals)
        if pixels.scores.size:
            self._buffered_of(image.category).regions += np.array(pixels.regions, np.int64)
        for start in range(0, pixels.scores.size, FLUSH // 4):
            some = slice(start, start + FLUSH // 4)
            buffered = self._buffered_of(image.category)
            buffered.scores.append(as_float32(pixels.scores[some], image))
            buffered.weights.append(pixels.weights[:, some])
            self.num_anomalous += buffered.scores[-1].size
            if self.used + 4 * self.num_anomalous >= FLUSH:  # sorting anomalous scores takes four times the room
                self.flush()

    def _buffer_normals(self, image: CheckedImage, scores: np.ndarray) -> None:
        """Copies normal scores `[M]` of an image into the buffer."""
        done = 0
        while done < scores.size:
            if self.used == FLUSH:
                self.flush()
            take = min(FLUSH - self.used, scores.size - done)
            stop = self.used + take
            self.buffer[self.used : stop] = as_float32(scores[done : done + take], image)
            spans = self._buffered_of(image.category).spans
            if spans and spans[-1][1] == self.used:
                spans[-1] = (spans[-1][0], stop)
            else:
                spans.append((self.used, stop))
            self.used, done = stop, done + take

    def _buffered_of(self, category: Category) -> BufferedPixels:
        if category not in self.buffered:
            self.buffered[category] = BufferedPixels(self.connectivities)
        return self.buffered[category]

    def flush(self) -> None:
        """Moves the buffered pixels into the sketches; the values stay the same, whenever this happens."""
        for name, buffered in self.buffered.items():
            spans = [self.buffer[start:stop] for start, stop in buffered.spans]
            normals = spans[0] if len(spans) == 1 else np.concatenate([NO_SCORES, *spans])
            normals += np.float32(0.0)  # -0.0 becomes +0.0
            weights = np.concatenate([np.empty((self.connectivities, 0)), *buffered.weights], axis=1)
            anomalous = np.concatenate([NO_SCORES, *buffered.scores])
            if name not in self.sketches:
                self.sketches[name] = self._empty_sketch()
            self.sketches[name].add(normals, anomalous, weights, buffered.regions)
        self.used, self.num_anomalous, self.buffered = 0, 0, {}

    def _empty_sketch(self) -> Sketch:
        return Sketch(self.options.bins, self.connectivities)

    def merge_states(self, other: Self, repeats: set[int]) -> None:
        """Adds another engine's sketches; `check_merge` has made sure that no repeated image is part of them."""
        self.flush()
        other.flush()
        for name, sketch in other.sketches.items():
            mine = self.sketches.setdefault(name, self._empty_sketch())
            mine.merge([sketch])

    def sketches_of(self, group: Group, more: Sequence[Category] = ()) -> dict[Category, Sketch]:
        """Returns the sketch of every category over all processes, the same on each.

        Args:
            group: The processes.
            more: Categories to append if no image of them was seen.
        """
        repeats = self.ledger.repeats(group)
        self.flush()
        out = {}
        for name in self.ledger.order(group, more) or [None]:
            mine = self.sketches.get(name, self._empty_sketch()).copy()
            newest = self.newest_of(name, repeats)
            if newest is not None:
                pixels = split_image(newest, self.options)
                normals = as_float32(np.concatenate(pixels.normals), newest) + np.float32(0.0)
                anomalous = as_float32(pixels.scores, newest)
                mine.add(normals, anomalous, pixels.weights, np.array(pixels.regions, np.int64))
            out[name] = self._merged_over_processes(mine, group)
        return out

    def _merged_over_processes(self, mine: Sketch, group: Group) -> Sketch:
        """Returns the sketches of all ranks as one, merged in rank order."""
        if group.size == 1:
            return mine
        gathered = {key: group.gather(array) for key, array in mine.pack().items() if key != "weights"}
        weights = [group.gather(row) for row in mine.bins.weights]
        sketches = []
        for rank in range(group.size):
            sketch = self._empty_sketch()
            arrays = {key: of_ranks[rank] for key, of_ranks in gathered.items()}
            size = arrays["normals"].size
            arrays["weights"] = np.array([row[rank] for row in weights]).reshape(self.connectivities, size)
            sketch.unpack(arrays)
            sketches.append(sketch)
        return self._merged(sketches)

    def _merged(self, sketches: Sequence[Sketch]) -> Sketch:
        merged = self._empty_sketch()
        merged.merge(sketches)
        return merged

    def results(self, group: Group, more: Sequence[Category] = ()) -> Values:
        """Returns all values by name, each with its `/lower` and `/upper` bound; NaN where undefined."""
        sketches = self.sketches_of(group, more)
        named = {name: binned_values(sketch, self.options) for name, sketch in sketches.items()}
        return with_means(named, binned_values(self._merged(list(sketches.values())), self.options))

    def polygons(self, group: Group, category: Category) -> dict[str, Polygon]:
        """Returns ROC, PR and PRO of a category, through the ends of the bins; of all images for None."""
        sketches = self.sketches_of(group)
        return binned_polygons(select_category(sketches, self._merged(list(sketches.values())), category))

    def all_polygons(self, group: Group) -> Iterator[tuple[Category, dict[str, Polygon]]]:
        """Yields ROC, PR and PRO of every category, and of all images for None, through the ends of the bins."""
        sketches = self.sketches_of(group)
        for name, sketch in {**sketches, None: self._merged(list(sketches.values()))}.items():
            yield name, binned_polygons(sketch)

    def pack_states(self) -> dict[str, np.ndarray]:
        """Returns the sketches as arrays, named by the number of the category."""
        self.flush()
        return {
            f"sketch{i}.{key}": array
            for i, name in enumerate(self.ledger.categories)
            if name in self.sketches
            for key, array in self.sketches[name].pack().items()
        }

    def unpack_states(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Replaces the sketches by those of `pack_states`."""
        self.used, self.num_anomalous, self.buffered, self.sketches = 0, 0, {}, {}
        for i, name in enumerate(self.ledger.categories):
            if state := select_prefix(arrays, f"sketch{i}"):
                self.sketches[name] = self._empty_sketch()
                self.sketches[name].unpack(state)

    def __getstate__(self) -> dict[str, object]:
        self.flush()
        return {**self.__dict__, "buffer": None}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state, buffer=np.empty(FLUSH, np.float32))


def as_float32(scores: np.ndarray, image: CheckedImage) -> np.ndarray:
    """Returns the scores of an image as float32; those of half-precision images come as bit patterns."""
    return scores if image.kind == "float32" else half_values(scores, image.kind)
