"""Patch memory: the distance of a patch to the nearest patches of normal reference images.

Distances are halved cosine distances `(1 - cos) / 2`, in [0, 1], or Euclidean ones. They are computed in tiles, so that the
memory that they take at a time is an option, whatever the image size and the number of references. All methods that compare
patches of images with patches of other images share it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_vlm.errors import UserError
from anomaly_vlm.methods.shared.precision import in_float32, product
from anomaly_vlm.methods.shared.seeding import derived_generator
from anomaly_vlm.options import PositiveFloat, PositiveInt, Range, check_arguments, checked_constructor

Metric = Literal["cosine", "euclidean"]
CoresetShare = Annotated[float, Range(low=0, high=1, open_low=True)]


def checked_memory(memory_mb: PositiveFloat, coreset: CoresetShare = 1.0) -> None:
    """Raises a `UserError` where an option of a memory is out of its range."""
    check_arguments(checked_memory, {"memory_mb": memory_mb, "coreset": coreset}, owner="method")


def nearest_distance(
    queries: Tensor, bank: Tensor, *, neighbours: int = 1, memory_mb: float = 256.0, metric: Metric = "cosine"
) -> Tensor:
    """Computes the distance of each query to its nearest rows of the bank.

    Args:
        queries: `[..., D]`, any norm.
        bank: `[M, D]`; for `cosine` unit rows.
        neighbours: Number of nearest rows that the mean runs over; all, where the bank has fewer.
        memory_mb: Bound in MB (10^6 bytes) on the similarities that are held at a time, but never less than one similarity.
        metric: `cosine`: mean of the halved cosine distances, in [0, 1]. `euclidean`: root of the mean of the squared
            Euclidean distances.

    Returns:
        Distances `[...]`, float32.
    """
    flat = queries.flatten(0, -2)
    wanted = min(neighbours, len(bank))
    capacity = max(1, int(memory_mb * 1e6) // 4)  # float32 similarities
    columns = min(len(bank), capacity)
    rows = max(1, capacity // columns)
    distances = torch.empty(len(flat), device=flat.device)
    with in_float32(flat):  # half precision cannot tell cosines near 1 apart
        for start in range(0, len(flat), rows):
            block = flat[start : start + rows].float()
            block = F.normalize(block, dim=-1) if metric == "cosine" else block
            best = torch.empty(len(block), 0, device=flat.device)
            for tile in torch.split(bank, columns):
                near = block @ tile.float().T if metric == "cosine" else -_squared_distance(block, tile)
                best = _largest(torch.cat([best, _largest(near, wanted)], dim=1), wanted)
            found = ((1 - best) / 2).clamp_min(0).mean(dim=1) if metric == "cosine" else (-best).mean(dim=1).sqrt()
            distances[start : start + rows] = found
    return distances.view(queries.shape[:-1])


def nearest_similarities(queries: Tensor, tiles: Iterable[Tensor], count: int) -> Tensor:
    """The `count` largest similarities of queries `[Q, D]` to the rows of all tiles `[M, D]`, descending: `[Q, count]`.

    Only those of one tile are held at a time. Fewer are returned where all tiles have fewer rows.
    """
    best = torch.empty(len(queries), 0, device=queries.device)
    with in_float32(queries):
        for tile in tiles:
            both = torch.cat([best, queries @ tile.T], dim=1)
            best = both.topk(min(count, both.shape[1]), dim=1).values
    return best


def aligned_similarities(queries: Tensor, bank: Tensor, *, radius: int) -> Tensor:
    """Computes the largest cosine of each patch to those at about its own position, in each image of the bank.

    For parts that always lie the same way: a part at a wrong place finds nothing like it there.

    Args:
        queries: `[B, rows, columns, D]`, unit rows.
        bank: Patches of R images on the same grid, `[R, rows, columns, D]`, unit rows.
        radius: How far from its own position, in rows and in columns, a patch may look; 0 for its own position alone.

    Returns:
        `[B, rows, columns, R]`.
    """
    rows, columns = bank.shape[1:3]
    best = queries.new_full((*queries.shape[:3], len(bank)), -1.0)
    for down in range(-min(radius, rows - 1), min(radius, rows - 1) + 1):
        for right in range(-min(radius, columns - 1), min(radius, columns - 1) + 1):
            here = (slice(max(0, -down), rows - max(0, down)), slice(max(0, -right), columns - max(0, right)))
            there = (slice(max(0, down), rows + min(0, down)), slice(max(0, right), columns + min(0, right)))
            near = torch.einsum("bhwd,rhwd->bhwr", queries[:, *here], bank[:, *there])
            best[:, *here] = torch.maximum(best[:, *here], near)
    return best


def aligned_distance(queries: Tensor, bank: Tensor, *, radius: int, neighbours: int = 1) -> Tensor:
    """Computes the mean halved cosine distance of each patch to the nearest ones at about its own position.

    Args:
        queries: See `aligned_similarities`, of any norm.
        bank: See `aligned_similarities`, of any norm.
        radius: See `aligned_similarities`.
        neighbours: Number of images of the bank that the mean runs over, the nearest patch of each; at most all.

    Returns:
        Distances `[B, rows, columns]`, float32, in [0, 1].
    """
    with in_float32(queries):
        unit, rows = F.normalize(queries.float(), dim=-1), F.normalize(bank.float(), dim=-1)
        near = aligned_similarities(unit, rows, radius=radius)
    nearest = near.topk(min(neighbours, len(bank)), dim=-1).values
    return ((1 - nearest) / 2).clamp_min(0).mean(dim=-1)


def _squared_distance(queries: Tensor, rows: Tensor) -> Tensor:
    """Squared Euclidean distances `[Q, M]`; in double precision, as the difference of large squares cancels."""
    return torch.cdist(queries.double(), rows.double()).square().float()


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
    features = features.float()
    selected = [int(derived_generator(seed).integers(len(features)))]
    distances = torch.full((len(features),), torch.inf, device=features.device)
    while len(selected) < count:
        distances = torch.minimum(distances, 1 - product(features, features[selected[-1]]))
        distances[selected[-1]] = -torch.inf
        selected.append(int(distances.argmax()))
    return torch.tensor(sorted(selected), device=features.device)


class PatchMemory(nn.Module):
    """The patches of reference images, and the distances of other patches to them.

    Args:
        features: Patches `[..., D]` of all reference images, any norm. The buffer `bank` `[M, D]` holds them, for the metric
            `cosine` as unit rows.
        coreset: Share of the patches that the memory holds, selected by `greedy_coreset`; 1 for all.
        neighbours: See `nearest_distance`.
        memory_mb: See `nearest_distance`.
        metric: See `nearest_distance`.
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
        metric: Metric = "cosine",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.neighbours, self.memory_mb, self.metric = neighbours, memory_mb, metric
        bank = features.detach().flatten(0, -2).float()
        unit = F.normalize(bank, dim=-1)
        bank = unit if metric == "cosine" else bank
        if coreset < 1:
            bank = bank[greedy_coreset(unit, max(1, round(coreset * len(bank))), seed=seed)]
        self.register_buffer("bank", bank)

    __init__ = checked_constructor(__init__, owner="method")

    def forward(self, queries: Tensor) -> Tensor:
        """Distances `[...]` of patches `[..., D]` to the memory; see `nearest_distance`."""
        return nearest_distance(
            queries, self.bank, neighbours=self.neighbours, memory_mb=self.memory_mb, metric=self.metric
        )

    def aligned(self, queries: Tensor, grid: tuple[int, int], *, radius: int) -> Tensor:
        """Distances `[B, N]` of patches `[B, N, D]` of images with this grid; see `aligned_distance`.

        Raises:
            UserError: The memory is not one of whole images with this grid.
        """
        if len(self.bank) % (grid[0] * grid[1]):
            raise UserError(
                f"method.aligned needs references with the test images' grid of {grid[0]} x {grid[1]} patches, all of them"
                " kept: use pixels.fit=square, no mask of references and no coreset"
            )
        bank = self.bank.unflatten(0, (-1, *grid))
        distances = aligned_distance(queries.unflatten(1, grid), bank, radius=radius, neighbours=self.neighbours)
        return distances.flatten(1)
