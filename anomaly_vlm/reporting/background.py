"""Work on files that continues while the next images are computed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

MOST = 16  # calls that wait, so that what they hold does not fill the memory


class Background:
    """Calls functions in a thread, in order; an error in one of them surfaces at the next call, or at the end.

    Where an error ends the block, calls that wait are dropped; where it is stopped, they are made.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._open: deque[Future[Any]] = deque()

    def __enter__(self) -> Background:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._pool.shutdown(wait=True, cancel_futures=kind is not None and issubclass(kind, Exception))
        except BaseException:  # stopped while it waits
            self._pool.shutdown(wait=True)
            raise
        while kind is None and self._open:
            self._open.popleft().result()

    def call(self, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> None:
        """Hands over a call; waits where too many are waiting."""
        while self._open and (len(self._open) >= MOST or self._open[0].done()):
            self._open.popleft().result()
        self._open.append(self._pool.submit(function, *arguments, **keywords))
