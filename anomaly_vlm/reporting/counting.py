"""Progress of loops of our own: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from rich.progress import Progress

from anomaly_vlm.reporting.console import console, is_first_process, say

T = TypeVar("T")
SECONDS = 5.0  # between lines of progress


@contextmanager
def counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for a loop, on a terminal only; the block tells it how many are done, and of how many."""
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def with_progress(
    chunks: Iterable[T], total: int, *, what: str = "detecting", size: Callable[[Any], int] = len, kind: str = "auto"
) -> Iterator[T]:
    """The chunks, with progress from the first process.

    Args:
        chunks: What is gone through.
        total: How many there are in all chunks together.
        what: What is done to them.
        size: How many a chunk has.
        kind: As `callbacks.progress`: `rich` for a bar, `log` for lines, `none`; `auto` is a bar on a terminal, else lines.
    """
    if kind == "none" or not is_first_process():
        yield from chunks
    elif kind == "rich" or (kind == "auto" and console.is_terminal):
        with Progress(console=console, transient=True) as bar:
            task = bar.add_task(what, total=total)
            for chunk in chunks:
                yield chunk
                bar.advance(task, size(chunk))
    else:
        yield from _with_lines(chunks, total, what, size)


def _with_lines(chunks: Iterable[T], total: int, what: str, size: Callable[[Any], int]) -> Iterator[T]:
    started = last = time.monotonic()
    done = 0
    for chunk in chunks:
        yield chunk
        done += size(chunk)
        now = time.monotonic()
        if now - last >= SECONDS and done < total:
            left = int((now - started) / done * (total - done))
            say(f"{what} {done}/{total}  {left // 60}:{left % 60:02d} left")
            last = now
