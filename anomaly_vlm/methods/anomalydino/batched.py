"""AnomalyDINO without references: every test image of a category against all others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_vlm.methods.shared.patch_memory import nearest_similarities


def batched_distance(tokens: Sequence[Tensor], row: int, *, quantile: float, memory_mb: float = 256.0) -> Tensor:
    """Distances of the patches of one image to the patches of all other images.

    Of the cosine distances of a patch to the M patches of the other images, `q` is the `floor(quantile M)`-th smallest, at
    least the second; the patch's distance is the mean of those strictly smaller than `q`. Where ties leave none, it is the
    smallest distance itself.

    Args:
        tokens: Patches `[N, D]` of every image, any norm; at least two images.
        row: Number of the image.
        quantile: Share of the other images' patches, above 0.
        memory_mb: Bound in MB on the similarities that are held at a time.

    Returns:
        Distances `[N]`, float32, in [0, 2].
    """
    queries = F.normalize(tokens[row].float(), dim=-1)
    others = [F.normalize(image.float(), dim=-1) for i, image in enumerate(tokens) if i != row]
    count = max(2, int(quantile * sum(map(len, others))))
    distances = torch.empty(len(queries), device=queries.device)
    rows = max(1, int(memory_mb * 1e6 / 4) // (count + max(map(len, others))))
    for start in range(0, len(queries), rows):
        nearest = 1 - nearest_similarities(queries[start : start + rows], others, count)  # ascending
        below = nearest < nearest[:, -1:]
        mean = (nearest * below).sum(dim=1) / below.sum(dim=1).clamp_min(1)
        distances[start : start + rows] = torch.where(below.any(dim=1), mean, nearest[:, 0])
    return distances
