"""Loaders that make some batches ahead; the order of a training's can be resumed by a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader

from anomaly_vlm.data.dataset import AnomalyDataset, Item, collate
from anomaly_vlm.data.threads import shared_threads
from anomaly_vlm.data.types import Batch
from anomaly_vlm.errors import UserError

MOST_AHEAD = 16  # images


class AheadLoader(DataLoader[Item]):
    """Without worker processes, some batches are made at a time by threads and then handed out one by one.

    A step of training uses all cores, so that what comes before it is done for several steps together and not beside them.
    With worker processes it is a `DataLoader`.

    Args:
        dataset: Its items.
        encode: Called in threads on each batch that was made ahead, to put in what is computed from it alone; or None.
        options: Of `DataLoader`.
    """

    def __init__(
        self, dataset: AnomalyDataset, *, encode: Callable[[Batch], None] | None = None, **options: Any
    ) -> None:
        super().__init__(dataset, collate_fn=collate, **options)
        self.items, self.encode = dataset, encode

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        return super().__iter__() if self.num_workers else self._made()

    def _made(self) -> Iterator[Batch]:
        order = iter(self.batch_sampler or ())
        while positions := list(islice(order, self.group)):
            items = iter(self.items.__getitems__([position for batch in positions for position in batch]))
            yield from self._batches([list(islice(items, len(batch))) for batch in positions])

    def _batches(self, groups: list[list[Item]]) -> list[Batch]:
        """Each made on as many threads as any other: where a group begins, as after a resume, changes no digit."""
        streams = min(self.group, torch.get_num_threads())
        if streams < 2:
            return [collate(items) for items in groups]
        with shared_threads(streams) as pool:
            return list(pool.map(self._batch, groups))

    def _batch(self, items: list[Item]) -> Batch:
        batch = collate(items)
        if self.encode is not None:
            self.encode(batch)
        return batch

    @property
    def group(self) -> int:
        """How many batches are made at a time; one where images keep their own sizes, which may be large."""
        if self.items.preprocess.fit != "square" or not self.batch_size:
            return 1
        return max(1, MOST_AHEAD // self.batch_size)


class TrainLoader(AheadLoader):
    """A loader that a checkpoint can resume: its order is a function of (seed, epoch), and its state says which order."""

    def __init__(self, dataset: AnomalyDataset, *, order: dict[str, int], **options: Any) -> None:
        super().__init__(dataset, **options)
        self.order = order

    def state_dict(self) -> dict[str, int]:
        """The order of this loader, for the checkpoint."""
        return dict(self.order)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Raises a `UserError` where the checkpoint's run drew its batches in another order."""
        for key, value in self.order.items():
            if state.get(key) != value:
                raise UserError(
                    f"the checkpoint was made with {key}={state.get(key)}, this run has {key}={value}: resume with the same"
                    " data and options"
                )
