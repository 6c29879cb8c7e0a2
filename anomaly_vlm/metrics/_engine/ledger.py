"""Which images were seen, where, and which of them count: the rules for repeats and the order of the categories."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from anomaly_vlm.metrics._engine.group import Alone

Category = str | None
T = TypeVar("T")


def pick(categories: Mapping[Category, T], pooled: T, category: Category) -> T:
    """What belongs to a category, or to all for None. Raises `ValueError` for one that was not seen."""
    if category is None:
        return pooled
    if category not in categories:
        known = ", ".join(str(name) for name in categories if name is not None) or "none"
        raise ValueError(f"no image of category {category!r} was seen: choose one of {known}, or None for all")
    return categories[category]


class Ledger:
    """Indices and categories that one process has seen.

    A repeat on the same process is ignored. An index seen on several processes belongs to the lowest rank; the others
    leave it out, so that the images with which a distributed sampler pads its last batch count once.
    """

    def __init__(self) -> None:
        self.seen: set[int] = set()
        self.merged: set[int] = set()  # part of a state that cannot subtract
        self.categories: dict[Category, int | None] = {}  # lowest index, None where an image came without
        self.unnumbered = False

    def check_categories(self, names: Iterable[Category]) -> None:
        """Raises `ValueError` where some images have a category and others none."""
        if len({name is None for name in (*self.categories, *names)}) > 1:
            raise ValueError("some images came with a category and some without: give one to every update or to none")

    def enter(self, category: Category, index: int | None) -> bool:
        """Takes an image up; False if its index was seen before."""
        if index is None:
            self.unnumbered = True
            self.categories[category] = None
            return True
        if index in self.seen:
            return False
        self.seen.add(index)
        lowest = self.categories.get(category, index)
        self.categories[category] = None if lowest is None else min(lowest, index)
        return True

    def order(self, group: Alone, more: Sequence[Category] = ()) -> list[Category]:
        """Categories of all processes, in data-set order if every image has an index, else as first seen by rank."""
        merged: dict[Category, int | None] = {}
        for part in group.gather_objects(self.categories):
            for name, lowest in part.items():
                before = merged.get(name, lowest)
                merged[name] = None if lowest is None or before is None else min(lowest, before)
        numbers = {name: number for name, number in merged.items() if number is not None}
        names = sorted(numbers, key=numbers.__getitem__) if len(numbers) == len(merged) else list(merged)
        return names + [name for name in more if name not in merged]

    def repeats(self, group: Alone) -> set[int]:
        """Indices that belong to a lower rank.

        Raises:
            ValueError: on every rank, if a repeat is part of a state that cannot subtract.
        """
        if group.size == 1:
            return set()
        numbers = np.fromiter(self.seen, np.int64, len(self.seen))
        merged = np.fromiter(self.merged, np.int64, len(self.merged))
        everyone = group.gather_objects((numbers, merged))
        stuck: set[int] = set()
        mine: set[int] = set()
        lower = np.empty(0, np.int64)
        for rank, (theirs, fixed) in enumerate(everyone):
            stuck.update(np.intersect1d(fixed, lower).tolist())
            if rank == group.rank:
                mine = set(np.intersect1d(theirs, lower).tolist())
            lower = np.union1d(lower, theirs)
        _raise_stuck(stuck)
        return mine

    def pack(self) -> dict[str, np.ndarray]:
        """The ledger as arrays; see `unpack`."""
        names = list(self.categories)
        lowest = [self.categories[name] for name in names]
        return {
            "names": pack_text(json.dumps(names)),
            "lowest": np.array([number or 0 for number in lowest], np.int64),
            "numbered": np.array([number is not None for number in lowest], bool),
            "seen": np.array(sorted(self.seen), np.int64),
            "merged": np.array(sorted(self.merged), np.int64),
            "unnumbered": np.array([self.unnumbered]),
        }

    @staticmethod
    def unpack(arrays: Mapping[str, np.ndarray]) -> Ledger:
        out = Ledger()
        numbers = zip(arrays["lowest"].tolist(), arrays["numbered"].tolist(), strict=True)
        names = json.loads(unpack_text(arrays["names"]))
        out.categories = {n: number if known else None for n, (number, known) in zip(names, numbers, strict=True)}
        out.seen, out.merged = set(arrays["seen"].tolist()), set(arrays["merged"].tolist())
        out.unnumbered = bool(arrays["unnumbered"][0])
        return out

    def check_merge(self, other: Ledger) -> None:
        """Raises `ValueError` if a repeat is part of a state that cannot subtract, or only one side has categories."""
        self.check_categories(other.categories)
        _raise_stuck(self.seen & other.merged)

    def merge(self, other: Ledger) -> set[int]:
        """Takes the ledger of a higher rank up; gives the indices that it repeats."""
        repeats = self.seen & other.seen
        for name, lowest in other.categories.items():
            before = self.categories.get(name, lowest)
            self.categories[name] = None if lowest is None or before is None else min(lowest, before)
        self.seen |= other.seen
        self.merged |= other.merged
        self.unnumbered |= other.unnumbered
        return repeats


def pack_text(text: str) -> np.ndarray:
    """uint8 bytes of a text."""
    return np.frombuffer(text.encode(), np.uint8).copy()


def unpack_text(array: np.ndarray) -> str:
    return array.tobytes().decode()


def part_of(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays below `prefix.`, without it."""
    return {key.removeprefix(f"{prefix}."): array for key, array in arrays.items() if key.startswith(f"{prefix}.")}


def _raise_stuck(indices: set[int]) -> None:
    if indices:
        named = ", ".join(map(str, sorted(indices)[:10])) + (" ..." if len(indices) > 10 else "")
        raise ValueError(
            f"several processes saw the images of index {named}, and half-precision and binned states cannot subtract them:"
            " give each process other images (a distributed sampler without shuffling pads at the end only)"
        )


def warn_unnumbered(unnumbered: bool, group: Alone) -> bool:
    """On several processes, warns on the first that repeats could not be found; whether any image had no index."""
    if group.size == 1:
        return False
    found = any(group.gather_objects(unnumbered))
    if found and group.rank == 0:
        warnings.warn(
            "images came without `index` to several processes: those that a distributed sampler repeats count twice",
            UserWarning,
            stacklevel=2,
        )
    return found
