"""The image metrics without torchmetrics: one score and one label an image, always exact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from anomaly_vlm.metrics._engine.counts import Above, Points, count_above, distinct, join, sorted_copy
from anomaly_vlm.metrics._engine.curves import Polygon, exact_polygons
from anomaly_vlm.metrics._engine.group import Alone
from anomaly_vlm.metrics._engine.inputs import as_index, as_names, check_image_scores
from anomaly_vlm.metrics._engine.ledger import Category, Ledger, part_of, pick
from anomaly_vlm.metrics._engine.options import Values, recall_name, with_means
from anomaly_vlm.metrics._engine.values import scalars


class Scored(NamedTuple):
    """Images of one category: scores [B] float32, anomalous [B] bool, numbers [B] int64 (None where not given)."""

    scores: np.ndarray
    anomalous: np.ndarray
    numbers: np.ndarray | None


class ImageEngine:
    """State of one process: the scores as they came. 5 B an image, 13 B with `index`."""

    what = "image"

    def __init__(self, recall: float) -> None:
        self.recall = recall
        self.ledger = Ledger()
        self.chunks: dict[Category, list[Scored]] = {}

    def fresh(self) -> ImageEngine:
        """An empty engine with the same options."""
        return type(self)(self.recall)

    def prepare(
        self, scores: Any, labels: Any, category: Any = None, index: Any = None
    ) -> list[tuple[Category, Scored]]:
        """Checks a batch and parts it by category. Raises `ValueError`, see `check_image_scores`."""
        values, anomalous = check_image_scores(scores, labels)
        numbers = as_index(index, values.size)
        if category is None or isinstance(category, str):
            groups = {name: np.arange(values.size) for name in as_names(category, 1)} if values.size else {}
        else:
            names = as_names(category, values.size)
            groups = {name: np.array([i for i, n in enumerate(names) if n == name]) for name in dict.fromkeys(names)}
        self.ledger.check_categories(groups)
        return [
            (name, Scored(values[rows], anomalous[rows], None if numbers is None else numbers[rows]))
            for name, rows in groups.items()
        ]

    def commit(self, prepared: list[tuple[Category, Scored]]) -> None:
        """Copies checked scores into the state."""
        for name, chunk in prepared:
            if chunk.numbers is None:
                self.ledger.enter(name, None)
            else:
                new = np.array([self.ledger.enter(name, int(number)) for number in chunk.numbers], dtype=bool)
                chunk = Scored(chunk.scores[new], chunk.anomalous[new], chunk.numbers[new])
            self.chunks.setdefault(name, []).append(chunk)

    def replace_scores(self, scores: Mapping[int, float]) -> None:
        """Other scores for images by their number in the data set; those without a number or not named keep theirs."""
        for chunks in self.chunks.values():
            for i, chunk in enumerate(chunks):
                if chunk.numbers is not None:
                    pairs = zip(chunk.numbers.tolist(), chunk.scores.tolist(), strict=True)
                    new = np.array([scores.get(number, score) for number, score in pairs], np.float32)
                    chunks[i] = chunk._replace(scores=new)

    def _kept(self, category: Category, repeats: set[int]) -> tuple[np.ndarray, np.ndarray]:
        """Scores and labels of a category without the repeats."""
        chunks = self.chunks.get(category, [])
        scores = np.concatenate([_NO_SCORES, *(chunk.scores for chunk in chunks)])
        anomalous = np.concatenate([_NO_LABELS, *(chunk.anomalous for chunk in chunks)])
        if repeats:
            drop = np.fromiter(repeats, np.int64, len(repeats))
            keep = [np.ones(c.scores.size, bool) if c.numbers is None else ~np.isin(c.numbers, drop) for c in chunks]
            rows = np.concatenate([_NO_LABELS, *keep])
            scores, anomalous = scores[rows], anomalous[rows]
        return scores, anomalous

    def counts(self, group: Alone, more: Sequence[Category] = ()) -> dict[Category, tuple[Points, Above, int]]:
        """Anomalous scores, normal counts at them and the number of normal images, for every category and then pooled
        under the key of no category (the only key where no category was given)."""
        repeats = self.ledger.repeats(group)
        names = self.ledger.order(group, more) or [None]
        kept = {name: self._kept(name, repeats) for name in names}
        if names != [None]:
            parts = list(kept.values())
            kept[None] = (np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts]))
        return {name: self._count(*part, group) for name, part in kept.items()}

    def _count(self, scores: np.ndarray, anomalous: np.ndarray, group: Alone) -> tuple[Points, Above, int]:
        found = scores[anomalous]
        points = join(group.gather_points(distinct(found, np.empty((0, found.size)))), 0)
        normals = scores[~anomalous]
        (above,) = count_above([lambda: sorted_copy(normals)], [points.values])
        total = int(group.sum(np.array([normals.size]))[0])
        return points, Above(group.sum(above.greater), group.sum(above.at_least)), total

    def results(self, group: Alone, more: Sequence[Category] = ()) -> Values:
        """All values by name; NaN where undefined."""
        categories = {name: self._values(*part) for name, part in self.counts(group, more).items()}
        pooled = categories.pop(None)
        return with_means(categories, pooled)

    def polygons(self, group: Alone, category: Category) -> dict[str, Polygon]:
        """ROC and PR of a category, of all images for None."""
        counts = self.counts(group)
        return exact_polygons(*pick(counts, counts[None], category), None)

    def _values(self, points: Points, above: Above, normals: int) -> Values:
        one = scalars(points, above, normals, self.recall)
        return {
            "image_auroc": one.auroc,
            "image_ap": one.ap,
            "image_f1_max": one.f1_max,
            "image_f1_max_threshold": one.f1_max_threshold,
            f"image_{recall_name(self.recall)}": one.fpr,
        }

    def pack(self) -> dict[str, np.ndarray]:
        """The state as arrays, for checkpoints."""
        out = {"recall": np.array([self.recall])}
        out.update({f"ledger.{key}": array for key, array in self.ledger.pack().items()})
        for i, name in enumerate(self.ledger.categories):
            for j, chunk in enumerate(self.chunks.get(name, [])):
                parts = {key: array for key, array in chunk._asdict().items() if array is not None}
                out.update({f"chunk{i}_{j}.{key}": array for key, array in parts.items()})
        return out

    def unpack(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Replaces the state. Raises `ValueError` if it was made with other options."""
        if float(arrays["recall"][0]) != self.recall:
            raise ValueError(
                f"the stored metric was made with recall={arrays['recall'][0]:g}, this one with {self.recall:g}"
            )
        self.ledger = Ledger.unpack(part_of(arrays, "ledger"))
        self.chunks = {}
        for i, name in enumerate(self.ledger.categories):
            chunks = self.chunks[name] = []
            while parts := part_of(arrays, f"chunk{i}_{len(chunks)}"):
                chunks.append(Scored(parts["scores"], parts["anomalous"], parts.get("numbers")))

    def check_merge(self, other: ImageEngine) -> None:
        """Raises `ValueError` where `merge` could not take `other` up."""
        if self.recall != other.recall:
            raise ValueError(f"cannot merge a metric of recall={other.recall:g} into one of recall={self.recall:g}")
        self.ledger.check_merge(other.ledger)

    def merge(self, other: ImageEngine) -> None:
        """Takes another engine's state up as that of a higher rank."""
        repeats = self.ledger.merge(other.ledger)
        drop = np.fromiter(repeats, np.int64, len(repeats))
        for name, chunks in other.chunks.items():
            for chunk in chunks:
                if chunk.numbers is not None and drop.size:
                    keep = ~np.isin(chunk.numbers, drop)
                    chunk = Scored(chunk.scores[keep], chunk.anomalous[keep], chunk.numbers[keep])
                self.chunks.setdefault(name, []).append(chunk)


_NO_SCORES, _NO_LABELS = np.empty(0, np.float32), np.empty(0, bool)
