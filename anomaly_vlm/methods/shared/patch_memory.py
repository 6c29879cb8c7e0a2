"""Patch memory: how far a patch lies from the nearest patches of normal reference images.

Distances are cosine distances halved, `(1 - cos) / 2`, in [0, 1]. They are computed in tiles, so that the memory needed at
a time is an option and not a product of image size and shots. WinCLIP (arXiv 2303.14814), PromptAD (arXiv 2404.05231) and
FineGrainedAD (arXiv 2510.26464) share it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_vlm.errors import UserError
from anomaly_vlm.methods.shared.seeding import derived_generator


def checked_memory(memory_mb: float, coreset: float = 1.0, neighbours: int = 1) -> None:
    """Raises a `UserError` where an option of the memory is out of its range."""
    if not memory_mb > 0:
        raise UserError(f"method.memory_mb is {memory_mb}: give the MB that distances may take at a time, above 0")
    if not 0 < coreset <= 1:
        raise UserError(f"method.coreset is {coreset}: give the share of reference patches to keep, above 0, at most 1")
    if neighbours < 1:
        raise UserError(f"method.neighbours is {neighbours}: give at least 1")


def nearest_distance(queries: Tensor, bank: Tensor, *, neighbours: int = 1, memory_mb: float = 256.0) -> Tensor:
    """Mean halved cosine distance of each query to its nearest rows of the bank.

    Args:
        queries: [..., D], any norm. bank: [M, D], unit rows.
        neighbours: how many of the nearest rows the mean runs over (all, where the bank has fewer).
        memory_mb: bound on the similarities held at a time, in MB (10^6 bytes); never less than one similarity.

    Returns:
        [...] float32 in [0, 1].
    """
    flat = queries.flatten(0, -2)
    wanted = min(neighbours, len(bank))
    room = max(1, int(memory_mb * 1e6) // 4)  # float32 similarities
    columns = min(len(bank), room)
    rows = max(1, room // columns)
    out = torch.empty(len(flat), device=flat.device)
    with torch.autocast(flat.device.type, enabled=False):  # half precision cannot tell cosines near 1 apart
        for start in range(0, len(flat), rows):
            part = F.normalize(flat[start : start + rows].float(), dim=-1)
            best = torch.empty(len(part), 0, device=flat.device)
            for tile in bank.split(columns):
                near = _largest(part @ tile.float().T, wanted)
                best = _largest(torch.cat([best, near], dim=1), wanted)
            out[start : start + rows] = ((1 - best) / 2).clamp_min(0).mean(dim=1)
    return out.view(queries.shape[:-1])


def _largest(values: Tensor, count: int) -> Tensor:
    """[R, n] -> the `count` largest of each row (all, where there are fewer); for one, the maximum is much the quicker."""
    return values.amax(dim=1, keepdim=True) if count == 1 else values.topk(min(count, values.shape[1]), dim=1).values


def greedy_coreset(features: Tensor, count: int, *, seed: int = 0) -> Tensor:
    """Rows that cover all others: from a seeded start, always the row farthest from those taken (k-centre, greedy).

    Args:
        features: [M, D], unit rows. count: rows to keep, at least 1. seed: draws the first row.

    Returns:
        [min(count, M)] indices in ascending order.

    Reference: Roth et al., "Towards Total Recall in Industrial Anomaly Detection" (PatchCore), CVPR 2022, section 3.2.
    """
    if count >= len(features):
        return torch.arange(len(features), device=features.device)
    taken = [int(derived_generator(seed).integers(len(features)))]
    farness = torch.full((len(features),), torch.inf, device=features.device)
    while len(taken) < count:
        farness = torch.minimum(farness, 1 - features @ features[taken[-1]])
        farness[taken[-1]] = -torch.inf
        taken.append(int(farness.argmax()))
    return torch.tensor(sorted(taken), device=features.device)


class PatchMemory(nn.Module):
    """The patches of reference images, and the distance of others to them.

    Args:
        features: [..., D] patches of all reference images, any norm; kept as unit rows in the buffer `bank` [M, D].
        coreset: share of them that is kept, by `greedy_coreset`; 1: all.
        neighbours, memory_mb: see `nearest_distance`.
        seed: of the coreset.
    """

    bank: Tensor

    def __init__(
        self, features: Tensor, *, coreset: float = 1.0, neighbours: int = 1, memory_mb: float = 256.0, seed: int = 0
    ) -> None:
        super().__init__()
        checked_memory(memory_mb, coreset, neighbours)
        self.neighbours, self.memory_mb = neighbours, memory_mb
        bank = F.normalize(features.detach().flatten(0, -2).float(), dim=-1)
        if coreset < 1:
            bank = bank[greedy_coreset(bank, max(1, round(coreset * len(bank))), seed=seed)]
        self.register_buffer("bank", bank)

    def forward(self, queries: Tensor) -> Tensor:
        """[..., D] patches -> [...] distances in [0, 1]."""
        return nearest_distance(queries, self.bank, neighbours=self.neighbours, memory_mb=self.memory_mb)
