"""Sources: data sets as config nodes. Each is a `FileSource`, a set that is drawn, or several of them as a `JointSource`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from anomaly_vlm.data.file_source import FileSource
from anomaly_vlm.data.types import Sample
from anomaly_vlm.errors import UserError

__all__ = ["FileSource", "JointSource", "Source"]


@runtime_checkable
class Source(Protocol):
    """A data set. `samples(side)` is sorted and independent of the file system; `side` is `train`, `val` or `test`.

    `references()` are the normal images of its test categories that few-shot methods may pick from.
    """

    name: str

    def samples(self, side: str) -> list[Sample]:
        """The samples of one side: `train`, `val` or `test`."""

    def references(self) -> list[Sample]:
        """The normal images that few-shot references may be picked from."""


class JointSource:
    """Several data sets as one, for joint protocols (AdaCLIP: MVTec AD + ColonDB -> all others).

    Args:
        name: Name of the union, for tables.
        sources: The sources by the name of their node.
    """

    def __init__(self, *, name: str, sources: Mapping[str, Source]) -> None:
        if not sources:
            raise UserError(f"joint data set {name} has no sources: give at least one under sources")
        self.name = name
        self.sources = dict(sources)
        for key, source in self.sources.items():
            if isinstance(source, FileSource):
                source.place = f"sources.{key}."

    def samples(self, side: str) -> list[Sample]:
        """The samples of one side: `train`, `val` or `test`."""
        found = {key: source.samples(side) for key, source in self.sources.items()}
        if side != "train":
            self._check_rows({key: {sample.category for sample in samples} for key, samples in found.items()})
        return [sample for samples in found.values() for sample in samples]

    def everything(self) -> list[Sample]:
        """The images of all splits and shares, each once; of sets without files those of the test side."""
        found = (s.everything() if isinstance(s, FileSource) else s.samples("test") for s in self.sources.values())
        return [sample for samples in found for sample in samples]

    def references(self) -> list[Sample]:
        """The normal images that few-shot references may be picked from."""
        return [sample for source in self.sources.values() for sample in source.references()]

    def _check_rows(self, categories: dict[str, set[str]]) -> None:
        owner: dict[str, str] = {}
        for key, names in categories.items():
            for name in sorted(names):
                if name in owner:
                    raise UserError(
                        f"joint data set {self.name}: {owner[name]} and {key} both have a category '{name}', which would"
                        f" share one row of the results: rename one with sources.{key}.class_words"
                    )
                owner[name] = key
