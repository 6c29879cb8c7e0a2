"""What a user asks of the tables of a study: `base=`, `columns=`, `sort=`, `intervals=`, `where=`. Imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from anomaly_vlm.errors import UserError

KEYS = ("base", "columns", "sort", "intervals", "where")
KEY = r"[\w.@/]+!?="  # begins a condition
CONDITION = re.compile(r"(?P<key>[\w.@/]+)(?P<sign>!=|=)(?P<value>.*)", re.S)


@dataclass(frozen=True)
class TableOptions:
    """What a user may ask of a table.

    Attributes:
        base: Conditions (`method=winclip`) that one row fulfils, which the others are compared with; none for no comparison.
        columns: Metrics to show, such as `image_auroc`; none for the usual ones.
        sort: Metric or column that the rows are sorted by, `-image_auroc` for the largest first; None for the runs' order.
        intervals: Whether a further table has the interval of every mean over the categories.
        where: Conditions that runs must fulfil: `shots=4`, `method!=musc`.
    """

    base: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    sort: str | None = None
    intervals: bool = False
    where: tuple[str, ...] = ()

    @classmethod
    def pop(cls, words: Sequence[str]) -> tuple[TableOptions, list[str]]:
        """Takes these words out of a command's words; returns the other words too.

        Raises:
            UserError: A condition that is not `key=value` or `key!=value`.
        """
        found: dict[str, str] = {}
        rest = []
        for word in words:
            key, _, value = word.partition("=")
            if key in KEYS:
                found[key] = value
            else:
                rest.append(word)
        lists = {key: tuple(_split(found.get(key, ""), KEY)) for key in ("base", "where")}
        for key, conditions in lists.items():
            for condition in conditions:
                if not CONDITION.fullmatch(condition):
                    raise UserError(f"{key}={condition}: give a condition, such as {key}=method=winclip")
        columns = tuple(_split(found.get("columns", "")))
        wanted = found.get("intervals", "false")
        if wanted not in ("true", "false"):
            raise UserError(f"intervals={wanted}: give true or false")
        return cls(**lists, columns=columns, sort=found.get("sort") or None, intervals=wanted == "true"), rest


def _split(text: str, before: str = "") -> list[str]:
    """Parts between commas that stand before something of this form; brackets around the whole are taken off."""
    inner = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    return [part.strip() for part in re.split(rf",(?=\s*{before})", inner) if part.strip()]
