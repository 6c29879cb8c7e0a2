"""Which images were seen, where, and which of them count: the rules for repeated images and the order of the categories."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from anomaly_vlm.metrics._engine.group import Group

Category = str | None  # None where images come without a category
T = TypeVar("T")


def select_category(categories: Mapping[Category, T], pooled: T, category: Category) -> T:
    """Returns what belongs to a category.

    Args:
        categories: What belongs to each category.
        pooled: What belongs to all images together.
        category: The category; None stands for all images.

    Raises:
        ValueError: No image of the category was seen.
    """
    if category is None:
        return pooled
    if category not in categories:
        names = ", ".join(str(name) for name in categories if name is not None) or "none"
        raise ValueError(f"no image of category {category!r} was seen: choose one of {names}, or None for all")
    return categories[category]


class Ledger:
    """The indices and categories that one process has seen.

    An image whose index the same process has seen before is ignored. An index that several processes have seen belongs to
    the process of lowest rank, and the others leave it out. So the images with which a distributed sampler pads its last
    batch count once.

    Attributes:
        seen: Indices of the images that were added.
        merged: Those among them that are part of a state from which no image can be removed.
        categories: Lowest index of each category, in the order in which the categories came; None where an image of the
            category came without an index.
        unnumbered: Whether any image came without an index.
    """

    def __init__(self) -> None:
        self.seen: set[int] = set()
        self.merged: set[int] = set()
        self.categories: dict[Category, int | None] = {}
        self.unnumbered = False

    def check_categories(self, names: Iterable[Category]) -> None:
        """Checks that either all images have a category or none has.

        Args:
            names: Categories of further images.

        Raises:
            ValueError: Some images have a category and others have none.
        """
        if len({name is None for name in (*self.categories, *names)}) > 1:
            raise ValueError("some images came with a category and some without: give one to every update or to none")

    def enter(self, category: Category, index: int | None) -> bool:
        """Records an image and returns whether it counts; it does not if its index was seen before."""
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

    def order(self, group: Group, more: Sequence[Category] = ()) -> list[Category]:
        """Returns the categories of all processes, in the same order on each.

        The order is that of the data set (by lowest index) if every image has an index; else it is the order in which the
        categories came, rank after rank.

        Args:
            group: The processes.
            more: Categories to append if no image of them was seen.
        """
        merged: dict[Category, int | None] = {}
        for categories in group.gather_objects(self.categories):
            for name, lowest in categories.items():
                merged[name] = _lower(merged.get(name, lowest), lowest)
        numbers = {name: number for name, number in merged.items() if number is not None}
        names = sorted(numbers, key=numbers.__getitem__) if len(numbers) == len(merged) else list(merged)
        return names + [name for name in more if name not in merged]

    def repeats(self, group: Group) -> set[int]:
        """Returns the indices of this process that belong to a process of lower rank.

        Raises:
            ValueError: A repeated image is part of a state from which it cannot be removed; raised on every rank.
        """
        if group.size == 1:
            return set()
        numbers = np.fromiter(self.seen, np.int64, len(self.seen))
        merged = np.fromiter(self.merged, np.int64, len(self.merged))
        unremovable: set[int] = set()
        mine: set[int] = set()
        lower = np.empty(0, np.int64)
        for rank, (theirs, fixed) in enumerate(group.gather_objects((numbers, merged))):
            unremovable.update(np.intersect1d(fixed, lower).tolist())
            if rank == group.rank:
                mine = set(np.intersect1d(theirs, lower).tolist())
            lower = np.union1d(lower, theirs)
        _check_removable(unremovable)
        return mine

    def pack(self) -> dict[str, np.ndarray]:
        """Returns the ledger as arrays by name; see `unpack`."""
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
        """Returns a ledger made of the arrays of `pack`."""
        out = Ledger()
        names = json.loads(unpack_text(arrays["names"]))
        lowest, numbered = arrays["lowest"].tolist(), arrays["numbered"].tolist()
        out.categories = {
            name: number if has_number else None
            for name, number, has_number in zip(names, lowest, numbered, strict=True)
        }
        out.seen, out.merged = set(arrays["seen"].tolist()), set(arrays["merged"].tolist())
        out.unnumbered = bool(arrays["unnumbered"][0])
        return out

    def check_merge(self, other: Ledger) -> None:
        """Checks that `merge` can take in another ledger.

        Raises:
            ValueError: A repeated image is part of a state from which it cannot be removed, or only one side has categories.
        """
        self.check_categories(other.categories)
        _check_removable(self.seen & other.merged)

    def merge(self, other: Ledger) -> set[int]:
        """Takes in the ledger of a process of higher rank and returns the indices that it repeats."""
        repeats = self.seen & other.seen
        for name, lowest in other.categories.items():
            self.categories[name] = _lower(self.categories.get(name, lowest), lowest)
        self.seen |= other.seen
        self.merged |= other.merged
        self.unnumbered |= other.unnumbered
        return repeats


def _lower(one: int | None, other: int | None) -> int | None:
    """Returns the lower of two indices, or None if one of them is None."""
    return None if one is None or other is None else min(one, other)


def _check_removable(indices: set[int]) -> None:
    """Raises the error for repeated images that cannot be removed, if there are any."""
    if indices:
        named = ", ".join(map(str, sorted(indices)[:10])) + (" ..." if len(indices) > 10 else "")
        raise ValueError(
            f"several processes saw the images of index {named}, and half-precision and binned states cannot subtract them:"
            " give each process other images (a distributed sampler without shuffling pads at the end only)"
        )


def pack_text(text: str) -> np.ndarray:
    """Returns the UTF-8 bytes of a text as a uint8 array, so that it can lie in a state dict."""
    return np.frombuffer(text.encode(), np.uint8).copy()


def unpack_text(array: np.ndarray) -> str:
    """Returns the text of `pack_text`."""
    return array.tobytes().decode()


def select_prefix(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Returns the arrays whose names start with `prefix.`, under the rest of their names."""
    return {key.removeprefix(f"{prefix}."): array for key, array in arrays.items() if key.startswith(f"{prefix}.")}


def warn_unnumbered(unnumbered: bool, group: Group) -> bool:
    """Warns once, on the first of several processes, if repeated images cannot be recognised.

    Args:
        unnumbered: Whether an image came to this process without an index.
        group: The processes.

    Returns:
        Whether an image came without an index to any of several processes.
    """
    if group.size == 1:
        return False
    any_unnumbered = any(group.gather_objects(unnumbered))
    if any_unnumbered and group.rank == 0:
        warnings.warn(
            "images came without `index` to several processes: those that a distributed sampler repeats count twice",
            UserWarning,
            stacklevel=2,
        )
    return any_unnumbered
