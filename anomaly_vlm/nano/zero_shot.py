"""What the bare model says of pictures: the fixed zero-shot score of training, model cards and `make nano-report`.

Map: sigmoid of each patch's margin between the damaged and the flawless texts of its category, upsampled. Score: sigmoid of
the class token's margin plus sigmoid of the mean of the top 2 % of the patches' margins. Fixed before any real picture was
looked at, the same for every set.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor

from anomaly_vlm.backbone import ClipBackbone
from anomaly_vlm.data import AnomalyData, Preprocess
from anomaly_vlm.data.source import Source
from anomaly_vlm.data.types import Batch
from anomaly_vlm.methods.shared.maps import upsample
from anomaly_vlm.nano.model import TEMPERATURE

TOP = 0.02
FLAWLESS = ("flawless {}", "perfect {}", "undamaged {}", "{} without defect", "normal {}")
DAMAGED = ("damaged {}", "defective {}", "{} with a defect", "{} with damage", "broken {}")
TEMPLATES = ("a photo of a {}.", "a close-up photo of a {}.", "{}", "a cropped photo of the {}.")


@dataclass
class Scored:
    """Scores of a side of a set, in its order. maps: [N, H, W] float16. masks: uint8 [N, H, W] or None."""

    score: np.ndarray
    label: np.ndarray
    category: np.ndarray
    maps: np.ndarray
    masks: np.ndarray | None
    paths: list[str]


@torch.no_grad()
def text_axis(backbone: ClipBackbone, word: str) -> Tensor:
    """Mean unit feature of the damaged texts minus that of the flawless ones, [C]."""
    ends = []
    for states in (DAMAGED, FLAWLESS):
        texts = [template.format(state.format(word)) for state in states for template in TEMPLATES]
        features = F.normalize(backbone.encode_text(backbone.tokenize(texts)), dim=-1)
        ends.append(F.normalize(features.mean(0), dim=-1))
    return ends[0] - ends[1]


@torch.no_grad()
def scores_and_maps(backbone: ClipBackbone, images: Tensor, axis: Tensor) -> tuple[Tensor, Tensor]:
    """Scores [B] and maps [B, H, W] of normalised images [B, 3, H, W]; `axis` [B, C] as of `text_axis`."""
    tokens = backbone.encode_image(images, layers=[backbone.num_layers])
    score, local = scores_and_cells(backbone, tokens.cls, tokens.patches[0], axis)
    maps = upsample(local.unflatten(1, tokens.grid), (images.shape[-2], images.shape[-1]), align_corners=False)
    return score, maps


def scores_and_cells(backbone: ClipBackbone, cls: Tensor, patches: Tensor, axis: Tensor) -> tuple[Tensor, Tensor]:
    """Scores [B] and values of the patches [B, N] by the last block's `cls` [B, C] and `patches` [B, N, Dv]."""
    margin = (F.normalize(cls, dim=-1) * axis).sum(1) / TEMPERATURE
    local = torch.einsum("bnc,bc->bn", F.normalize(backbone.project(patches), dim=-1), axis) / TEMPERATURE
    return torch.sigmoid(margin) + torch.sigmoid(top_mean(local)), torch.sigmoid(local)


def top_mean(cells: Tensor) -> Tensor:
    """Mean [B] of the top 2 % of values [B, N]."""
    return cells.topk(max(1, round(TOP * cells.shape[1])), dim=1).values.mean(1)


def loader(backbone: ClipBackbone, source: Source, *, side: str) -> Iterable[Batch]:
    """Every picture of a side, with the pixels that the suite's methods see."""
    data = AnomalyData(test=source, eval_batch_size=16, cache_mb=0)
    data.preprocess = Preprocess(size=backbone.image_size, mean=backbone.mean, std=backbone.std)
    data._samples["test"] = source.samples(side)
    return data.test_dataloader()


def score_set(backbone: ClipBackbone, source: Source, *, side: str = "test") -> Scored:
    """Scores every picture of a side."""
    axes: dict[str, Tensor] = {}
    parts: dict[str, list[Any]] = {name: [] for name in ("score", "label", "category", "maps", "masks", "paths")}
    for item in loader(backbone, source, side=side):
        for word in item.category:
            if word not in axes:
                axes[word] = text_axis(backbone, word)
        score, maps = scores_and_maps(backbone, item.image, torch.stack([axes[word] for word in item.category]))
        parts["score"].append(score.numpy())
        parts["label"].append(item.label.numpy())
        parts["category"] += item.category
        parts["maps"].append(maps.half().numpy())
        parts["masks"].append(None if item.mask is None else item.mask.numpy())
        parts["paths"] += item.path
    return Scored(
        score=np.concatenate(parts["score"]),
        label=np.concatenate(parts["label"]),
        category=np.array(parts["category"]),
        maps=np.concatenate(parts["maps"]),
        masks=None if any(part is None for part in parts["masks"]) else np.concatenate(parts["masks"]),
        paths=parts["paths"],
    )


def quick_values(scored: Scored, groups: dict[str, str]) -> dict[str, float]:
    """Pooled image and pixel AUROC in percent, and the image AUROC of each group of categories (`texture`, `object`)."""
    values = {"image": 100 * float(roc_auc_score(scored.label, scored.score))}
    kinds = np.array([groups[category] for category in scored.category])
    for kind in sorted(set(kinds)):
        chosen = kinds == kind
        values[f"image_{kind}"] = 100 * float(roc_auc_score(scored.label[chosen], scored.score[chosen]))
    if scored.masks is not None:
        every = slice(None, None, 3)  # of the rows and columns: enough for a curve in training
        pixels = scored.maps[:, every, every].astype(np.float32).ravel()
        values["pixel"] = 100 * float(roc_auc_score(scored.masks[:, every, every].ravel() == 1, pixels))
    return values
