"""Component metrics of road anomaly segmentation: sIoU, PPV and F1*, as SegmentMeIfYouCan defines them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from anomaly_vlm.metrics._engine.group import Alone, current_group
from anomaly_vlm.metrics._engine.inputs import ArrayLike, split_images
from anomaly_vlm.metrics.functional import (
    Counts,
    Frame,
    best_threshold,
    compare_components,
    count_components,
    histograms,
)

Stored = tuple[int | None, np.ndarray, np.ndarray]  # number in the data set, float16 scores, uint8 label


class ComponentMetrics(Metric):
    """Mean sIoU over ground-truth components, mean PPV over predicted ones, and F1*, the mean F1 over 11 overlap thresholds.

    A pixel is predicted anomalous where its score lies above the threshold; components are 8-connected. See
    `compare_components` for the definitions.

    `compute` gives `siou`, `ppv`, `f1` (in [0, 1]), `threshold`, `num_gt`, `num_pred`, as 0-dim float64 CPU tensors, the
    same on every process. NaN: sIoU without ground-truth components, PPV without predicted ones; F1 is 0 then, and NaN
    without either.

    The threshold of best pixel F1 needs every pixel first, so with `auto` the maps are kept until `compute`, in half
    precision (2 B + 1 B a pixel), and compared so. With a given threshold only the components' values are kept.

    Args:
        min_pred, min_gt: smallest predicted and ground-truth component in pixels: 500 and 100 on SegmentMeIfYouCan's
            AnomalyTrack and Fishyscapes Lost and Found, 50 and 10 on its ObstacleTrack and on Lost and Found.
        threshold: a score, or `auto`: that of the best pooled pixel F1.
        sync_on_compute: share the state with the other processes in `compute`.
        kwargs: of `torchmetrics.Metric`; `process_group` names the processes.

    Raises:
        ValueError: an option out of its range.

    Reference: Chan et al., "SegmentMeIfYouCan: A Benchmark for Anomaly Segmentation", NeurIPS 2021 data sets and benchmarks.

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
        self.share = sync_on_compute
        self._maps: list[Stored] = []
        self._frames: list[tuple[int | None, Frame]] = []  # with a given threshold

    def update(self, maps: ArrayLike, masks: ArrayLike, *, index: ArrayLike | None = None) -> None:
        """Adds frames; everything is copied.

        Args:
            maps: [B, H, W], [H, W] or a list of [H, W] finite scores. masks: same sizes, 0 / 1 / 255 (ignored).
            index: [B] number in the data set; a repeated one counts once.

        Raises:
            ValueError: names the first bad frame and the value; the state is as before.
        """
        images = split_images(maps, masks, None, index, round_to_half=self.threshold == "auto")
        for image in images:
            label = np.zeros(image.scores.shape, np.uint8) if image.mask is None else image.mask
            if self.threshold == "auto":
                scores = image.scores.view(np.float16)
                if image.kind == "bfloat16":
                    scores = torch.from_numpy(image.scores.view(np.int16)).view(torch.bfloat16).half().numpy()
                self._maps.append((image.index, scores.copy(), label.copy()))
            else:
                scores = image.scores if image.kind == "float32" else _as_float(image.scores, image.kind)
                self._frames.append((image.index, self._frame(scores, label, float(self.threshold))))

    def _frame(self, scores: np.ndarray, label: np.ndarray, threshold: float) -> Frame:
        return compare_components(scores > threshold, label, min_pred=self.min_pred, min_gt=self.min_gt)

    # ---- values --------------------------------------------------------------------------------------------------------

    def compute(self) -> dict[str, Tensor]:
        """All values by name. May be called again, and before further updates."""
        values, _ = self._values()
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}

    def details(self) -> dict[str, np.ndarray]:
        """What the values are made of: `siou` [G], `ppv` [P], `gt_per_frame`, `pred_per_frame` [F], `tp` .. `f1` [11].

        Every process of the group must call it.
        """
        return self._values()[1]

    def _values(self) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        group = current_group(self.process_group) if self.share else Alone()
        threshold, frames = self._all_frames(group)
        siou = np.concatenate([np.zeros(0), *(frame.siou for frame in frames)])
        ppv = np.concatenate([np.zeros(0), *(frame.ppv for frame in frames)])
        counts: Counts = count_components(siou, ppv)
        nothing = siou.size + ppv.size == 0
        values = {
            "siou": float(siou.mean()) if siou.size else math.nan,
            "ppv": float(ppv.mean()) if ppv.size else math.nan,
            "f1": math.nan if nothing else float(counts.f1.mean()),
            "threshold": threshold,
            "num_gt": float(siou.size),
            "num_pred": float(ppv.size),
        }
        per_frame = {
            "gt_per_frame": np.array([frame.siou.size for frame in frames], np.int64),
            "pred_per_frame": np.array([frame.ppv.size for frame in frames], np.int64),
        }
        return values, {"siou": siou, "ppv": ppv, **per_frame, **counts._asdict()}

    def _all_frames(self, group: Alone) -> tuple[float, list[Frame]]:
        """The threshold, and the frames of all processes, by number where they have one, each number once."""
        stored: list[Any] = self._maps if self.threshold == "auto" else self._frames
        mine = self._counting([entry[0] for entry in stored], group)
        if self.threshold == "auto":
            kept = [self._maps[i] for i in mine]
            total = sum((histograms(scores, label) for _, scores, label in kept), np.zeros((2, 65536), np.int64))
            _, threshold = best_threshold(group.sum(total))
            own = [(number, self._frame(scores, label, threshold)) for number, scores, label in kept]
        else:
            threshold, own = float(self.threshold), [self._frames[i] for i in mine]
        every = [entry for part in group.gather_objects(own) for entry in part]
        if all(number is not None for number, _ in every):
            every.sort(key=lambda entry: entry[0])
        return threshold, [frame for _, frame in every]

    def _counting(self, numbers: list[int | None], group: Alone) -> list[int]:
        """Positions of this process's frames that count: the first of each number, on the lowest rank that has it."""
        everyone = group.gather_objects(numbers)
        seen = {number for part in everyone[: group.rank] for number in part if number is not None}
        kept = []
        for i, number in enumerate(numbers):
            if number is None or number not in seen:
                kept.append(i)
                seen.add(-1 if number is None else number)
        return kept

    # ---- torchmetrics --------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Forgets everything."""
        super().reset()
        self._maps, self._frames = [], []

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """`update`, then the values of this batch alone (of this process alone)."""
        self.update(*args, **kwargs)
        alone = ComponentMetrics(self.min_pred, self.min_gt, self.threshold, sync_on_compute=False)
        alone.update(*args, **kwargs)
        values = alone.compute()
        self._forward_cache = values  # type: ignore[assignment]  # torchmetrics declares None
        return values

    def merge_state(self, incoming_state: Mapping[str, Any] | Metric) -> None:
        """Takes the state of another metric of the same options up, as a higher rank's: its repeats are left out."""
        other = incoming_state
        mine = (self.min_pred, self.min_gt, self.threshold)
        if not isinstance(other, ComponentMetrics) or (other.min_pred, other.min_gt, other.threshold) != mine:
            raise ValueError(f"cannot merge {other!r}: give a ComponentMetrics of min_pred, min_gt, threshold {mine}")
        self._maps += other._maps
        self._frames += other._frames
        self._update_count += other._update_count


def _as_float(bits: np.ndarray, kind: str) -> np.ndarray:
    if kind == "float16":
        return bits.view(np.float16).astype(np.float32)
    return torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).float().numpy()
