"""The processes that evaluate together: this one alone, or a `torch.distributed` group.

All collectives of the metrics are in this module. Every process of a group has to reach the same collectives in the same
order, so whatever calls them is called on every process.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist

from anomaly_vlm.metrics._engine.counts import DistinctScores

T = TypeVar("T")


class Group:
    """A group of one process: there is nothing to exchange, and every collective returns its input.

    Attributes:
        rank: Number of this process in the group.
        size: Number of processes in the group.
    """

    rank, size = 0, 1

    def gather_objects(self, value: T) -> list[T]:
        """Returns the `value` of every rank, in rank order."""
        return [value]

    def gather(self, array: np.ndarray) -> list[np.ndarray]:
        """Returns the one-dimensional `array` of every rank, in rank order; lengths may differ between ranks."""
        return [array]

    def sum(self, array: np.ndarray) -> np.ndarray:
        """Returns the sum of `array` over all ranks; its shape has to be the same on every rank."""
        return array

    def gather_distinct(self, scores: DistinctScores) -> list[DistinctScores]:
        """Returns the distinct anomalous scores of every rank, in rank order."""
        values, counts = self.gather(scores.values), self.gather(scores.counts)
        rows = [self.gather(row) for row in scores.weights]
        gathered = []
        for rank in range(len(values)):
            weights = np.stack([row[rank] for row in rows]) if rows else np.empty((0, values[rank].size))
            gathered.append(DistinctScores(values[rank], counts[rank], weights))
        return gathered


class DistributedGroup(Group):
    """The ranks of a `torch.distributed` process group.

    Tensors travel on the group's device: NCCL needs CUDA tensors, every other backend takes CPU tensors.

    Args:
        group: The process group; None stands for all processes.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        on_cuda = "nccl" in str(dist.get_backend(group))
        self.device = torch.device("cuda", torch.cuda.current_device()) if on_cuda else torch.device("cpu")

    def gather_objects(self, value: T) -> list[T]:
        """Returns the `value` of every rank, in rank order; the value is pickled on its way."""
        gathered: list[T] = [value] * self.size
        dist.all_gather_object(gathered, value, group=self.group)
        return gathered

    def gather(self, array: np.ndarray) -> list[np.ndarray]:
        """Returns the one-dimensional `array` of every rank, in rank order; lengths may differ between ranks."""
        is_integer = array.dtype == np.int64
        largest = int(np.abs(array).max()) if is_integer and array.size else 0
        headers = self._all_gather(torch.tensor([array.size, largest], dtype=torch.int64, device=self.device))
        sizes = [int(header[0]) for header in headers]
        # Counts below 2^31 travel as int32: half the bytes for the same numbers.
        narrow = is_integer and max(int(header[1]) for header in headers) < 2**31
        sent = np.zeros(max(sizes), np.int32 if narrow else array.dtype)
        sent[: array.size] = array
        if not sent.size:
            return [array] * self.size
        gathered = self._all_gather(torch.from_numpy(sent).to(self.device))
        return [
            padded[:size].cpu().numpy().astype(array.dtype, copy=False)
            for padded, size in zip(gathered, sizes, strict=True)
        ]

    def sum(self, array: np.ndarray) -> np.ndarray:
        """Returns the sum of `array` over all ranks; its shape has to be the same on every rank."""
        tensor = torch.from_numpy(np.array(array)).to(self.device)
        dist.all_reduce(tensor, group=self.group)
        return tensor.cpu().numpy()

    def _all_gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        gathered = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(gathered, tensor, group=self.group)
        return gathered


def current_group(group: dist.ProcessGroup | None = None) -> Group:
    """Returns the processes with which a `compute` that is called now shares its state.

    Args:
        group: The process group of the metric; None stands for all processes.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1:
        return DistributedGroup(group)
    return Group()
