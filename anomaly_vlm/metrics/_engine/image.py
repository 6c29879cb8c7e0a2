"""The image engine: one score and one label an image, always exact, without torchmetrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, Self

import numpy as np
from torch import Tensor

from anomaly_vlm.metrics._engine.counts import (
    DistinctScores,
    NormalsAbove,
    count_above,
    distinct,
    join_distinct,
    sorted_block,
)
from anomaly_vlm.metrics._engine.curves import Polygon, exact_polygons
from anomaly_vlm.metrics._engine.group import Group
from anomaly_vlm.metrics._engine.inputs import (
    FINITE_SCORES,
    ArrayLike,
    Names,
    Values,
    as_index,
    as_names,
    checked_recall,
    recall_name,
    to_numpy,
    widen_bfloat16,
    with_means,
)
from anomaly_vlm.metrics._engine.ledger import Category, Ledger, select_category, select_prefix
from anomaly_vlm.metrics._engine.values import threshold_values

NO_SCORES, NO_LABELS = np.empty(0, np.float32), np.empty(0, bool)


def check_image_scores(scores: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Checks image scores and labels.

    Args:
        scores: `[B]` finite scores of a float or integer dtype.
        labels: `[B]` 0 (normal) or 1 (anomalous), of any dtype.

    Returns:
        The scores `[B]` as float32 without -0.0, and whether each image is anomalous `[B]`.

    Raises:
        ValueError: A score is not finite, a label is neither 0 nor 1, or the lengths differ.
    """
    values, marks = (to_numpy(widen_bfloat16(given)).reshape(-1) for given in (scores, labels))
    if values.dtype.kind not in "fiu" and values.size:
        raise ValueError(f"the image scores are {values.dtype}: give a float dtype")
    with np.errstate(over="ignore", invalid="ignore"):
        values = values.astype(np.float32) + np.float32(0.0)
    if values.shape != marks.shape:
        raise ValueError(f"{values.shape[0]} image scores but {marks.shape[0]} labels: give one label a score")
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise ValueError(f"image {bad[0]}: the score is {values[bad[0]]}: {FINITE_SCORES}")
    anomalous = marks == 1
    bad = np.flatnonzero(~(anomalous | (marks == 0)))
    if bad.size:
        raise ValueError(f"image {bad[0]}: the label is {marks[bad[0]]}: expected 0 (normal) or 1 (anomalous)")
    return values, anomalous


class ScoredImages(NamedTuple):
    """Some images of one category.

    Attributes:
        scores: `[B]` float32.
        anomalous: `[B]` bool labels.
        numbers: `[B]` int64 numbers in the data set; None where none were given.
    """

    scores: np.ndarray
    anomalous: np.ndarray
    numbers: np.ndarray | None

    def without(self, dropped: np.ndarray) -> ScoredImages:
        """Returns the images whose numbers are not among `dropped`; images without a number always stay."""
        if self.numbers is None or not dropped.size:
            return self
        keep = ~np.isin(self.numbers, dropped)
        return ScoredImages(self.scores[keep], self.anomalous[keep], self.numbers[keep])


def calibration_error(scores: np.ndarray, labels: np.ndarray, bins: int) -> float:
    """Computes the expected calibration error of scores that are read as probabilities (Guo et al., ICML 2017).

    Args:
        scores: `[N]` image scores.
        labels: `[N]` 0 or 1.
        bins: Number of bins of equal width in [0, 1]; a score on an edge falls into the lower bin.

    Returns:
        Mean over the images of the distance between the mean score and the share of anomalous images of their bin; NaN
        without images, or where a score lies outside [0, 1] and is no probability.
    """
    if not scores.size or scores.min() < 0 or scores.max() > 1:
        return math.nan
    which = np.clip(np.ceil(scores.astype(np.float64) * bins).astype(int) - 1, 0, bins - 1)
    confidence, share = (np.bincount(which, weights=values, minlength=bins) for values in (scores, labels))
    return float(np.abs(confidence - share).sum() / scores.size)


def image_engine(recall: float = 0.95, calibration_bins: int | None = None) -> ImageEngine:
    """Returns an empty image engine for options of `ImageMetrics`.

    Raises:
        ValueError: An option is out of its range.
    """
    if calibration_bins is not None and (type(calibration_bins) is not int or calibration_bins < 1):
        raise ValueError(f"calibration_bins is {calibration_bins}: give a whole number of at least 1")
    return ImageEngine(checked_recall(recall), calibration_bins)


class ImageEngine:
    """The state of image metrics on one process: the scores as they came, 5 B an image, 13 B with `index`.

    `prepare` checks a batch and changes nothing; `commit` adds it and cannot fail.

    Args:
        recall: Recall in (0, 1] at which the false-positive rate is taken.
        calibration_bins: Bins of the calibration error, see `calibration_error`; None for no such value.
    """

    def __init__(self, recall: float, calibration_bins: int | None = None) -> None:
        self.recall, self.calibration_bins = recall, calibration_bins
        self.ledger = Ledger()
        self.chunks: dict[Category, list[ScoredImages]] = {}

    def fresh(self) -> Self:
        """Returns an empty engine with the same options."""
        return type(self)(self.recall, self.calibration_bins)

    def add(
        self, scores: ArrayLike, targets: ArrayLike, category: Names = None, index: ArrayLike | None = None
    ) -> None:
        """Checks a batch of image scores and labels and adds it; see `check_image_scores`."""
        self.commit(self.prepare(scores, targets, category, index))

    def prepare(
        self, scores: ArrayLike, labels: ArrayLike, category: Names = None, index: ArrayLike | None = None
    ) -> list[tuple[Category, ScoredImages]]:
        """Checks a batch and returns its images by category, for `commit`; see `check_image_scores`.

        Raises:
            ValueError: Something in the batch is not accepted; the state is as before.
        """
        values, anomalous = check_image_scores(scores, labels)
        numbers = as_index(index, values.size)
        if category is None or isinstance(category, str):
            groups = {name: np.arange(values.size) for name in as_names(category, 1)} if values.size else {}
        else:
            names = as_names(category, values.size)
            groups = {name: np.array([i for i, n in enumerate(names) if n == name]) for name in dict.fromkeys(names)}
        self.ledger.check_categories(groups)
        return [
            (name, ScoredImages(values[rows], anomalous[rows], None if numbers is None else numbers[rows]))
            for name, rows in groups.items()
        ]

    def commit(self, prepared: list[tuple[Category, ScoredImages]]) -> None:
        """Copies checked scores into the state."""
        for name, chunk in prepared:
            if chunk.numbers is None:
                self.ledger.enter(name, None)
            else:
                new = np.array([self.ledger.enter(name, int(number)) for number in chunk.numbers], dtype=bool)
                chunk = ScoredImages(chunk.scores[new], chunk.anomalous[new], chunk.numbers[new])
            self.chunks.setdefault(name, []).append(chunk)

    def replace_scores(self, scores: Mapping[int, float]) -> None:
        """Replaces the scores of images.

        Args:
            scores: New score of each image by its number in the data set. Other images keep their scores, and so do images
                without a number.
        """
        for chunks in self.chunks.values():
            for i, chunk in enumerate(chunks):
                if chunk.numbers is not None:
                    pairs = zip(chunk.numbers.tolist(), chunk.scores.tolist(), strict=True)
                    new = np.array([scores.get(number, score) for number, score in pairs], np.float32)
                    chunks[i] = chunk._replace(scores=new)

    def _counting(self, category: Category, repeats: set[int]) -> tuple[np.ndarray, np.ndarray]:
        """Returns scores and labels of the images of a category that count here."""
        dropped = np.fromiter(repeats, np.int64, len(repeats))
        chunks = [chunk.without(dropped) for chunk in self.chunks.get(category, [])]
        return (
            np.concatenate([NO_SCORES, *(chunk.scores for chunk in chunks)]),
            np.concatenate([NO_LABELS, *(chunk.anomalous for chunk in chunks)]),
        )

    def counts(
        self, group: Group, more: Sequence[Category] = ()
    ) -> dict[Category, tuple[DistinctScores, NormalsAbove, int]]:
        """Counts every category and all images pooled.

        Args:
            group: The processes.
            more: Categories to append if no image of them was seen.

        Returns:
            For each category, and last for None, which stands for all images: the distinct anomalous scores, the normal
            images above each, and the number of normal images. Where no category was given, None is the only key.
        """
        repeats = self.ledger.repeats(group)
        names = self.ledger.order(group, more) or [None]
        counting = {name: self._counting(name, repeats) for name in names}
        if names != [None]:
            every = list(counting.values())
            counting[None] = (np.concatenate([s for s, _ in every]), np.concatenate([marks for _, marks in every]))
        return {name: self._count(scores, marks, group) for name, (scores, marks) in counting.items()}

    def _count(
        self, scores: np.ndarray, anomalous: np.ndarray, group: Group
    ) -> tuple[DistinctScores, NormalsAbove, int]:
        mine = scores[anomalous]
        every = join_distinct(group.gather_distinct(distinct(mine, np.empty((0, mine.size)))), 0)
        normals = scores[~anomalous]
        (above,) = count_above([lambda: sorted_block(normals)], [every.values])
        total = int(group.sum(np.array([normals.size]))[0])
        return every, NormalsAbove(group.sum(above.greater), group.sum(above.at_least)), total

    def results(self, group: Group, more: Sequence[Category] = ()) -> Values:
        """Returns all values by name; NaN where undefined."""
        categories = {name: self._values(*counts) for name, counts in self.counts(group, more).items()}
        if self.calibration_bins is not None:
            repeats = self.ledger.repeats(group)
            for name, values in categories.items():
                values["image_calibration_error"] = self._calibration_error(name, repeats, group, pooled=name is None)
        pooled = categories.pop(None)
        return with_means(categories, pooled)

    def _calibration_error(self, category: Category, repeats: set[int], group: Group, *, pooled: bool) -> float:
        assert self.calibration_bins is not None
        names = list(self.chunks) if pooled else [category]
        parts = [self._counting(name, repeats) for name in names] or [(NO_SCORES, NO_LABELS)]
        scores = np.concatenate(group.gather(np.concatenate([scores for scores, _ in parts])))
        labels = np.concatenate(group.gather(np.concatenate([marks for _, marks in parts]).astype(np.int64)))
        return calibration_error(scores, labels, self.calibration_bins)

    def polygons(self, group: Group, category: Category) -> dict[str, Polygon]:
        """Returns ROC and PR of a category; of all images for None."""
        counts = self.counts(group)
        return exact_polygons(*select_category(counts, counts[None], category), None)

    def all_polygons(self, group: Group) -> Iterator[tuple[Category, dict[str, Polygon]]]:
        """Yields ROC and PR of every category, and of all images for None, from one count."""
        for name, counts in self.counts(group).items():
            yield name, exact_polygons(*counts, None)

    def _values(self, scores: DistinctScores, above: NormalsAbove, normals: int) -> Values:
        one = threshold_values(scores, above, normals, self.recall)
        return {
            "image_auroc": one.auroc,
            "image_ap": one.ap,
            "image_f1_max": one.f1_max,
            "image_f1_max_threshold": one.f1_max_threshold,
            f"image_{recall_name(self.recall)}": one.fpr,
        }

    def follow(self, move: Callable[[Tensor], Tensor]) -> None:
        """Does nothing: image scores are few and stay on the CPU."""

    def pack(self) -> dict[str, np.ndarray]:
        """Returns the state as arrays by name, for checkpoints."""
        out = {"recall": np.array([self.recall])}
        out.update({f"ledger.{key}": array for key, array in self.ledger.pack().items()})
        for i, name in enumerate(self.ledger.categories):
            for j, chunk in enumerate(self.chunks.get(name, [])):
                arrays = {key: array for key, array in chunk._asdict().items() if array is not None}
                out.update({f"chunk{i}_{j}.{key}": array for key, array in arrays.items()})
        return out

    def unpack(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Replaces the state by that of `pack`.

        Raises:
            ValueError: The stored state was made with another recall.
        """
        if float(arrays["recall"][0]) != self.recall:
            raise ValueError(
                f"the stored metric was made with recall={arrays['recall'][0]:g}, this one with {self.recall:g}"
            )
        self.ledger = Ledger.unpack(select_prefix(arrays, "ledger"))
        self.chunks = {}
        for i, name in enumerate(self.ledger.categories):
            chunks = self.chunks[name] = []
            while chunk := select_prefix(arrays, f"chunk{i}_{len(chunks)}"):
                chunks.append(ScoredImages(chunk["scores"], chunk["anomalous"], chunk.get("numbers")))

    def check_merge(self, other: Self) -> None:
        """Checks that `merge` can take in another engine.

        Raises:
            ValueError: The recall differs, or `Ledger.check_merge` refuses.
        """
        if self.calibration_bins != other.calibration_bins:
            raise ValueError(
                f"cannot merge a metric of calibration_bins={other.calibration_bins} into one of {self.calibration_bins}"
            )
        if self.recall != other.recall:
            raise ValueError(f"cannot merge a metric of recall={other.recall:g} into one of recall={self.recall:g}")
        self.ledger.check_merge(other.ledger)

    def merge(self, other: Self) -> None:
        """Takes in another engine's state as that of a process of higher rank, so that its repeated images drop out."""
        repeats = self.ledger.merge(other.ledger)
        dropped = np.fromiter(repeats, np.int64, len(repeats))
        for name, chunks in other.chunks.items():
            self.chunks.setdefault(name, []).extend(chunk.without(dropped) for chunk in chunks)
