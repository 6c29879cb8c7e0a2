"""Few-shot references: normal images of each category, picked the same way for every method."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anomaly_vlm.data.dataset import AnomalyDataset
from anomaly_vlm.data.images import as_rgb
from anomaly_vlm.data.overlap import Content, contents, shared_images
from anomaly_vlm.data.source import FileSource, JointSource, Source
from anomaly_vlm.data.transforms import preprocessed, read_sample
from anomaly_vlm.data.types import PixelChange, Preprocess, Sample
from anomaly_vlm.errors import UserError
from anomaly_vlm.files import expanded, read_json, write_text


@dataclass(frozen=True)
class MemoryImages:
    """Reference images that a checkpoint's memory holds; they are removed from the test set.

    Attributes:
        paths: As the run that picked them wrote them.
        contents: What `overlap.contents` makes of them, by which they are known under other paths and on other machines.
        places: Their paths below the root of their set, by which they are known where a set was stored anew.
    """

    paths: frozenset[str] = frozenset()
    contents: frozenset[Content] = frozenset()
    places: frozenset[Path] = frozenset()

    @classmethod
    def of(cls, picks: Sequence[Sample]) -> MemoryImages:
        """The images that a run has picked itself."""
        return cls(frozenset(sample.path for sample in picks), frozenset(contents(picks)))

    def without(self, samples: Sequence[Sample], roots: Sequence[str] = ()) -> list[Sample]:
        """The samples that are not among them.

        Args:
            samples: Of a test set.
            roots: Folders of the set; none where equal paths below them do not say that images are the same.
        """
        left = [sample for sample in samples if sample.path not in self.paths]
        normal = [sample for sample in left if sample.label != 1]  # references are normal images
        same = {sample.path for sample in normal if self.places and place_below(sample.path, roots) in self.places}
        if self.contents:
            same.update(shared_images(normal, self.contents))
        return [sample for sample in left if sample.path not in same]


def place_below(path: str, roots: Iterable[str]) -> Path | None:
    """The path of a file below that of the roots which it lies deepest in; None where it lies in none."""
    inside = (Path(path).relative_to(folder) for root in roots if Path(path).is_relative_to(folder := expanded(root)))
    return min(inside, key=lambda place: len(place.parts), default=None)


def roots_of(source: Source | None) -> list[str]:
    """The folders of a data set; none of one that is drawn."""
    if isinstance(source, JointSource):
        return [root for part in source.sources.values() for root in roots_of(part)]
    return [source.root] if isinstance(source, FileSource) and source.root is not None else []


def pick(candidates: Sequence[Sample], shots: int, seed: int) -> list[Sample]:
    """`shots` of the candidates of each category, categories in alphabetical order.

    A category's candidates are put into one order by (seed, data set, category) and the first ones taken: the picks for one
    shot are among those for two.

    Raises:
        UserError: A category has fewer.
    """
    chosen: list[Sample] = []
    for category, rows in _by_category(candidates).items():
        if len(rows) < shots:
            raise UserError(
                f"category {category} has {len(rows)} normal images to pick from: set shots={len(rows)} or fewer, or add"
                " normal images"
            )
        key = [seed, zlib.crc32(f"{rows[0].dataset}/{category}".encode())]
        chosen += [rows[i] for i in np.random.default_rng(key).permutation(len(rows))[:shots]]
    return chosen


def listed(
    candidates: Sequence[Sample], table: Mapping[str, Any], shots: int, source: str, roots: Sequence[str] = ()
) -> list[Sample]:
    """The picks that a list names.

    Args:
        candidates: The images that a list may name, all categories together.
        table: Category -> list of file names (the end of the path is enough; of a path of another machine, what lies below
            `roots` counts) or of positions in the category's sorted candidates; or category -> number of shots -> such a
            list.
        shots: How many images of each category are taken, from the front of its list.
        source: Source of the list, for messages.
        roots: Folders that the candidates lie in.

    Raises:
        UserError: A category is not in the list, or names too few or unknown images, or one twice.
    """
    chosen = []
    for category, rows in _by_category(candidates).items():
        entry = table.get(category, table.get(category.replace(" ", "_")))
        if isinstance(entry, Mapping):
            entry = entry.get(str(shots))
        if not isinstance(entry, list) or len(entry) < shots:
            count = len(entry) if isinstance(entry, list) else 0
            raise UserError(
                f"shots_list '{source}' names {count} images of category {category} for shots={shots}: give at least {shots}"
            )
        named = [_named(rows, name, category, source, roots) for name in entry[:shots]]
        if len({sample.path for sample in named}) < shots:
            raise UserError(
                f"shots_list '{source}' names an image of category {category} twice: give {shots} different ones"
            )
        chosen += named
    return chosen


def _named(rows: Sequence[Sample], name: Any, category: str, source: str, roots: Sequence[str]) -> Sample:
    if isinstance(name, int) and 0 <= name < len(rows):
        return rows[name]
    found = [] if isinstance(name, int) else _with_path(rows, str(name), roots)
    if len(found) != 1:
        raise UserError(
            f"shots_list '{source}': {name!r} is {'no' if not found else 'not the only'} normal image of category"
            f" {category} ({len(rows)} to pick from): give the end of one path, or a position below {len(rows)}"
        )
    return found[0]


def _with_path(rows: Sequence[Sample], name: str, roots: Sequence[str]) -> list[Sample]:
    """The rows that a path means: by its end, else as the same file, else by a path below the root, of another machine."""
    for wanted in dict.fromkeys((Path(name).parts, PureWindowsPath(name).parts)):
        if found := [row for row in rows if wanted and Path(row.path).parts[-len(wanted) :] == wanted]:
            return found
    file = expanded(name)
    if file.is_file():
        return [row for row in rows if os.path.realpath(row.path) == os.path.realpath(file)]
    places = {place_below(row.path, roots): row for row in rows}
    for wanted in (Path(name).parts, PureWindowsPath(name).parts):
        ends = (Path(*wanted[first:]) for first in range(len(wanted)))  # the longest first
        if row := next((places[end] for end in ends if end in places), None):
            return [row]
    return []


class ReferencePicks:
    """The reference images of a run: picked once for each (data set, category, number, seed), the same for every method.

    Args:
        source: Whose normal images may be picked; None where there is no test set.
        num_shots: Images of each category; 0 for none.
        seed: Picks them.
        shots_list: File that names them (see `listed`); None for picks by `seed`.
    """

    def __init__(
        self, source: Source | None = None, *, num_shots: int = 0, seed: int = 0, shots_list: str | None = None
    ) -> None:
        self.source, self.num_shots, self.seed, self.shots_list = source, num_shots, seed, shots_list
        self._samples: list[Sample] | None = None

    def samples(self) -> list[Sample]:
        """The picked images, category by category.

        Raises:
            UserError: The test set has too few normal images, or the list does not fit it.
        """
        if self._samples is None:
            if self.source is None or not self.num_shots:
                self._samples = []
            elif self.shots_list is None:
                self._samples = pick(self.source.references(), self.num_shots, self.seed)
            else:
                table = read_list(self.shots_list)
                self._samples = listed(
                    self.source.references(), table, self.num_shots, self.shots_list, roots_of(self.source)
                )
        return self._samples


def positions_by_category(samples: Sequence[Sample]) -> list[list[int]]:
    """Positions of the samples of each category, in the order of their first ones."""
    groups: dict[str, list[int]] = {}
    for i, sample in enumerate(samples):
        groups.setdefault(sample.category, []).append(i)
    return list(groups.values())


def read_list(path: str) -> dict[str, Any]:
    """A list of picks: `{category: [names]}`, also as a run writes it (`references.json`).

    Raises:
        UserError: The file is missing or no such table.
    """
    file = expanded(path)
    if not file.is_file():
        raise UserError(f"shots_list '{path}' does not exist: give a JSON file, category to file names")
    content = read_json(file, what="list of references")
    table = content.get("references", content) if isinstance(content, dict) else content
    if not isinstance(table, dict):
        raise UserError(
            f"shots_list '{path}' holds a {type(table).__name__}: expected an object, category to file names"
        )
    return table


def write_list(path: Path, chosen: Sequence[Sample], *, shots: int, seed: int) -> None:
    """Writes the picks in the form that `read_list` reads."""
    table: dict[str, list[str]] = {}
    for sample in chosen:
        table.setdefault(sample.category, []).append(sample.path)
    facts = {"dataset": chosen[0].dataset if chosen else "", "shots": shots, "seed": seed, "references": table}
    write_text(path, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")


def at_size(samples: Sequence[Sample], preprocess: Preprocess, side: int) -> Tensor:
    """Samples at another side in pixels, [k, 3, side, side]."""
    dataset = AnomalyDataset(samples, replace(preprocess, size=side))
    return torch.stack([dataset[i].image for i in range(len(samples))])


def changed(samples: Sequence[Sample], preprocess: Preprocess, change: PixelChange) -> list[Tensor]:
    """Samples whose pixels are changed at their own size before the preprocessing, [1, 3, H, W] each."""
    pictures = (as_rgb(read_sample(sample)[0]) for sample in samples)
    return [preprocessed(change(np.asarray(picture), i), preprocess) for i, picture in enumerate(pictures)]


def _by_category(candidates: Sequence[Sample]) -> dict[str, list[Sample]]:
    """Candidates by category, both in an order that does not depend on the file system."""
    rows: dict[str, list[Sample]] = {}
    for sample in sorted(candidates, key=lambda s: (s.category, Path(s.path).parts)):
        rows.setdefault(sample.category, []).append(sample)
    return rows
