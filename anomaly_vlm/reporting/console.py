"""The person at the terminal: one console for everything that is a command's result."""

from __future__ import annotations

import os
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_only
from rich.console import Console

from anomaly_vlm.names import shown

console = Console(highlight=False, soft_wrap=True)


def is_first_process() -> bool:
    """Whether this is the only process, or the first of a distributed run, as Lightning says once it is imported."""
    return int(getattr(rank_zero_only, "rank", os.environ.get("LOCAL_RANK", 0))) == 0


def say(line: str) -> None:
    """One line to the person at the terminal, from the first process only; control characters appear as escapes."""
    if is_first_process():
        console.print(shown(line), markup=False)


def show(renderable: Any) -> None:
    """A rich table, from the first process only. Piped output gets a width that no table of this suite exceeds."""
    if is_first_process():
        wide = console if console.is_terminal else Console(highlight=False, width=160)
        wide.print(renderable)
