"""What the nano CLIP is worth: its zero-shot scores beside random weights and beside maps that nobody had to train."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from anomaly_vlm.backbone import ClipBackbone
from anomaly_vlm.bench.trivial import MAPS, image_scores
from anomaly_vlm.data import AnomalyData, Preprocess
from anomaly_vlm.data.limits import balanced
from anomaly_vlm.data.source import Source
from anomaly_vlm.data.types import Sample
from anomaly_vlm.metrics.decisions import bootstrap
from anomaly_vlm.metrics.functional import pixel_metrics
from anomaly_vlm.nano.zero_shot import Scored, score_set

DRAWS = 1000  # of the bootstrap


class Limited:
    """A source of which a table shows a balanced part (None: all)."""

    def __init__(self, source: Source, limit: int | None) -> None:
        self.source, self.limit, self.name = source, limit, source.name

    def samples(self, side: str) -> list[Sample]:
        """The samples of a side, balanced over category and label up to the limit."""
        return balanced(self.source.samples(side), self.limit)

    def references(self) -> list[Sample]:
        """The source's own."""
        return self.source.references()


@dataclass(frozen=True)
class Row:
    """Percent. low, high: 95 % bootstrap interval of the image AUROC minus that of the best trivial score, same images."""

    name: str
    image: float
    pixel: float
    aupro: float
    low: float | None = None
    high: float | None = None


def pixels(backbone: ClipBackbone, source: Source) -> tuple[list[np.ndarray], np.ndarray, np.ndarray | None]:
    """The pictures of a set as the methods see them (uint8 [S, S, 3]), labels [N], masks uint8 [N, S, S] or None."""
    data = AnomalyData(test=source, cache_mb=0)
    data.preprocess = Preprocess(size=backbone.image_size, mean=backbone.mean, std=backbone.std)
    dataset = data.dataset("test")
    pictures = [dataset.picture(i) for i in range(len(dataset))]
    items = [dataset[i] for i in range(len(dataset))]
    masks = [item.mask for item in items if item.mask is not None]
    return pictures, np.array([item.label for item in items]), torch.stack(masks).numpy() if masks else None


def trivial_scores(pictures: list[np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name -> scores [N] and maps [N, S, S] of the trivial baselines; `mean brightness` has no map."""
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for title, make in MAPS.items():
        maps = np.stack([make(picture) for picture in pictures]).astype(np.float32)
        tops = [image_scores(one) for one in maps]
        for kind in ("max", "top 2 %"):
            found[f"{title}, {kind}"] = (np.array([top[kind] for top in tops]), maps)
    brightness = np.array([picture.mean() for picture in pictures])
    found["mean brightness"] = (brightness, np.zeros((0,)))
    return found


def row(name: str, score: np.ndarray, maps: np.ndarray, label: np.ndarray, masks: np.ndarray | None) -> Row:
    """Pooled image AUROC, pixel AUROC and AUPRO (false positives up to 30 %)."""
    image = 100 * float(roc_auc_score(label, score))
    if masks is None or not len(maps):
        return Row(name, image, np.nan, np.nan)
    values = pixel_metrics(maps.astype(np.float32), masks)
    return Row(name, image, 100 * float(values["pixel_auroc"]), 100 * float(values["pixel_aupro"]))


def compare(
    source: Source,
    backbones: Mapping[str, ClipBackbone],
    *,
    extra: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> list[Row]:
    """The table of one set.

    Args:
        source: The set; its test side is shown.
        backbones: Towers by name, whose zero-shot scores are shown.
        extra: Scores `[N]` and maps `[N, S, S]` of others, by name.
        tell: Takes a line of progress.
    """
    first = next(iter(backbones.values()))
    pictures, label, masks = pixels(first, source)
    tell(f"{source.name}: {len(label)} images, trivial baselines")
    trivial = trivial_scores(pictures)
    rows = [row(name, *values, label, masks) for name, values in trivial.items()]
    best = max((r for r in rows if r.name != "mean brightness"), key=lambda r: r.image).name
    named: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, backbone in backbones.items():
        tell(f"{source.name}: {name}")
        scored: Scored = score_set(backbone, source)
        named[name] = (scored.score, scored.maps)
    for name, (score, maps) in {**named, **(extra or {})}.items():
        _, low, high = bootstrap(score, label, minus=trivial[best][0], draws=DRAWS)
        made = row(name, score, maps, label, masks)
        rows.append(Row(name, made.image, made.pixel, made.aupro, 100 * low, 100 * high))
    return rows
