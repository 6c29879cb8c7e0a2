"""Scores and maps of images, batch by batch, without a trainer: what `predict` and the calibration of `fit` share."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from itertools import islice
from typing import TypeVar

import torch
from omegaconf import DictConfig
from torch.utils.data import DataLoader

from anomaly_vlm.data.dataset import Item
from anomaly_vlm.data.threads import shared_threads
from anomaly_vlm.data.types import Batch
from anomaly_vlm.methods.base.method import AnomalyMethod
from anomaly_vlm.methods.base.prediction import Prediction
from anomaly_vlm.runs import stopping
from anomaly_vlm.runs.devices import device_of, precision_of

MOST_STREAMS = 4  # each holds the activations of a batch
Given = TypeVar("Given")
Made = TypeVar("Made")


def predictions(cfg: DictConfig, method: AnomalyMethod, loader: DataLoader[Item]) -> Iterator[tuple[Batch, Prediction]]:
    """Predicts every batch of a loader on the device and in the precision that the configuration says.

    On the CPU several batches are predicted at a time, where the method's images do not depend on one another; but with a
    large tower, whose batches fill the cores, need the memory, and take so long that Ctrl-C would wait for them.

    Args:
        cfg: The run's configuration.
        method: It is moved to the device, and there it stays.
        loader: Batches of images.

    Yields:
        Each batch with its prediction, in order.

    Raises:
        UserError: A device or a precision that is not there, or a score that is no finite number.
        Stopped: By a signal, between two batches.
    """
    device = device_of(cfg)
    dtype, _ = precision_of(cfg, device)
    method.to(device=device, dtype=dtype).eval()
    method.invalidate_caches()

    def predicted(batch: Batch) -> tuple[Batch, Prediction]:
        _, precision = precision_of(cfg, device)  # anew: a context belongs to one thread
        with torch.inference_mode(), precision:
            moved = batch.to(device)
            moved.unencoded = moved.unencoded.to(dtype)
            return moved, method.predict(moved).checked(moved)

    alone = device.type != "cpu" or method.predicts_in_order or method.is_large
    most = 1 if alone else min(torch.get_num_threads(), MOST_STREAMS)
    behind = len(loader) - 1  # of the first batch, which runs alone
    streams = max(1, min(most, behind))
    yield from in_streams(predicted, loader, streams, alone=1 + behind % streams)


def in_streams(
    work: Callable[[Given], Made], given: Iterable[Given], streams: int, *, alone: int = 1
) -> Iterator[Made]:
    """Calls `work` on each that is given, several at a time, each on its share of torch's threads.

    The operations of a small tower are too short for all cores to share one; batches side by side are not.

    Args:
        work: Called in threads.
        given: What it is called on, read one after another.
        streams: How many calls run at a time.
        alone: How many run one after another before, on all threads; the first one fills what the others read, such as text
            features, and those that would be left over at the end are better off at the start.

    Yields:
        The results, in order.
    """
    rest = iter(given)
    for one in islice(rest, alone if streams > 1 else None):
        stopping.check()
        yield work(one)
    if streams > 1:
        with shared_threads(streams) as pool:
            running: deque[Future[Made]] = deque()
            for one in rest:
                stopping.check()
                running.append(pool.submit(work, one))
                if len(running) > streams:  # one more than run, so that no thread waits for the next one to be read
                    yield running.popleft().result()
            while running:
                stopping.check()
                yield running.popleft().result()
    stopping.check()
