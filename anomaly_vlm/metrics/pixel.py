"""Pixel-level metrics of all categories in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from anomaly_vlm.metrics._engine import pixel_engine
from anomaly_vlm.metrics._engine.group import Alone
from anomaly_vlm.metrics._engine.inputs import ArrayLike
from anomaly_vlm.metrics._engine.metric import CurveMetric, EngineMetric
from anomaly_vlm.metrics._engine.options import PixelOptions, Values, as_tensors


class PixelMetrics(CurveMetric, EngineMetric):
    r"""Pixel AUROC, AP, F1-max with its threshold, FPR at a recall and AUPRO; one sort and one labelling of regions for all.

    Scores are used as they are (no sigmoid, no rescaling); higher = more anomalous. With `P` anomalous and `N` normal pixels
    and the prediction `s >= t`:

    - `pixel_auroc` :math:`= \sum_{i \in anomalous} (\#\{normal < s_i\} + \tfrac12 \#\{normal = s_i\}) / (P N)`
    - `pixel_ap` :math:`= \sum_k (R_k - R_{k-1}) \, precision_k` over descending thresholds, as scikit-learn
    - `pixel_f1_max` :math:`= \max_t 2 TP / (TP + FP + P)`, `pixel_f1_max_threshold` the largest `t` that attains it
    - `pixel_fpr95`: FPR at the largest threshold with TPR >= 0.95
    - `pixel_aupro`: area under mean region overlap against FPR for FPR in [0, 0.3], divided by 0.3; regions are the
      8-connected components of `mask == 1`, averaged over all images of a category; `_limit0.05` etc. for other limits,
      `_conn4` for 4-connectivity
    - `num_pixels`, `num_anomalous_pixels`, `num_regions`

    With `category`, names are `<category>/<name>`, `mean/<name>` (over the categories where the value is defined),
    `mean_count/<name>` (how many those are) and `pooled/<name>` (all images as one category). Values are 0-dim float64 CPU
    tensors in [0, 1]; undefined ones (no anomalous or no normal pixel) are NaN, with one warning.

    Cost in exact mode: O(n log n) plain sorts for n normal pixels, 4 B a normal and 12 B an anomalous pixel of float32 maps;
    1.5 MB a category for half-precision maps of any number.

    Args:
        mode: `exact`, or `binned`: bounded memory, each value with a rigorous interval `<name>/lower`, `<name>/upper`.
        bins: most bins a category in binned mode.
        aupro_limits: false-positive rates in (0, 1] up to which AUPRO is taken.
        connectivity: of regions, 8, 4 or (8, 4).
        recall: in (0, 1]; 0.95 gives `pixel_fpr95`.
        legacy: add the published codes' 200-threshold values `pixel_aupro_legacy` and `pixel_aupro_legacy_filled`.
        half: round float32 maps to float16 (changes the values).
        workers: threads that sort; None: `torch.get_num_threads()`. Two on two busy cores took 0.6 to 0.9 of the time of one
            for `compute` on 54 M pixels.
        device: where normal scores are kept and sorted; None: on the CPU, so that GPU memory does not grow.
        kwargs: of `torchmetrics.Metric`.

    Raises:
        ValueError: an option out of its range.

    References:
        AUPRO: Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021. AP: scikit-learn's
        `average_precision_score`. AUROC: Mann and Whitney, 1947.

    Example:
        >>> import torch
        >>> metric = PixelMetrics()
        >>> metric.update(torch.tensor([[0.1, 0.4], [0.35, 0.8]]), torch.tensor([[0, 0], [1, 1]]))
        >>> metric.compute()["pixel_auroc"]
        tensor(0.7500, dtype=torch.float64)
    """

    def __init__(
        self,
        mode: str = "exact",
        bins: int = 65536,
        aupro_limits: float | Sequence[float] = (0.3,),
        connectivity: int | Sequence[int] = 8,
        recall: float = 0.95,
        legacy: bool = False,
        half: bool = False,
        workers: int | None = None,
        device: str | torch.device | None = None,
        **kwargs: Any,
    ) -> None:
        options = PixelOptions.make(
            mode, bins, aupro_limits, connectivity, recall, legacy, half, workers=workers, device=device
        )
        super().__init__({"pixel": pixel_engine(options)}, **kwargs)

    def update(
        self,
        maps: ArrayLike,
        masks: ArrayLike,
        *,
        category: str | Sequence[str] | None = None,
        index: ArrayLike | None = None,
    ) -> None:
        """Adds images; everything is copied.

        Args:
            maps: [B, H, W], [B, 1, H, W] or [H, W] finite scores of a float dtype, on any device; or a list of [H, W].
            masks: same sizes; bool, integer or float of 0, 1 and 255 (void: left out everywhere).
            category: one name an image, or one for all.
            index: [B] number in the data set; a repeated one counts once.

        Raises:
            ValueError: names the first bad image and the value; the state is as before.
        """
        engine = self.engines["pixel"]
        engine.commit(engine.prepare(maps, masks, category, index))
        self._changed()

    def compute(self) -> dict[str, Tensor]:
        """All values by name; the same on every process. May be called again, and before further updates."""
        return as_tensors(self.values())

    def _results(self, group: Alone) -> Values:
        return self.engines["pixel"].results(group)
