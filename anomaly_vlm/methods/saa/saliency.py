"""SAA's saliency: how little a place looks like the rest of the image, or like the other objects in it. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def joined_stages(maps: Sequence[Tensor]) -> Tensor:
    """Stages [1, C_l, h_l, w_l], the finest first -> [h, w, sum C_l] on its grid: enlarged to the nearest, unit norm."""
    size = maps[0].shape[-2:]
    joined = torch.cat([maps[0], *(F.interpolate(m, size=size, mode="nearest") for m in maps[1:])], dim=1)
    return F.normalize(joined[0].float().permute(1, 2, 0), dim=-1)


def unlike_the_rest(features: Tensor, *, farthest: int = 400, memory_mb: float = 256.0) -> Tensor:
    """Saliency [h, w] of one object or texture: mean distance to the positions that are the least alike.

    Args:
        features: [h, w, C], unit norm.
        farthest: over so many positions (all, where there are fewer).
        memory_mb: bound on the similarities held at a time, in MB.

    Returns:
        (1 - cosine) / 2, in [0, 1].
    """
    flat = features.flatten(0, 1)
    count = min(farthest, len(flat))
    rows = max(1, int(memory_mb * 1e6) // (4 * len(flat)))
    least = [(part @ flat.T).topk(count, dim=1, largest=False, sorted=False).values for part in flat.split(rows)]
    return ((1 - torch.cat(least).mean(dim=1)) / 2).clamp_min(0).view(features.shape[:2])


def unlike_the_others(features: Tensor, objects: Tensor, *, memory_mb: float = 256.0) -> Tensor:
    """Saliency [h, w] where there are several objects of a kind: distance to the most similar position of another one.

    Where objects overlap, a position of an object has no likeness (cosine 0) to itself in another one. 0 outside all
    objects, the maximum where several claim a position; 0 everywhere for less than two objects.

    Args:
        features: [h, w, C], unit norm. objects: [n, H, W] bool masks, taken to the grid by the nearest pixel.
        memory_mb: see `unlike_the_rest`.
    """
    flat = features.flatten(0, 1)
    saliency = flat.new_zeros(len(flat))
    if len(objects) > 1:
        on_grid = F.interpolate(objects[:, None].to(flat.dtype), size=features.shape[:2], mode="nearest") > 0
        masks = on_grid.flatten(1)  # [n, h w]
        claims = masks.sum(dim=0)
        for own in masks:
            elsewhere = (claims - own.long() > 0).nonzero().flatten()  # in some other object
            if own.any() and len(elsewhere):
                shared = own[elsewhere]
                found = _nearest(flat[own], flat[elsewhere], shared, memory_mb)
                saliency[own] = torch.maximum(saliency[own], ((1 - found) / 2).clamp_min(0))
    return saliency.view(features.shape[:2])


def _nearest(queries: Tensor, others: Tensor, shared: Tensor, memory_mb: float) -> Tensor:
    """Largest cosine [q] of queries [q, C] with others [m, C]; 0 with those that are `shared` [m]."""
    rows = max(1, int(memory_mb * 1e6) // (4 * len(others)))
    bank = others * ~shared[:, None]
    return torch.cat([(part @ bank.T).amax(dim=1) for part in queries.split(rows)])
