"""Pixel-level metrics of all categories in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from anomaly_vlm.metrics._engine.inputs import ArrayLike, PixelOptions
from anomaly_vlm.metrics._engine.metric import CurveMetric, pixel_engine


class PixelMetrics(CurveMetric):
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

    With `category`, the names are `<category>/<name>`, `mean/<name>` (over the categories where the value is defined),
    `mean_count/<name>` (how many those are) and `pooled/<name>` (all images as one category). Values are zero-dimensional
    float64 CPU tensors in [0, 1]; undefined ones (no anomalous or no normal pixel) are NaN, with one warning.

    Exact mode takes O(n log n) plain sorts for n normal pixels, and 4 B a normal and 12 B an anomalous pixel of float32
    maps, or 1.5 MB a category for any number of half-precision maps.

    Args:
        mode: `exact`, or `binned`: bounded memory, and each value with bounds `<name>/lower` and `<name>/upper`, between
            which the exact value lies.
        bins: Most bins of a category in binned mode.
        aupro_limits: False-positive rates in (0, 1] up to which AUPRO is taken.
        connectivity: Of regions: 8, 4 or (8, 4).
        recall: In (0, 1]; 0.95 gives `pixel_fpr95`.
        legacy: Whether to add the 200-threshold values of published codes, `pixel_aupro_legacy` and
            `pixel_aupro_legacy_filled`.
        half: Whether to round float32 maps to float16, which changes the values.
        workers: Number of threads that sort; None takes `torch.get_num_threads()`. Two threads on two busy cores took 0.6 to
            0.9 of the time of one for `compute` on 54 M pixels.
        device: Accelerator on which normal scores are kept and sorted; None keeps them on the CPU, so that GPU memory does
            not grow.
        **kwargs: Options of `torchmetrics.Metric`.

    Raises:
        ValueError: An option is out of its range, or options exclude each other.

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
        options = PixelOptions.checked(
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
            maps: `[B, H, W]`, `[B, 1, H, W]` or `[H, W]` finite scores of a float dtype, on any device; or a list of
                `[H, W]`.
            masks: Of the same sizes; bool, integer or float of 0 (normal), 1 (anomalous) and 255 (void, left out).
            category: One name an image, or one for all.
            index: `[B]` integers, the numbers in the data set; a repeated one counts once.

        Raises:
            ValueError: Names the first bad image and the value; the state is as before.
        """
        self._add_maps("pixel", maps, masks, category, index)
