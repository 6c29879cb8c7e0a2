"""The contenders of the metrics benchmark. Each loads its data and gives the work that is timed.

All take `maps` [N, S, S] float32 and `masks` [N, S, S] uint8 from a folder and return values by name. Everything that a
contender does to an image before it can measure (a cast, a flattening) is part of its work.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Work = Callable[[], dict[str, Any]]


def load(folder: str) -> tuple[np.ndarray, np.ndarray]:
    return np.load(Path(folder) / "maps.npy"), np.load(Path(folder) / "masks.npy")


def reference(folder: str, half: bool) -> Work:
    """Float64 values from one index sort of all pixels: the yardstick for deviations; shares nothing with the package."""
    from scipy import ndimage

    maps, masks = load(folder)
    if half:
        maps = maps.astype(np.float16).astype(np.float32)

    def work() -> dict[str, Any]:
        weights = np.zeros(masks.shape)
        regions = 0
        for mask, weight in zip(masks, weights, strict=True):
            labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
            regions += count
            areas = ndimage.sum_labels(mask, labels, range(1, count + 1))
            weight[labels > 0] = 1.0 / np.asarray(areas)[labels[labels > 0] - 1]
        order = np.argsort(-maps.reshape(-1), kind="stable")
        scores, labels = maps.reshape(-1)[order], masks.reshape(-1)[order].astype(np.int64)
        ends = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))
        hits, false = np.cumsum(labels)[ends], np.cumsum(1 - labels)[ends]
        overlap = np.cumsum(weights.reshape(-1)[order])[ends] / regions
        total, negative = int(hits[-1]), int(false[-1])
        fpr, tpr = np.append(0, false) / negative, np.append(0, hits) / total
        f1 = 2 * hits / (hits + false + total)
        return {
            "auroc": trapezoid(fpr, tpr),
            "ap": float(np.sum(np.diff(tpr) * hits / (hits + false))),
            "f1_max": float(f1.max()),
            "f1_max_threshold": float(scores[ends][f1.argmax()]),
            "fpr95": float(false[np.argmax(20 * hits >= 19 * total)] / negative),
            "aupro": area_up_to(fpr, np.append(0, overlap), 0.3),
        }

    return work


def trapezoid(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1])) / 2)


def area_up_to(x: np.ndarray, y: np.ndarray, limit: float) -> float:
    """Area for x in [0, limit] by linear interpolation, divided by `limit`."""
    within = x <= limit
    end = int(within.sum())
    if end == x.size:
        return trapezoid(x, y) / limit
    last = y[end - 1] + (y[end] - y[end - 1]) * (limit - x[end - 1]) / (x[end] - x[end - 1])
    return trapezoid(np.append(x[within], limit), np.append(y[within], last)) / limit


def published(folder: str) -> Work:
    """The routine that the zero-shot repositories share: scikit-learn, and AUPRO over 200 thresholds with scikit-image.

    Written anew from its description. As there, the regions of every mask are labelled anew at every threshold.
    """
    from skimage import measure
    from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score

    maps, masks = load(folder)

    def pro() -> float:
        low, high = maps.min(), maps.max()
        overlaps, false_rates = [], []
        normal = 1 - masks
        for threshold in np.arange(low, high, (high - low) / 200):
            predicted = maps > threshold
            found = [
                predicted[i][region.coords[:, 0], region.coords[:, 1]].sum() / region.area
                for i, mask in enumerate(masks)
                for region in measure.regionprops(measure.label(mask))
            ]
            overlaps.append(np.mean(found))
            false_rates.append(np.logical_and(normal, predicted).sum() / normal.sum())
        fpr, overlap = np.array(false_rates), np.array(overlaps)
        fpr, overlap = fpr[fpr < 0.3], overlap[fpr < 0.3]
        return float(auc((fpr - fpr.min()) / (fpr.max() - fpr.min()), overlap))

    def work() -> dict[str, Any]:
        labels, scores = masks.ravel(), maps.ravel()
        precision, recall, _ = precision_recall_curve(labels, scores)
        return {
            "auroc": float(roc_auc_score(labels, scores)),
            "ap": float(average_precision_score(labels, scores)),
            "f1_max": float(np.max(2 * precision * recall / np.maximum(precision + recall, 1e-12))),
            "aupro": pro(),
        }

    return work


def adeval_arrays(folder: str) -> Work:
    """ADEval on arrays: AUROC, AP, AUPRO on 1,000 strips of scores."""
    give_trapz()
    from adeval import auroc_aupr_aupro

    maps, masks = load(folder)
    return lambda: dict(zip(("auroc", "ap", "aupro"), auroc_aupr_aupro(maps, masks), strict=True))


def adeval_accumulator(folder: str) -> Work:
    """ADEval image by image. It needs the range of the scores beforehand, which it gets for free here."""
    give_trapz()
    from adeval import EvalAccumulator

    maps, masks = load(folder)
    low, high = float(maps.min()), float(maps.max())

    def work() -> dict[str, Any]:
        total = EvalAccumulator(low, high, low, high)
        for scores, mask in zip(maps, masks, strict=True):
            total.add_anomap(scores, mask)
        total.add_image(np.array([0.0, 1.0]), np.array([0, 1]))  # its summary wants image and sample scores too
        total.add_sample(np.array([0.0, 1.0]), np.array([0, 1]))
        values = total.summary()
        return {"auroc": values["p_auroc"], "ap": values["p_aupr"], "aupro": values["p_aupro"]}

    return work


def give_trapz() -> None:
    """ADEval 1.1 calls `numpy.trapz`, which NumPy 2.4 no longer has."""
    if not hasattr(np, "trapz"):
        np.trapz = np.trapezoid  # type: ignore[attr-defined]


def torchmetrics_exact(folder: str) -> Work:
    """The exact mode of torchmetrics, without thresholds: AUROC, AP, F1-max of the exact PR curve. It has no AUPRO."""
    import torch
    from torchmetrics.functional.classification import (
        binary_auroc,
        binary_average_precision,
        binary_precision_recall_curve,
    )

    maps, masks = (torch.from_numpy(part) for part in load(folder))

    def work() -> dict[str, Any]:
        scores, labels = maps.flatten(), masks.flatten().long()
        precision, recall, _ = binary_precision_recall_curve(scores, labels)
        f1 = 2 * precision * recall / (precision + recall).clamp_min(1e-12)
        return {
            "auroc": float(binary_auroc(scores, labels)),
            "ap": float(binary_average_precision(scores, labels)),
            "f1_max": float(f1.max()),
        }

    return work


def anomalib(folder: str) -> Work:
    """AUROC, AUPR, F1-max and AUPRO of anomalib."""
    import torch
    from anomalib.metrics.aupr import _AUPR
    from anomalib.metrics.aupro import _AUPRO
    from anomalib.metrics.auroc import _AUROC
    from anomalib.metrics.f1_score import _F1Max

    maps, masks = (torch.from_numpy(part) for part in load(folder))

    def work() -> dict[str, Any]:
        values = {}
        for name, kind in {"auroc": _AUROC, "ap": _AUPR, "f1_max": _F1Max, "aupro": _AUPRO}.items():
            metric = kind()
            metric.update(maps, masks.long())
            values[name] = float(metric.compute())
        return values

    return work


def aupimo_of(count: int, side: int, seed: int, thresholds: int) -> Work:
    """AUPIMO of drawn images, ours and anomalib's, which takes `thresholds` equal steps between the scores of normal images.

    A quarter of the images are normal. `side` is chosen so that both bounds of the false-positive rate are whole numbers of
    their pixels: else anomalib takes the nearest rates that there are.
    """
    import torch
    from anomalib.metrics.pimo.functional import aupimo_scores

    from anomaly_vlm.bench._metric_data import draw
    from anomaly_vlm.metrics.decisions import aupimo

    maps, masks = (np.stack(part) for part in zip(*(draw(seed, i, side) for i in range(count)), strict=True))
    anomalous = masks.any(axis=(1, 2))

    def work() -> dict[str, Any]:
        mine = np.asarray(aupimo(maps, masks))[anomalous]
        found = aupimo_scores(torch.from_numpy(maps), torch.from_numpy(masks).long(), num_thresholds=thresholds)
        theirs = found[4].numpy()[anomalous]
        return {"difference": float(np.abs(mine - theirs).max()), "lowest": float(mine.min()), "images": len(mine)}

    return work


def ours(folder: str, half_maps: bool = False, **options: Any) -> Work:
    """`PixelMetrics(**options)`, fed image by image; `half_maps`: with float16 maps."""
    import torch

    from anomaly_vlm.metrics import PixelMetrics

    maps, masks = (torch.from_numpy(part) for part in load(folder))
    maps = maps.half() if half_maps else maps
    normal = [not bool(mask.any()) for mask in masks]

    def work() -> dict[str, Any]:
        metric = PixelMetrics(**options)
        spent: dict[bool, list[float]] = {True: [], False: []}
        for scores, mask, is_normal in zip(maps, masks, normal, strict=True):
            start = time.process_time()
            metric.update(scores, mask)
            spent[is_normal].append(time.process_time() - start)
        values = {name.removeprefix("pixel_"): float(value) for name, value in metric.compute().items()}
        typical = {is_normal: 1e3 * float(np.median(times)) for is_normal, times in spent.items()}
        return {**values, "update_ms_normal": typical[True], "update_ms_regions": typical[False]}

    return work


def stream(seed: int, side: int, count: int, half: bool, **options: Any) -> Work:
    """Images drawn, measured and forgotten one by one; memory is read after a quarter of them and at the end."""
    import torch

    from anomaly_vlm.bench._measure import peak
    from anomaly_vlm.bench._metric_data import draw
    from anomaly_vlm.metrics import PixelMetrics

    draw(seed, 0, side)  # what the drawing itself needs is there before the measurement

    def work() -> dict[str, Any]:
        metric, peaks = PixelMetrics(**options), []
        for i in range(count):
            scores, mask = draw(seed, i, side)
            given = torch.from_numpy(scores)
            metric.update(given.half() if half else given, torch.from_numpy(mask), index=[i])
            if i + 1 == count // 4:
                metric.compute()
                peaks.append(peak() / 1e6)
        values = {name.removeprefix("pixel_"): float(value) for name, value in metric.compute().items()}
        return {**values, "peaks_mb": [*peaks, peak() / 1e6]}

    return work
