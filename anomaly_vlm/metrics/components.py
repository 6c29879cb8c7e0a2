"""Component metrics of road anomaly segmentation: sIoU, PPV and F1*, as SegmentMeIfYouCan defines them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from anomaly_vlm.metrics._engine.columns import half_values
from anomaly_vlm.metrics._engine.group import Group, current_group
from anomaly_vlm.metrics._engine.inputs import ArrayLike, CheckedImage, MaskKinds, VoidOnly, as_tensors, check_maps
from anomaly_vlm.metrics.functional import (
    HALF_SCORES,
    ComponentOverlaps,
    best_threshold,
    compare_components,
    component_values,
    count_components,
    score_histograms,
)


class StoredMap(NamedTuple):
    """A frame that is stored until `compute` has found the threshold.

    Attributes:
        number: Number in the data set, or None.
        scores: `[H, W]` float16.
        label: `[H, W]` uint8 of 0, 1 and 255.
    """

    number: int | None
    scores: np.ndarray
    label: np.ndarray


class StoredFrame(NamedTuple):
    """A frame of which only the values of its components are kept.

    Attributes:
        number: Number in the data set, or None.
        overlaps: sIoU and PPV of its components.
    """

    number: int | None
    overlaps: ComponentOverlaps


class ComponentMetrics(Metric):
    """Mean sIoU over ground-truth components, mean PPV over predicted ones, and F1*, the mean F1 over 11 overlap thresholds.

    A pixel is predicted anomalous if its score lies above the threshold; components are 8-connected. See
    `functional.compare_components` for the definitions.

    `compute` gives `siou`, `ppv`, `f1` (all in [0, 1]), `threshold`, `num_gt` and `num_pred` as zero-dimensional float64 CPU
    tensors, the same on every process. sIoU is NaN without ground-truth components, PPV without predicted ones. F1 is 0
    without either of them, and NaN without both.

    The threshold of the best pixel F1 needs every pixel first. With `auto`, the maps are therefore kept until `compute`, in
    half precision (2 B + 1 B a pixel), and compared so. With a given threshold only the values of components are kept.

    Args:
        min_pred: Smallest predicted component in pixels. SegmentMeIfYouCan takes 500 on its AnomalyTrack and on Fishyscapes
            Lost and Found, and 50 on its ObstacleTrack and on Lost and Found.
        min_gt: Smallest ground-truth component in pixels: 100 on the former two sets, 10 on the latter two.
        threshold: A score, or `auto`: the one of the best pixel F1 over all frames.
        sync_on_compute: Whether `compute` shares the state with the other processes.
        **kwargs: Options of `torchmetrics.Metric`; `process_group` names the processes.

    Raises:
        ValueError: An option is out of its range.

    References:
        Chan et al., "SegmentMeIfYouCan: A Benchmark for Anomaly Segmentation", NeurIPS 2021 data sets and benchmarks.

    Example:
        >>> metric = ComponentMetrics(min_pred=1, min_gt=1)
        >>> scores, label = torch.tensor([[0.9, 0.8, 0.1, 0.1]]), torch.tensor([[1, 1, 0, 0]])
        >>> metric.update(scores, label)
        >>> metric.compute()["f1"]
        tensor(1., dtype=torch.float64)
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    void_only: VoidOnly = "refuse"

    def __init__(
        self,
        min_pred: int = 500,
        min_gt: int = 100,
        threshold: float | Literal["auto"] = "auto",
        *,
        sync_on_compute: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(sync_on_compute=False, compute_with_cache=False, **kwargs)
        for name, value in (("min_pred", min_pred), ("min_gt", min_gt)):
            if isinstance(value, bool) or int(value) != value or value < 0:
                raise ValueError(f"{name} is {value!r}: give a whole number of pixels of at least 0")
        if threshold != "auto" and (isinstance(threshold, str) or not math.isfinite(threshold)):
            raise ValueError(f"threshold is {threshold!r}: give a finite score, or auto")
        self.min_pred, self.min_gt, self.threshold = int(min_pred), int(min_gt), threshold
        self._sync_in_values = sync_on_compute
        self._maps: list[StoredMap] = []  # with the threshold `auto`
        self._frames: list[StoredFrame] = []  # with a given threshold
        self._masks = MaskKinds()

    def update(self, maps: ArrayLike, masks: ArrayLike, *, index: ArrayLike | None = None) -> None:
        """Adds frames; everything is copied.

        Args:
            maps: `[B, H, W]`, `[H, W]` or a list of `[H, W]` finite scores, higher = more anomalous.
            masks: Of the same sizes, of 0 (normal), 1 (anomalous) and 255 (ignored).
            index: `[B]` integers, the numbers in the data set; a repeated one counts once.

        Raises:
            ValueError: Names the first bad frame and the value; the state is as before.
        """
        images = check_maps(maps, masks, None, index, round_to_half=self.threshold == "auto")
        self._masks.add(images)
        for image in images:
            label = np.zeros(image.scores.shape, np.uint8) if image.mask is None else image.mask
            if self.threshold == "auto":
                self._maps.append(StoredMap(image.index, _as_float16(image), label.copy()))
            else:
                scores = image.scores if image.kind == "float32" else half_values(image.scores, image.kind)
                self._frames.append(StoredFrame(image.index, self._compare(scores, label, float(self.threshold))))

    def _compare(self, scores: np.ndarray, label: np.ndarray, threshold: float) -> ComponentOverlaps:
        return compare_components(scores > threshold, label, min_pred=self.min_pred, min_gt=self.min_gt)

    # ---- values --------------------------------------------------------------------------------------------------------

    def compute(self) -> dict[str, Tensor]:
        """Returns all values by name; it may be called again, and before further updates.

        Raises:
            ValueError: No pixel of any mask is anomalous, but some masks hold 255, as if it stood for that.
        """
        if self.void_only == "refuse":
            kinds, group = MaskKinds(), self._group()
            for theirs in group.gather_objects(self._masks):
                kinds.add_counts(theirs)
            kinds.refuse()
        threshold, frames = self._all_frames()
        values = component_values(*_concatenate(frames))
        names = ("siou", "ppv", "f1", "threshold", "num_gt", "num_pred")
        return as_tensors({name: threshold if name == "threshold" else values[name] for name in names})

    def details(self) -> dict[str, np.ndarray]:
        """Returns what the values are made of; every process of the group has to call it.

        Returns:
            `siou` `[G]` and `ppv` `[P]` of all components, the numbers of components `gt_per_frame` and `pred_per_frame`
            `[F]`, and `tp`, `fn`, `fp` and `f1` `[11]` of `functional.count_components`.
        """
        _, frames = self._all_frames()
        siou, ppv = _concatenate(frames)
        return {
            "siou": siou,
            "ppv": ppv,
            "gt_per_frame": np.array([frame.siou.size for frame in frames], np.int64),
            "pred_per_frame": np.array([frame.ppv.size for frame in frames], np.int64),
            **count_components(siou, ppv)._asdict(),
        }

    def _group(self) -> Group:
        """Returns the processes that share their frames."""
        return current_group(self.process_group) if self._sync_in_values else Group()

    def _all_frames(self) -> tuple[float, list[ComponentOverlaps]]:
        """Returns the threshold and the frames of all processes, by number if all have one, each number once."""
        group = self._group()
        if self.threshold == "auto":
            maps = [self._maps[i] for i in _counting([stored.number for stored in self._maps], group)]
            histograms = (score_histograms(scores, label) for _, scores, label in maps)
            total = sum(histograms, np.zeros((2, HALF_SCORES), np.int64))
            _, threshold = best_threshold(group.sum(total))
            mine = [StoredFrame(number, self._compare(scores, label, threshold)) for number, scores, label in maps]
        else:
            threshold = float(self.threshold)
            mine = [self._frames[i] for i in _counting([stored.number for stored in self._frames], group)]
        every = [frame for frames in group.gather_objects(mine) for frame in frames]
        if all(frame.number is not None for frame in every):
            every.sort(key=lambda frame: frame.number or 0)
        return threshold, [frame.overlaps for frame in every]

    # ---- torchmetrics --------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Forgets all frames."""
        super().reset()
        self._maps, self._frames, self._masks = [], [], MaskKinds()

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Adds a batch, as `update`, and returns the values of this batch alone, on this process alone."""
        self.update(*args, **kwargs)
        alone = ComponentMetrics(self.min_pred, self.min_gt, self.threshold, sync_on_compute=False)
        alone.void_only = "ignore"  # that a batch holds no anomaly is nothing to refuse
        alone.update(*args, **kwargs)
        values = alone.compute()
        self._forward_cache = values  # type: ignore[assignment]  # torchmetrics declares None
        return values

    def merge_state(self, incoming_state: Mapping[str, Any] | Metric) -> None:
        """Takes in the state of another metric as that of a process of higher rank, so that its repeated frames drop out.

        Args:
            incoming_state: A `ComponentMetrics` of the same options.

        Raises:
            ValueError: The options differ; the state is as before.
        """
        other = incoming_state
        mine = (self.min_pred, self.min_gt, self.threshold)
        if not isinstance(other, ComponentMetrics) or (other.min_pred, other.min_gt, other.threshold) != mine:
            raise ValueError(f"cannot merge {other!r}: give a ComponentMetrics of min_pred, min_gt, threshold {mine}")
        self._maps += other._maps
        self._frames += other._frames
        self._masks.add_counts(other._masks)
        self._update_count += other._update_count


def _concatenate(frames: Sequence[ComponentOverlaps]) -> tuple[np.ndarray, np.ndarray]:
    """Returns sIoU `[G]` and PPV `[P]` of the components of all frames."""
    siou = np.concatenate([np.zeros(0), *(frame.siou for frame in frames)])
    ppv = np.concatenate([np.zeros(0), *(frame.ppv for frame in frames)])
    return siou, ppv


def _counting(numbers: list[int | None], group: Group) -> list[int]:
    """Returns the positions of this process's frames that count: the first of each number, on the lowest rank with it."""
    everyone = group.gather_objects(numbers)
    seen = {number for theirs in everyone[: group.rank] for number in theirs if number is not None}
    counting = []
    for i, number in enumerate(numbers):
        if number is None or number not in seen:
            counting.append(i)
            seen.add(-1 if number is None else number)
    return counting


def _as_float16(image: CheckedImage) -> np.ndarray:
    """Returns a copy of the scores of a half-precision image as float16; bfloat16 scores are rounded by torch."""
    if image.kind == "float16":
        return image.scores.view(np.float16).copy()
    rounded: np.ndarray = torch.from_numpy(image.scores.view(np.int16)).view(torch.bfloat16).half().numpy()
    return rounded
