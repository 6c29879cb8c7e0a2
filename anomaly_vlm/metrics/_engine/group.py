"""The processes that share one evaluation: one, or a `torch.distributed` group. All collectives of the package are here."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from anomaly_vlm.metrics._engine.counts import Points


class Alone:
    """One process: nothing to exchange."""

    rank, size = 0, 1

    def gather_objects(self, value: Any) -> list[Any]:
        """`value` of every rank, in rank order."""
        return [value]

    def gather(self, array: np.ndarray) -> list[np.ndarray]:
        """1-D `array` of every rank, in rank order; lengths may differ."""
        return [array]

    def sum(self, array: np.ndarray) -> np.ndarray:
        """Sum over ranks, added in rank order; shapes are the same everywhere."""
        return array

    def gather_points(self, points: Points) -> list[Points]:
        """The points of every rank, in rank order."""
        values, counts = self.gather(points.values), self.gather(points.counts)
        rows = [self.gather(row) for row in points.weights]
        empty = points.weights[:0]
        return [
            Points(
                values[r], counts[r], np.stack([row[r] for row in rows]) if rows else empty.reshape(0, values[r].size)
            )
            for r in range(len(values))
        ]


class Processes(Alone):
    """The ranks of a process group; tensors travel on the group's device (NCCL needs CUDA)."""

    def __init__(self, group: Any = None) -> None:
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        on_cuda = "nccl" in str(dist.get_backend(group))
        self.device = torch.device("cuda", torch.cuda.current_device()) if on_cuda else torch.device("cpu")

    def gather_objects(self, value: Any) -> list[Any]:
        out: list[Any] = [None] * self.size
        dist.all_gather_object(out, value, group=self.group)
        return out

    def gather(self, array: np.ndarray) -> list[np.ndarray]:
        whole = array.dtype == np.int64
        largest = int(np.abs(array).max()) if whole and array.size else 0
        facts = self._exchange(torch.tensor([array.size, largest], dtype=torch.int64, device=self.device))
        sizes = [int(fact[0]) for fact in facts]
        narrow = whole and max(int(fact[1]) for fact in facts) < 2**31  # half the bytes, the same numbers
        sent = np.zeros(max(sizes), np.int32 if narrow else array.dtype)
        sent[: array.size] = array
        if not sent.size:
            return [array] * self.size
        parts = self._exchange(torch.from_numpy(sent).to(self.device))
        return [
            part[:size].cpu().numpy().astype(array.dtype, copy=False) for part, size in zip(parts, sizes, strict=True)
        ]

    def sum(self, array: np.ndarray) -> np.ndarray:
        tensor = torch.from_numpy(np.array(array)).to(self.device)
        dist.all_reduce(tensor, group=self.group)
        return tensor.cpu().numpy()

    def _exchange(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        out = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(out, tensor, group=self.group)
        return out


def current_group(group: Any = None) -> Alone:
    """The processes that a `compute` called now shares its state with."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1:
        return Processes(group)
    return Alone()
