"""Values that need the pixels of each image by itself: AUPIMO, and F1 at thresholds that all images give together.

The scores of every image are kept, 4 B a pixel, as normal and anomalous ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
from torch import Tensor

from anomaly_vlm.metrics._engine.columns import half_values
from anomaly_vlm.metrics._engine.curves import Polygon
from anomaly_vlm.metrics._engine.group import Group
from anomaly_vlm.metrics._engine.inputs import ArrayLike, CheckedImage, Names, Values, check_maps, with_means
from anomaly_vlm.metrics._engine.ledger import Category, Ledger, pack_text, select_prefix, unpack_text
from anomaly_vlm.metrics._engine.values import NAN

MEAN_F1_THRESHOLDS = tuple(round(0.2 + 0.1 * i, 1) for i in range(7))


@dataclass(frozen=True)
class WholeImageOptions:
    """Which values are computed.

    Attributes:
        aupimo: Bounds of the false-positive rate between which AUPIMO integrates; None for no AUPIMO.
        seg_f1_sigmas: The threshold of SegF1 lies so many standard deviations above the mean score of the pixels of normal
            images; None for no SegF1.
        mean_f1: Whether the mean of F1 over the thresholds 0.2 to 0.8 of the rescaled scores is computed.
    """

    aupimo: tuple[float, float] | None = (1e-5, 1e-4)
    seg_f1_sigmas: float | None = None
    mean_f1: bool = False

    @staticmethod
    def checked(
        aupimo: Sequence[float] | bool | None = (1e-5, 1e-4), seg_f1_sigmas: float | None = None, mean_f1: bool = False
    ) -> WholeImageOptions:
        """Checks the options; True for `aupimo` stands for the published bounds.

        Raises:
            ValueError: An option is out of its range.
        """
        bounds = (1e-5, 1e-4) if aupimo is True else None if aupimo is None or aupimo is False else tuple(aupimo)
        if bounds is not None and (len(bounds) != 2 or not 0 < bounds[0] < bounds[1] <= 1):
            raise ValueError(f"aupimo is {aupimo}: give two false-positive rates in (0, 1], the lower one first")
        if seg_f1_sigmas is not None and not math.isfinite(seg_f1_sigmas):
            raise ValueError(f"seg_f1_sigmas is {seg_f1_sigmas}: give a number of standard deviations, such as 3")
        return WholeImageOptions(
            None if bounds is None else (float(bounds[0]), float(bounds[1])),
            None if seg_f1_sigmas is None else float(seg_f1_sigmas),
            bool(mean_f1),
        )


class ImagePixels(NamedTuple):
    """The pixels of one image, without void ones.

    Attributes:
        number: Number in the data set, or None.
        normals: Float32 scores of the normal pixels.
        anomalous: Float32 scores of the anomalous pixels; none in a normal image.
    """

    number: int | None
    normals: np.ndarray
    anomalous: np.ndarray


class WholeImageEngine:
    """The pixels of all images of one process, by category.

    Args:
        options: Which values are computed.
    """

    def __init__(self, options: WholeImageOptions) -> None:
        self.options = options
        self.ledger = Ledger()
        self.images: dict[Category, list[ImagePixels]] = {}

    def fresh(self) -> Self:
        """Returns an empty engine with the same options."""
        return type(self)(self.options)

    def add(
        self, scores: ArrayLike, targets: ArrayLike, category: Names = None, index: ArrayLike | None = None
    ) -> None:
        """Checks a batch of maps and masks and adds it; see `check_maps`."""
        self.commit(self.prepare(scores, targets, category, index))

    def prepare(
        self, scores: ArrayLike, targets: ArrayLike, category: Names = None, index: ArrayLike | None = None
    ) -> list[CheckedImage]:
        """Checks a batch and returns its images, for `commit`; see `check_maps`."""
        images = check_maps(scores, targets, category, index, round_to_half=False)
        self.ledger.check_categories(image.category for image in images)
        return images

    def commit(self, images: Sequence[CheckedImage]) -> None:
        """Copies checked images into the state."""
        for image in images:
            if self.ledger.enter(image.category, image.index):
                self.images.setdefault(image.category, []).append(pixels_of(image))

    def _counting(self, group: Group, more: Sequence[Category]) -> dict[Category, list[ImagePixels]]:
        """Returns the images of all processes by category, each once."""
        repeats = self.ledger.repeats(group)
        found: dict[Category, list[ImagePixels]] = {}
        for name in self.ledger.order(group, more) or [None]:
            mine = [image for image in self.images.get(name, []) if image.number not in repeats]
            found[name] = [image for theirs in group.gather_objects(mine) for image in theirs]
        return found

    def results(self, group: Group, more: Sequence[Category] = ()) -> Values:
        """Returns all values by name; NaN where undefined."""
        images = self._counting(group, more)
        values = {name: self._values(members) for name, members in images.items()}
        return with_means(values, self._values([image for members in images.values() for image in members]))

    def per_image(self, group: Group) -> dict[Category, list[tuple[int | None, float]]]:
        """Returns number and AUPIMO of every anomalous image, by category."""
        assert self.options.aupimo is not None
        found: dict[Category, list[tuple[int | None, float]]] = {}
        for name, images in self._counting(group, ()).items():
            anomalous = [image for image in images if image.anomalous.size]
            values = _aupimo_of(images, self.options.aupimo)
            found[name] = [(image.number, float(value)) for image, value in zip(anomalous, values, strict=True)]
        return found

    def _values(self, images: Sequence[ImagePixels]) -> Values:
        options, out = self.options, {}
        if options.aupimo is not None:
            scores = _aupimo_of(images, options.aupimo)
            out["pixel_aupimo"] = float(scores.mean()) if scores.size else NAN
        if options.seg_f1_sigmas is not None:
            threshold = normal_threshold(
                [image.normals for image in images if not image.anomalous.size], options.seg_f1_sigmas
            )
            out["pixel_seg_f1"], out["pixel_seg_f1_threshold"] = f1_at(images, threshold), threshold
        if options.mean_f1:
            out["pixel_mean_f1"] = mean_f1(images)
        return out

    def polygons(self, group: Group, category: Category) -> dict[str, Polygon]:
        """Returns no curves: the pixel engine has them."""
        return {}

    def all_polygons(self, group: Group) -> Iterator[tuple[Category, dict[str, Polygon]]]:
        """Yields nothing: there are no curves."""
        return iter(())

    def check_merge(self, other: Self) -> None:
        """Checks that `merge` can take in another engine.

        Raises:
            ValueError: The options differ, or `Ledger.check_merge` refuses.
        """
        if self.options != other.options:
            raise ValueError(f"cannot merge a metric of {other.options} into one of {self.options}")
        self.ledger.check_merge(other.ledger)

    def merge(self, other: Self) -> None:
        """Takes in another engine's state as that of a process of higher rank, so that its repeated images drop out."""
        repeats = self.ledger.merge(other.ledger)
        for name, images in other.images.items():
            self.images.setdefault(name, []).extend(image for image in images if image.number not in repeats)

    def follow(self, move: Callable[[Tensor], Tensor]) -> None:
        """Does nothing: the scores stay on the CPU."""

    def pack(self) -> dict[str, np.ndarray]:
        """Returns the state as arrays by name, for checkpoints."""
        out = {"options": pack_text(repr(self.options))}
        out.update({f"ledger.{key}": array for key, array in self.ledger.pack().items()})
        for i, name in enumerate(self.ledger.categories):
            for j, image in enumerate(self.images.get(name, [])):
                number = np.array([] if image.number is None else [image.number], np.int64)
                arrays = {"number": number, "normals": image.normals, "anomalous": image.anomalous}
                out.update({f"image{i}_{j}.{key}": array for key, array in arrays.items()})
        return out

    def unpack(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Replaces the state by that of `pack`.

        Raises:
            ValueError: The stored state was made with other options.
        """
        made_with = unpack_text(arrays["options"])
        if made_with != repr(self.options):
            raise ValueError(f"the stored metric was made with {made_with}, this one with {self.options}")
        self.ledger = Ledger.unpack(select_prefix(arrays, "ledger"))
        self.images = {}
        for i, name in enumerate(self.ledger.categories):
            images = self.images[name] = []
            while image := select_prefix(arrays, f"image{i}_{len(images)}"):
                number = int(image["number"][0]) if image["number"].size else None
                images.append(ImagePixels(number, image["normals"], image["anomalous"]))


def pixels_of(image: CheckedImage) -> ImagePixels:
    """Returns copies of the normal and the anomalous scores of a checked image."""
    if image.on_device is not None:
        scores = image.on_device.float().cpu().numpy()
    else:
        scores = image.scores if image.kind == "float32" else half_values(image.scores, image.kind)
    if image.mask is None:
        return ImagePixels(image.index, scores.ravel().astype(np.float32), np.empty(0, np.float32))
    return ImagePixels(image.index, scores[image.mask == 0].copy(), scores[image.mask == 1].copy())


def _aupimo_of(images: Sequence[ImagePixels], bounds: tuple[float, float]) -> np.ndarray:
    normal = [image.normals for image in images if not image.anomalous.size and image.normals.size]
    return aupimo([image.anomalous for image in images if image.anomalous.size], normal, bounds)


def aupimo(
    anomalous: Sequence[np.ndarray], normal: Sequence[np.ndarray], bounds: tuple[float, float] = (1e-5, 1e-4)
) -> np.ndarray:
    """Computes the area under the per-image overlap of each anomalous image (Bertoldo et al., BMVC 2024), exactly.

    The shared false-positive rate `F(t)` is the mean over the normal images of their shares of pixels with a score of
    at least `t`. With the overlap of image i, its share `R_i(t)` of anomalous pixels with such a score,

        AUPIMO_i = 1 / log(U / L) * integral over log z from log L to log U of R_i(t(z)),

    where `t(z)` is the lowest threshold with `F(t) <= z`. Both rates are steps, so that the integral is a finite sum;
    published code takes thresholds in equal steps and the trapezoidal rule.

    Args:
        anomalous: Scores of the anomalous pixels of each anomalous image.
        normal: Scores of all pixels of each normal image.
        bounds: L and U, false-positive rates in (0, 1].

    Returns:
        One value in [0, 1] for each anomalous image; NaN where there is no normal image.
    """
    low, high = bounds
    if not normal:
        return np.full(len(anomalous), NAN)
    weights = np.concatenate([np.full(scores.size, 1.0 / (len(normal) * scores.size)) for scores in normal])
    scores = np.concatenate(normal)
    needed = math.ceil(high / weights.min()) + 1  # at most so many pixels lie above the threshold of the upper bound
    if needed < scores.size:
        kept = scores >= np.partition(scores, scores.size - needed)[scores.size - needed]
        scores, weights = scores[kept], weights[kept]
    order = np.argsort(-scores, kind="stable")
    scores, rate = scores[order], np.cumsum(weights[order])
    last = np.append(scores[1:] != scores[:-1], True)  # of equal scores
    scores, rate = scores[last], rate[last]
    edges = np.log(np.clip(np.concatenate([[low], rate]), low, high))
    width = np.diff(edges) / math.log(high / low)  # share of the axis on which the threshold lies just above each score
    counts = width > 0
    scores, width = scores[counts], width[counts]
    found = []
    for pixels in anomalous:
        ordered = np.sort(pixels)
        overlap = 1.0 - np.searchsorted(ordered, scores, side="right") / ordered.size
        found.append(min(1.0, max(0.0, float(overlap @ width))))
    return np.array(found)


def normal_threshold(normal: Sequence[np.ndarray], sigmas: float) -> float:
    """Returns mean plus `sigmas` standard deviations of the scores of the pixels of normal images; NaN without any."""
    count = sum(scores.size for scores in normal)
    if not count:
        return NAN
    mean = math.fsum(float(scores.sum(dtype=np.float64)) for scores in normal) / count
    squares = math.fsum(float(((scores.astype(np.float64) - mean) ** 2).sum()) for scores in normal)
    return mean + sigmas * math.sqrt(squares / count)


def f1_at(images: Sequence[ImagePixels], threshold: float) -> float:
    """Returns the pixel F1 of all images together where scores above the threshold are taken as anomalous."""
    hits = sum(int((image.anomalous > threshold).sum()) for image in images)
    alarms = sum(int((image.normals > threshold).sum()) for image in images)
    total = sum(image.anomalous.size for image in images)
    return NAN if total == 0 or math.isnan(threshold) else 2 * hits / (hits + alarms + total)


def mean_f1(images: Sequence[ImagePixels]) -> float:
    """Returns the mean pixel F1 over the thresholds 0.2, 0.3, ..., 0.8 of scores rescaled to [0, 1] over all images.

    This is `mF1` of ADer (Zhang et al., arXiv 2406.03262), which compares by "above".
    """
    parts = [part for image in images for part in (image.normals, image.anomalous) if part.size]
    if not parts:
        return NAN
    low, high = min(float(part.min()) for part in parts), max(float(part.max()) for part in parts)
    if high <= low:
        return NAN
    return float(np.mean([f1_at(images, low + share * (high - low)) for share in MEAN_F1_THRESHOLDS]))
