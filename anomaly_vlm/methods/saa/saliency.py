"""SAA's saliency: how little a place looks like the rest of the image, or like the other objects in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_vlm.methods.shared.precision import product
from anomaly_vlm.options import AtLeast, PositiveFloat, PositiveInt


@dataclass(frozen=True)
class SaliencyOptions:
    """How saliency is computed and used.

    Args:
        size: Side in pixels at which the trunk sees an image of one object.
        objects_size: Side in pixels at which it sees an image of several objects.
        farthest: Number of positions that the saliency of one object is the mean distance to.
        weight: Weight of saliency in the scores, see `rescored`.
        memory_mb: Bound in MB on the similarities of positions that are held at a time.
    """

    size: PositiveInt = 256
    objects_size: PositiveInt = 1024
    farthest: PositiveInt = 400
    weight: Annotated[float, AtLeast(0)] = 3.0
    memory_mb: PositiveFloat = 256.0


def joined_stages(maps: Sequence[Tensor]) -> Tensor:
    """Joins the stages of a trunk on the finest grid, enlarged to the nearest, and normalises each position.

    Args:
        maps: Stages `[1, C_l, h_l, w_l]`, the finest first.

    Returns:
        `[h, w, sum C_l]`, unit norm.
    """
    size = maps[0].shape[-2:]
    joined = torch.cat([maps[0], *(F.interpolate(m, size=size, mode="nearest") for m in maps[1:])], dim=1)
    return F.normalize(joined[0].float().permute(1, 2, 0), dim=-1)


def unlike_the_rest(features: Tensor, *, farthest: int = 400, memory_mb: float = 256.0) -> Tensor:
    """Saliency of one object or texture: mean distance to the positions that are the least alike.

    Args:
        features: `[h, w, C]`, unit norm.
        farthest: Number of positions that the mean runs over; all, where there are fewer.
        memory_mb: Bound in MB on the similarities that are held at a time.

    Returns:
        Halved cosine distances `(1 - cos) / 2` `[h, w]`, in [0, 1].
    """
    flat = features.flatten(0, 1)
    count = min(farthest, len(flat))
    rows = max(1, int(memory_mb * 1e6) // (4 * len(flat)))
    least = [
        product(block, flat.T).topk(count, dim=1, largest=False, sorted=False).values
        for block in torch.split(flat, rows)
    ]
    return ((1 - torch.cat(least).mean(dim=1)) / 2).clamp_min(0).view(features.shape[:2])


def unlike_the_others(features: Tensor, objects: Tensor, *, memory_mb: float = 256.0) -> Tensor:
    """Saliency where there are several objects of a kind: distance to the most similar position of another one.

    Where objects overlap, a position counts as unlike itself in the other object (cosine 0). Where several objects claim a
    position it has the maximum.

    Args:
        features: `[h, w, C]`, unit norm.
        objects: Bool masks `[n, H, W]`, taken to the grid by the nearest pixel.
        memory_mb: See `unlike_the_rest`.

    Returns:
        Halved cosine distances `[h, w]`; 0 outside all objects, and everywhere for less than two of them.
    """
    flat = features.flatten(0, 1)
    saliency = flat.new_zeros(len(flat))
    if len(objects) > 1:
        on_grid = F.interpolate(objects[:, None].to(flat.dtype), size=features.shape[:2], mode="nearest") > 0
        masks = on_grid.flatten(1)  # [n, h w]
        claims = masks.sum(dim=0)
        for mask in masks:
            elsewhere = (claims - mask.long() > 0).nonzero().flatten()  # in some other object
            if mask.any() and len(elsewhere):
                shared = mask[elsewhere]
                cosine = _nearest(flat[mask], flat[elsewhere], shared, memory_mb)
                saliency[mask] = torch.maximum(saliency[mask], ((1 - cosine) / 2).clamp_min(0))
    return saliency.view(features.shape[:2])


def _nearest(queries: Tensor, others: Tensor, shared: Tensor, memory_mb: float) -> Tensor:
    """Largest cosine `[q]` of queries `[q, C]` with others `[m, C]`, which is 0 with those that are `shared` `[m]`."""
    rows = max(1, int(memory_mb * 1e6) // (4 * len(others)))
    bank = others * ~shared[:, None]
    return torch.cat([product(block, bank.T).amax(dim=1) for block in torch.split(queries, rows)])
