"""Patch memory: the distance of a patch to the nearest patches of normal reference images.

Distances are halved cosine distances `(1 - cos) / 2`, in [0, 1]. They are computed in tiles, so that the memory that they
take at a time is an option, whatever the image size and the number of references. WinCLIP (arXiv 2303.14814), APRIL-GAN
(arXiv 2305.17382), PromptAD (arXiv 2404.05231) and FineGrainedAD (arXiv 2510.26464) share it.
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_vlm.methods.shared.seeding import derived_generator
from anomaly_vlm.options import PositiveFloat, PositiveInt, Range, check_arguments, checked_constructor

CoresetShare = Annotated[float, Range(low=0, high=1, open_low=True)]


def checked_memory(memory_mb: PositiveFloat, coreset: CoresetShare = 1.0) -> None:
    """Raises a `UserError` where an option of a memory is out of its range."""
    check_arguments(checked_memory, {"memory_mb": memory_mb, "coreset": coreset}, owner="method")


def nearest_distance(queries: Tensor, bank: Tensor, *, neighbours: int = 1, memory_mb: float = 256.0) -> Tensor:
    """Computes the mean halved cosine distance of each query to its nearest rows of the bank.

    Args:
        queries: `[..., D]`, any norm.
        bank: `[M, D]`, unit rows.
        neighbours: Number of nearest rows that the mean runs over; all, where the bank has fewer.
        memory_mb: Bound in MB (10^6 bytes) on the similarities that are held at a time, but never less than one similarity.

    Returns:
        Distances `[...]`, float32, in [0, 1].
    """
    flat = queries.flatten(0, -2)
    wanted = min(neighbours, len(bank))
    capacity = max(1, int(memory_mb * 1e6) // 4)  # float32 similarities
    columns = min(len(bank), capacity)
    rows = max(1, capacity // columns)
    distances = torch.empty(len(flat), device=flat.device)
    with torch.autocast(flat.device.type, enabled=False):  # half precision cannot tell cosines near 1 apart
        for start in range(0, len(flat), rows):
            block = F.normalize(flat[start : start + rows].float(), dim=-1)
            best = torch.empty(len(block), 0, device=flat.device)
            for tile in torch.split(bank, columns):
                nearest = _largest(block @ tile.float().T, wanted)
                best = _largest(torch.cat([best, nearest], dim=1), wanted)
            distances[start : start + rows] = ((1 - best) / 2).clamp_min(0).mean(dim=1)
    return distances.view(queries.shape[:-1])


def _largest(values: Tensor, count: int) -> Tensor:
    """The `count` largest values of each row of `[R, n]`; all, where a row has fewer."""
    if count == 1:  # much quicker than topk
        return values.amax(dim=1, keepdim=True)
    return values.topk(min(count, values.shape[1]), dim=1).values


def greedy_coreset(features: Tensor, count: int, *, seed: int = 0) -> Tensor:
    """Selects rows that cover all others: after a random first row, always the one farthest from those selected.

    This is the greedy k-centre selection of PatchCore (Roth et al., "Towards Total Recall in Industrial Anomaly Detection",
    CVPR 2022, section 3.2).

    Args:
        features: `[M, D]`, unit rows.
        count: Number of rows, at least 1.
        seed: Draws the first row.

    Returns:
        Indices `[min(count, M)]` in ascending order.
    """
    if count >= len(features):
        return torch.arange(len(features), device=features.device)
    selected = [int(derived_generator(seed).integers(len(features)))]
    distances = torch.full((len(features),), torch.inf, device=features.device)
    while len(selected) < count:
        distances = torch.minimum(distances, 1 - features @ features[selected[-1]])
        distances[selected[-1]] = -torch.inf
        selected.append(int(distances.argmax()))
    return torch.tensor(sorted(selected), device=features.device)


class PatchMemory(nn.Module):
    """The patches of reference images, and the distances of other patches to them.

    Args:
        features: Patches `[..., D]` of all reference images, any norm. The buffer `bank` `[M, D]` holds them as unit rows.
        coreset: Share of the patches that the memory holds, selected by `greedy_coreset`; 1 for all.
        neighbours: See `nearest_distance`.
        memory_mb: See `nearest_distance`.
        seed: Of the coreset.

    Raises:
        UserError: An option is out of its range.
    """

    bank: Tensor

    def __init__(
        self,
        features: Tensor,
        *,
        coreset: CoresetShare = 1.0,
        neighbours: PositiveInt = 1,
        memory_mb: PositiveFloat = 256.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.neighbours, self.memory_mb = neighbours, memory_mb
        bank = F.normalize(features.detach().flatten(0, -2).float(), dim=-1)
        if coreset < 1:
            bank = bank[greedy_coreset(bank, max(1, round(coreset * len(bank))), seed=seed)]
        self.register_buffer("bank", bank)

    __init__ = checked_constructor(__init__, owner="method")

    def forward(self, queries: Tensor) -> Tensor:
        """Distances `[...]` of patches `[..., D]` to the memory, in [0, 1]."""
        return nearest_distance(queries, self.bank, neighbours=self.neighbours, memory_mb=self.memory_mb)
