"""Threads that share the cores: samples that are read, and batches that are encoded, side by side."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch.utils.data import get_worker_info

MOST_THREADS = 8
Given = TypeVar("Given")
Made = TypeVar("Made")


@contextmanager
def shared_threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that share torch's threads; what is left to do at the end of the context is not begun.

    Args:
        count: Their number.
    """
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(count, "stream", torch.set_num_threads, (max(1, threads // count),))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def side_by_side(make: Callable[[Given], Made], given: Sequence[Given], *, most: int = MOST_THREADS) -> list[Made]:
    """What `make` gives for each that is given, in their order, from threads, at most one a core.

    A loader's worker processes, which share the cores already, start none.

    Args:
        make: Most of its time is spent in decoders or in torch, which leave the interpreter free.
        given: What it is called with.
        most: Largest number of threads.
    """
    threads = min(len(given), most, os.cpu_count() or 1)
    if threads < 2 or get_worker_info() is not None:
        return [make(one) for one in given]
    with shared_threads(threads) as pool:
        return list(pool.map(make, given))
