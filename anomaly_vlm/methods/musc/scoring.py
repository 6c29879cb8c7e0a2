"""The three steps of MuSc on given tokens: pooling over windows, mutual scores, re-scoring among images that look alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_vlm.methods.shared.patch_memory import aligned_similarities
from anomaly_vlm.methods.shared.precision import product

ScoreRange = Literal["raw", "minmax"]


def pooled(tokens: Tensor, grid: tuple[int, int], degree: int) -> Tensor:
    """Means over the windows around the patches, after one normalisation of all numbers of an image (LNAMD).

    Args:
        tokens: Patches `[n, N, D]` of one block.
        grid: Rows and columns.
        degree: Odd side of the windows in patches; what lies outside the grid counts as 0.

    Returns:
        `[n, N, D]`, unit norm, float32.
    """
    x = F.layer_norm(tokens.float(), tokens.shape[1:])
    if degree > 1:
        maps = x.transpose(1, 2).unflatten(2, grid)
        x = F.avg_pool2d(maps, degree, stride=1, padding=degree // 2).flatten(2).transpose(1, 2)
    return F.normalize(x, dim=-1)


def kept_ranks(count: int, interval: tuple[float, float]) -> tuple[int, int]:
    """First and last rank (not included) of the `count` distances of a patch that are averaged; at least one."""
    first = math.floor(interval[0] * count)
    return first, max(first + 1, math.floor(interval[1] * count))


def mutual_scores(
    features: Tensor,
    *,
    interval: tuple[float, float],
    memory_mb: float = 256.0,
    aligned: tuple[int, tuple[int, int]] | None = None,
) -> Tensor:
    """Scores every patch by its distances to the nearest patch of each other image (MSM).

    Args:
        features: Unit features `[n, N, D]` of all images; at least two.
        interval: Share of the other images, from the nearest on, at which averaging starts and ends.
        memory_mb: Bound in MB on the similarities that are held at a time, but never less than those of a pair of images.
        aligned: Radius in patches and grid, where patches look at about their own position alone; None for anywhere.

    Returns:
        Mean distances `[n, N]`, Euclidean.
    """
    n, patches, _ = features.shape
    budget = int(memory_mb * 1e6) // 8  # float32, half for a product and half for what is kept of all of them
    first, last = kept_ranks(n - 1, interval)
    scores = features.new_empty(n, patches)
    if aligned is None and n * n * patches <= budget:
        nearest = _all_pairs(features, tile=max(1, int((budget**0.5) // patches)))
    else:
        nearest = None
    for i in range(n):
        cosine = _row(features, i, budget, aligned) if nearest is None else nearest[i]  # [N, n]
        others = torch.cat([cosine[:, :i], cosine[:, i + 1 :]], dim=1)
        distances = (2 - 2 * others).clamp_min(0).sqrt()
        scores[i] = distances.topk(last, dim=1, largest=False, sorted=True).values[:, first:].mean(dim=1)
    return scores


def _all_pairs(features: Tensor, *, tile: int) -> Tensor:
    """Largest cosines `[n, N, n]` of every patch to the patches of each image; a product serves both directions."""
    n, patches, _ = features.shape
    nearest = features.new_empty(n, patches, n)
    for a in range(0, n, tile):
        left = features[a : a + tile]
        for b in range(a, n, tile):
            right = features[b : b + tile]
            cosines = product(left.flatten(0, 1), right.flatten(0, 1).T).view(len(left), patches, len(right), patches)
            nearest[a : a + tile, :, b : b + tile] = cosines.amax(dim=3)
            nearest[b : b + tile, :, a : a + tile] = cosines.amax(dim=1).permute(1, 2, 0)
            del cosines  # the next product would be held beside this one
    return nearest


def _row(features: Tensor, i: int, budget: int, aligned: tuple[int, tuple[int, int]] | None) -> Tensor:
    """Largest cosines `[N, n]` of the patches of image i to those of each image."""
    n, patches, _ = features.shape
    if aligned is not None:
        radius, grid = aligned
        maps = features.unflatten(1, grid)
        return aligned_similarities(maps[i : i + 1], maps, radius=radius)[0].flatten(0, 1)
    tile = max(1, budget // (patches * patches))
    found = []
    for start in range(0, n, tile):
        others = features[start : start + tile]
        found.append(product(features[i], others.flatten(0, 1).T).view(patches, len(others), patches).amax(dim=2))
    return torch.cat(found, dim=1)


def rescored(scores: Tensor, features: Tensor, *, neighbours: Sequence[int], score_range: ScoreRange = "raw") -> Tensor:
    """Means of the image scores over images that look alike (RsCIN).

    Args:
        scores: `[n]`.
        features: Unit global features `[n, C]`.
        neighbours: Numbers of most similar images, the image itself counted, over which the score is averaged with the
            similarities as weights; the results are averaged, too. None: the scores stay as they are.
        score_range: `minmax`: scores are stretched to [0, 1] first, which changes no ranking.

    Returns:
        `[n]`.
    """
    if not neighbours:
        return scores
    if score_range == "minmax":
        spread = scores.max() - scores.min()
        scores = (scores - scores.min()) / spread if spread > 0 else torch.zeros_like(scores)
    similar = product(features, features.T).clamp_min(0)
    similar.fill_diagonal_(float("inf"))  # the image itself is always kept
    found = []
    for count in neighbours:
        weights, rows = similar.topk(min(count, len(scores)), dim=1)
        weights = torch.where(weights.isinf(), 1.0, weights)
        found.append((weights * scores[rows]).sum(dim=1) / weights.sum(dim=1))
    return torch.stack(found).mean(dim=0)
