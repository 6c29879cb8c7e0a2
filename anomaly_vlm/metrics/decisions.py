"""Values of decisions, and how sure values are: counts at a threshold, thresholds of normal images, bootstrap intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from anomaly_vlm.metrics._engine import whole_images
from anomaly_vlm.metrics._engine.image import calibration_error as _calibration_error
from anomaly_vlm.metrics._engine.image import check_image_scores
from anomaly_vlm.metrics._engine.inputs import ArrayLike, as_image, check_maps, refuse_void_only
from anomaly_vlm.metrics._engine.whole_images import ImagePixels, WholeImageOptions


class Decisions(NamedTuple):
    """What a threshold does to a set of images.

    Attributes:
        found: Anomalous images above the threshold (true positives).
        missed: Anomalous images at or below it (false negatives).
        false_alarms: Normal images above it (false positives).
        passed: Normal images at or below it (true negatives).
    """

    found: int
    missed: int
    false_alarms: int
    passed: int

    @property
    def precision(self) -> float:
        """Share of the alarms that are right; NaN without an alarm."""
        return _share(self.found, self.found + self.false_alarms)

    @property
    def recall(self) -> float:
        """Share of the anomalous images that are found; NaN without any."""
        return _share(self.found, self.found + self.missed)

    @property
    def specificity(self) -> float:
        """Share of the normal images that pass; NaN without any."""
        return _share(self.passed, self.passed + self.false_alarms)

    @property
    def balanced_accuracy(self) -> float:
        """Mean of recall and specificity; NaN where one of them is."""
        return (self.recall + self.specificity) / 2

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; NaN without an anomalous image."""
        return (
            math.nan
            if not self.found + self.missed
            else 2 * self.found / (2 * self.found + self.missed + self.false_alarms)
        )


class Interval(NamedTuple):
    """A value with the ends of its interval."""

    value: float
    low: float
    high: float


def decide(scores: ArrayLike, labels: ArrayLike, threshold: float) -> Decisions:
    """Counts the decisions at a threshold: an image is taken as anomalous where its score is above it, as in verdicts.

    `image_f1_max_threshold` takes scores at the threshold as anomalous too: give the next smaller number for it.

    Args:
        scores: `[N]` image scores.
        labels: `[N]` 0 (normal) or 1 (anomalous).
        threshold: A score, for instance one that was fixed on validation images.

    Raises:
        ValueError: Scores or labels are not accepted, or the threshold is not a number.
    """
    if math.isnan(threshold):
        raise ValueError("the threshold is NaN: give a score")
    values, anomalous = check_image_scores(scores, labels)
    alarm = values > np.float32(threshold)
    counts = [int((alarm == flag).astype(bool)[anomalous == truth].sum()) for flag, truth in
              ((True, True), (False, True), (True, False), (False, False))]  # fmt: skip
    return Decisions(*counts)


def calibration_error(scores: ArrayLike, labels: ArrayLike, bins: int = 15) -> float:
    """Computes the expected calibration error of image scores that are read as probabilities (Guo et al., ICML 2017).

    Args:
        scores: `[N]` image scores in [0, 1].
        labels: `[N]` 0 (normal) or 1 (anomalous).
        bins: Number of bins of equal width.

    Returns:
        A value in [0, 1]; NaN where a score lies outside [0, 1], or without images.
    """
    values, anomalous = check_image_scores(scores, labels)
    return _calibration_error(values, anomalous.astype(np.int64), bins)


def normal_threshold(maps: ArrayLike, sigmas: float = 3.0) -> float:
    """The score that lies `sigmas` standard deviations above the mean of all pixels, of maps of normal images.

    This is how MVTec AD 2 fixes the threshold of its SegF1 on validation images (Heckler-Kram et al., 2025).

    Args:
        maps: `[B, H, W]` scores of normal images, or a list of `[H, W]`.
        sigmas: Number of standard deviations.
    """
    return whole_images.normal_threshold([image.normals for image in _images(maps, None)], sigmas)


def seg_f1(maps: ArrayLike, masks: ArrayLike, threshold: float) -> float:
    """Pixel F1 of all images together, where scores above a fixed threshold are taken as anomalous.

    Args:
        maps: `[B, H, W]` scores, or a list of `[H, W]`.
        masks: Of the same sizes, of 0 (normal), 1 (anomalous) and 255 (void).
        threshold: For instance `normal_threshold` of normal images that were kept apart.

    Returns:
        A value in [0, 1]; NaN without an anomalous pixel.
    """
    return whole_images.f1_at(_images(maps, masks), threshold)


def mean_f1(maps: ArrayLike, masks: ArrayLike) -> float:
    """Mean pixel F1 over the thresholds 0.2 to 0.8, of scores that are rescaled to [0, 1] over all images (mF1 of ADer)."""
    return whole_images.mean_f1(_images(maps, masks))


def aupimo(maps: ArrayLike, masks: ArrayLike, fpr_bounds: Sequence[float] = (1e-5, 1e-4)) -> np.ndarray:
    """Area under the per-image overlap of each image, see `_engine.whole_images.aupimo`.

    Args:
        maps: `[B, H, W]` scores, or a list of `[H, W]`.
        masks: Of the same sizes, of 0 (normal), 1 (anomalous) and 255 (void). Images without an anomalous pixel are
            the normal ones that give the false-positive rate.
        fpr_bounds: Rates between which the overlap is averaged, on a logarithmic axis.

    Returns:
        `[B]` values in [0, 1]; NaN for normal images.
    """
    bounds = WholeImageOptions.checked(fpr_bounds).aupimo
    assert bounds is not None
    images = _images(maps, masks)
    anomalous = [i for i, image in enumerate(images) if image.anomalous.size]
    out = np.full(len(images), math.nan)
    normal = [image.normals for image in images if not image.anomalous.size and image.normals.size]
    out[anomalous] = whole_images.aupimo([images[i].anomalous for i in anomalous], normal, bounds)
    return out


def _images(maps: ArrayLike, masks: ArrayLike | None) -> list[ImagePixels]:
    if masks is None:
        masks = [np.zeros(as_image(one, "map").shape, np.uint8) for one in maps]
    checked = check_maps(maps, masks, None, None, round_to_half=False)
    refuse_void_only(checked)
    return [whole_images.pixels_of(image) for image in checked]


# ---- intervals -------------------------------------------------------------------------------------------------------


def bootstrap(
    scores: ArrayLike,
    labels: ArrayLike,
    category: Sequence[str] | None = None,
    *,
    minus: ArrayLike | None = None,
    metric: Literal["auroc", "ap"] = "auroc",
    over: Literal["images", "categories"] = "images",
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Interval:
    """An image metric, averaged over the categories, with its bootstrap interval; or the difference of two runs.

    Over images, the normal and the anomalous images of each category are drawn with repetition, as many as there are,
    so that every draw has both. Over categories, whole categories are drawn. Scores of a second run on the same images
    are drawn together with those of the first, so that the interval is that of a paired comparison.

    Args:
        scores: `[N]` image scores.
        labels: `[N]` 0 (normal) or 1 (anomalous).
        category: N names; None for one category.
        minus: `[N]` scores of another run on the same images, whose value is subtracted.
        metric: Image AUROC, or average precision.
        over: What is drawn.
        level: Coverage of the interval.
        draws: Number of draws.
        seed: Of the draws.

    Returns:
        The value on all images, and the percentiles of the draws. NaN where no category has both kinds of images.

    Raises:
        ValueError: Scores or labels are not accepted.
    """
    runs = [check_image_scores(scores, labels)[0]]
    anomalous = check_image_scores(scores, labels)[1]
    if minus is not None:
        runs.append(check_image_scores(minus, labels)[0])
    names = np.array(["" if category is None else name for name in (category or [""] * len(anomalous))])
    if len(names) != len(anomalous):
        raise ValueError(f"category has {len(names)} names for {len(anomalous)} images: give one for each")
    rng = np.random.default_rng(seed)
    values, drawn = _by_category(runs, anomalous, names, metric, draws, rng)
    if not values:
        return Interval(math.nan, math.nan, math.nan)
    means = _means_of_draws(values, draws, rng) if over == "categories" else np.mean(drawn, axis=0)
    return _interval(values, means, level)


def bootstrap_mean(values: Sequence[float], *, level: float = 0.95, draws: int = 2000, seed: int = 0) -> Interval:
    """The mean of values, such as one a category, with its bootstrap interval: values are drawn with repetition.

    Of the differences of two runs in each category, this is the interval of a paired comparison, for any metric.

    Args:
        values: Any number of finite values.
        level: Coverage of the interval.
        draws: Number of draws.
        seed: Of the draws.

    Returns:
        The mean and the percentiles of the draws' means; NaN without values.
    """
    if not len(values):
        return Interval(math.nan, math.nan, math.nan)
    return _interval(values, _means_of_draws(values, draws, np.random.default_rng(seed)), level)


def _means_of_draws(values: Sequence[float], draws: int, rng: np.random.Generator) -> np.ndarray:
    picks = rng.integers(len(values), size=(draws, len(values)))
    means: np.ndarray = np.array(values)[picks].mean(axis=1)
    return means


def _interval(values: Sequence[float], means: np.ndarray, level: float) -> Interval:
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(np.mean(values)), float(low), float(high))


def _by_category(
    runs: list[np.ndarray], anomalous: np.ndarray, names: np.ndarray, metric: str, draws: int, rng: np.random.Generator
) -> tuple[list[float], list[np.ndarray]]:
    """The value of each category that has both kinds of images, and its values `[draws]` over the draws."""
    values: list[float] = []
    drawn: list[np.ndarray] = []
    for name in np.unique(names):
        rows = np.flatnonzero(names == name)
        marks = anomalous[rows]
        if marks.all() or not marks.any():
            continue  # undefined, as in the table
        weights = _weights(marks, draws, rng)
        exact, sampled = (
            [_weighted(run[rows], marks, w, metric) for run in runs] for w in (np.ones((1, len(rows))), weights)
        )
        values.append(float(_difference(exact)[0]))
        drawn.append(_difference(sampled))
    return values, drawn


def _difference(of_runs: list[np.ndarray]) -> np.ndarray:
    """The values of the first run, minus those of the second where there is one."""
    return of_runs[0] if len(of_runs) == 1 else of_runs[0] - of_runs[1]


def _weights(anomalous: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """How often each image is in each draw, `[draws, N]`."""
    weights = np.zeros((draws, anomalous.size))
    for rows in (np.flatnonzero(anomalous), np.flatnonzero(~anomalous)):
        weights[:, rows] = rng.multinomial(rows.size, np.full(rows.size, 1 / rows.size), size=draws)
    return weights


def _weighted(scores: np.ndarray, anomalous: np.ndarray, weights: np.ndarray, metric: str) -> np.ndarray:
    """AUROC or AP `[draws]` where image i counts `weights[:, i]` times; equal scores are tied."""
    order = np.argsort(-scores, kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(scores[order]) != 0))
    hits, alarms = (
        np.add.reduceat(weights[:, order] * marks[order], starts, axis=1) for marks in (anomalous, ~anomalous)
    )
    positives, negatives = hits.sum(axis=1), alarms.sum(axis=1)
    before = np.cumsum(alarms, axis=1) - alarms
    if metric == "auroc":
        areas: np.ndarray = 1 - (hits * (before + alarms / 2)).sum(axis=1) / (positives * negatives)
        return areas
    total = np.cumsum(hits, axis=1)
    with np.errstate(invalid="ignore"):
        precision = np.where(hits > 0, total / (total + before + alarms), 0.0)
    found: np.ndarray = (hits * precision).sum(axis=1) / positives
    return found


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
