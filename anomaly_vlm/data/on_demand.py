"""`OnDemand`: batches that are read only when they are used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from anomaly_vlm.data.types import Batch


class OnDemand(Sequence[Batch]):
    """A sequence of batches, each read when it is asked for and not kept.

    Args:
        read: Reads the batch at a position.
        positions: The positions that the sequence consists of.
    """

    def __init__(self, read: Callable[[int], Batch], positions: Sequence[int]) -> None:
        self.read, self.positions = read, positions

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[j] for j in range(len(self))[i]]
        return self.read(self.positions[i])
