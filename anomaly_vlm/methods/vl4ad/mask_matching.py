"""Mask2Former's training targets: which mask is to become which segment, and at which points the two are compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from anomaly_vlm.methods.vl4ad.mask_decoder import Mask2FormerConfig, Mask2FormerLoss, sample_point

VOID = 255
Segments = tuple[Tensor, Tensor]  # classes [T] int64, masks [T, H, W] of 0.0 / 1.0


def segments(label_map: Tensor) -> list[Segments]:
    """The segments of images: one for each class in it, classes ascending.

    Args:
        label_map: Train ids `[B, H, W]`; 255 is ignored.
    """
    by_image = []
    for labels in label_map:
        classes = labels.unique()
        classes = classes[classes != VOID]
        by_image.append((classes.long(), (labels[None] == classes[:, None, None]).float()))
    return by_image


@dataclass
class Matched:
    """The M masks of a batch that have a segment, in order of image and mask, at P points each.

    Attributes:
        logits: `[M, P]` of the masks.
        labels: `[M, P]` of their segments, 0.0 or 1.0.
        classes: Target `[B, N]` of every mask, K where it has no segment.
        image: Image `[M]` of each mask, int64.
        query: Number `[M]` of each mask in its image, int64.
        target: Number `[M]` of each segment in its image, int64.
    """

    logits: Tensor
    labels: Tensor
    classes: Tensor
    image: Tensor
    query: Tensor
    target: Tensor


class MaskMatching:
    """Hungarian matching on random points, then a draw of random points of which most are uncertain ones.

    Both are computed by `transformers`. The costs of the matching are the weights of the loss terms.

    Args:
        points: Points of each comparison.
        weights: Weights of the terms `class`, `mask` and `dice`; an absent one is 0.
    """

    def __init__(self, *, points: int, weights: dict[str, float]) -> None:
        config = Mask2FormerConfig(train_num_points=points)
        config.class_weight, config.mask_weight, config.dice_weight = (
            float(weights.get(name, 0.0)) for name in ("class", "mask", "dice")
        )
        self.criterion = Mask2FormerLoss(config, {})

    def __call__(self, masks: Tensor, logits: Tensor, targets: Sequence[Segments]) -> Matched:
        """Matches one decoder stage.

        Args:
            masks: Mask logits `[B, N, h, w]`.
            logits: Class logits `[B, N, K + 1]`.
            targets: Segments of each image.
        """
        classes = torch.full(logits.shape[:2], logits.shape[-1] - 1, dtype=torch.int64, device=logits.device)
        rows, queries, chosen, truth = [], [], [], []
        for i, (labels, regions) in enumerate(targets):
            if len(labels) == 0:
                continue
            pairs = self.criterion.matcher(masks[i : i + 1], logits[i : i + 1], [regions], [labels])[0]
            query, target = (indices.to(logits.device) for indices in pairs)
            classes[i, query] = labels[target]
            rows.append(torch.full_like(query, i))
            queries.append(query)
            chosen.append(target)
            truth.append(regions[target])
        if not rows:
            nothing = classes.new_zeros(0)
            return Matched(masks.new_zeros(0, 1), masks.new_zeros(0, 1), classes, nothing, nothing, nothing)
        image, query, target = torch.cat(rows), torch.cat(queries), torch.cat(chosen)
        predicted = masks[image, query][:, None]
        regions = torch.cat(truth)[:, None].to(masks.dtype)
        with torch.no_grad():
            points = self._points(predicted)
            labels = sample_point(regions, points, align_corners=False).squeeze(1)
        sampled = sample_point(predicted, points, align_corners=False).squeeze(1)
        return Matched(sampled, labels, classes, image, query, target)

    def _points(self, predicted: Tensor) -> Tensor:
        criterion = self.criterion
        return criterion.sample_points_using_uncertainty(
            predicted,
            criterion.calculate_uncertainty,
            criterion.num_points,
            criterion.oversample_ratio,  # type: ignore[arg-type]  # 3.0, annotated as a whole number
            criterion.importance_sample_ratio,
        )


def count_segments(targets: Sequence[Segments]) -> float:
    """Number of segments of a batch, at least 1, by which the mask losses are divided; under DDP the processes' mean."""
    count = float(sum(len(classes) for classes, _ in targets))
    if dist.is_available() and dist.is_initialized():
        total = torch.tensor(count, device=targets[0][0].device)
        dist.all_reduce(total)
        count = float(total) / dist.get_world_size()
    return max(count, 1.0)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """A context whose random draws depend on `seed` alone, and leave the global generators as they were."""
    devices = [device.index or 0] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
