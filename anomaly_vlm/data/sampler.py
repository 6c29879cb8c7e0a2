"""Orders of samples that are functions of (seed, epoch, rank), so that a resumed run meets the same batches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from anomaly_vlm.errors import UserError


class EpochSampler(Sampler[tuple[int, int]]):
    """Shuffled positions (epoch, index): one permutation for each (seed, epoch), dealt out to the ranks in turn.

    All ranks get equally many, as the first ones of the permutation are dealt twice where it does not divide.

    Args:
        size: Size of the data set.
        seed: Seed of the order.
        epoch: Epoch to begin with. A loader's processes fetch ahead before `set_epoch` is called, hence at construction.
        skip: Positions of this rank's share of that first epoch that were used before a resume.
        rank: Rank of this process.
        world_size: Number of processes.
    """

    def __init__(
        self, size: int, *, seed: int, epoch: int = 0, skip: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        self.size, self.seed, self.rank, self.world_size = size, seed, rank, world_size
        self.epoch, self.first_epoch, self.skip = epoch, epoch, skip

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch whose order the next iteration follows."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Positions of a whole epoch, also where the first one is resumed midway."""
        return math.ceil(self.size / self.world_size)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self.epoch
        order = np.random.default_rng([self.seed, epoch]).permutation(self.size)
        share = np.resize(order, len(self) * self.world_size)[self.rank :: self.world_size]
        for i in share[self.skip if epoch == self.first_epoch else 0 :]:
            yield epoch, int(i)


class BatchesSampler(Sampler[list[int]]):
    """Fixed batches of positions in a fixed order; the first pass leaves out `skip` batches, used before a resume."""

    def __init__(self, batches: Sequence[list[int]], *, skip: int = 0) -> None:
        self.batches, self.skip = batches, skip

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        skip, self.skip = self.skip, 0
        yield from self.batches[skip:]


class ShardSampler(Sampler[int]):
    """Every `world_size`-th index from `rank` on, in order and without repeats: ranks differ by at most one sample.

    Raises:
        UserError: a rank would have none, and the others would wait for it forever.
    """

    def __init__(self, size: int, *, rank: int = 0, world_size: int = 1) -> None:
        if size < world_size:
            raise UserError(
                f"{size} images for {world_size} processes: every process needs at least one; set"
                f" trainer.devices={max(size, 1)} or evaluate more images"
            )
        self.indices = range(rank, size, world_size)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)
