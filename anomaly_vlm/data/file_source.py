"""`FileSource`: a data set in files. A reader lists the files of a layout; the source adds what all sets have in common."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from anomaly_vlm.data.checks import file_job
from anomaly_vlm.data.images import guess_white
from anomaly_vlm.data.shares import checked_shares, dealt
from anomaly_vlm.data.types import VOID, Sample
from anomaly_vlm.errors import UserError, unknown_choice
from anomaly_vlm.files import expanded

log = logging.getLogger("anomaly_vlm")
SPLITS = ("train", "val", "test", "all")
PACKAGE = "package:"
MAKE_VARIABLES = {"test": "DATA", "train": "TRAIN_DATA"}


class FileSource:
    """A data set in files.

    Zero-shot protocols use a set's own test split for training and testing alike, so the split is an option and does not
    follow from the side.

    Args:
        name: Name of the data set, for tables; None: that of its folder.
        root: Folder of the set, relative to the working directory; `package:NAME/FOLDER` inside an installed package; None
            where the user must say it.
        reader: `root -> samples` of all splits, from `anomaly_vlm.data.readers`.
        layout: What the reader expects below `root`, in words.
        origin: Where users get the set, if anywhere; for messages.
        split: `train`, `val`, `test` or `all`.
        categories: Only these, by their names on disk; None for all.
        published_categories: All that the complete set has; a warning names those that are missing.
        published_counts: Split -> number of normal and of anomalous images in the complete set, as its authors state them; a
            warning names a split that differs.
        class_words: Name on disk -> word for prompts and tables, in place of the published one.
        mask_threshold: A mask value above it is anomalous, 0 to 254 (of 255), as the protocols of published sets say; None:
            what `data.masks` makes of the files.
        mask_void: Value in mask files that marks pixels which do not count; None for none.
        max_value: Value of white in image files of more than 8 bits, such as 4095; None: guessed from the files.
        protocol: Which reading of the set this is, where there are several, for the line that says what was used.
        outside: Whether an index in the set may list files outside `root`.
        shares: Deals all images out to the sides, whatever split they lie in, see `shares.checked_shares`; None: `split`
            says which images there are on any side.
        shares_seed: Draws who is dealt to which side.

    Raises:
        UserError: A wrong option; from `samples`, a missing or empty root, unknown categories, or what the reader finds.
    """

    def __init__(
        self,
        *,
        name: str | None,
        root: str | Path | None,
        reader: Callable[[Path], list[Sample]],
        layout: str,
        origin: str = "",
        split: str = "test",
        categories: Iterable[str] | None = None,
        published_categories: Iterable[str] | None = None,
        published_counts: Mapping[str, Sequence[int]] | None = None,
        class_words: Mapping[str, str] | None = None,
        mask_threshold: int | None = None,
        mask_void: int | None = None,
        max_value: float | None = None,
        protocol: str = "",
        outside: bool = False,
        shares: float | Sequence[float] | None = None,
        shares_seed: int = 0,
    ) -> None:
        if split not in SPLITS:
            raise unknown_choice("split", str(split), SPLITS)
        if name is not None and not isinstance(name, str):
            raise UserError(f"name of a data set is {str(name)[:40]!r}: give a text")
        _check_number("mask_threshold", mask_threshold, 0, 254)
        _check_number("mask_void", mask_void, 1, 255)
        _check_number("max_value", max_value, 1, 2**32 - 1, whole=False)
        inspect.signature(reader).bind(Path())  # a misspelt option of the reader shows here
        self.name = name or ("folder" if root is None else expanded(root).resolve().name or str(root))
        self.reader, self.layout, self.origin, self.split = reader, layout, origin, split
        self.shares = None if shares is None else checked_shares(shares)
        self.shares_seed = shares_seed
        self.root = None if root is None else str(root)
        self.protocol, self.outside = protocol, outside
        self.categories = None if categories is None else _names(categories)
        self.published_categories = None if published_categories is None else _names(published_categories)
        self.published_counts = {split: (int(n), int(a)) for split, (n, a) in (published_counts or {}).items()}
        self._compared: set[str] = set()
        self.class_words = {str(key): str(word) for key, word in (class_words or {}).items()}
        self.mask_threshold, self.mask_void, self.max_value = mask_threshold, mask_void, max_value
        self._white: float | None = None
        self.place = ""  # of this node below `dataset.SIDE.` in the configuration; a joint source sets it

    @property
    def note(self) -> str:
        """Which reading and which part of the set is used, in words."""
        split = {"test": "", "all": "all splits"}.get(self.split, f"{self.split} split")
        if self.shares is not None:
            split = f"its share by split={':'.join(f'{share:g}' for share in self.shares)}, seed {self.shares_seed}"
        return ", ".join(part for part in (self.protocol, split, *(self.categories or ())) if part)

    def samples(self, side: str) -> list[Sample]:
        """The samples of one side: `train`, `val` or `test`."""
        found = self._read(side)
        if self.shares is not None:
            found = [sample for sample in found if sample.split == side]
        elif self.split != "all":
            splits = sorted({sample.split for sample in found})
            found = [sample for sample in found if sample.split == self.split]
            if not found:
                raise unknown_choice(f"split of {self.name} in '{self._root(side)}'", self.split, splits)
        self._compare_counts(found)
        return self._finished(found)

    def everything(self) -> list[Sample]:
        """The images of all splits and shares, each once."""
        return self._finished(self._read("test"))

    def _compare_counts(self, found: list[Sample]) -> None:
        """Says which splits have other numbers of images than the publishers state; each is said once."""
        if self.categories is not None:
            return
        for split, published in self.published_counts.items():
            labels = [sample.label for sample in found if sample.split == split]
            here = (labels.count(0), labels.count(1))
            if labels and here != published and split not in self._compared:
                self._compared.add(split)
                log.warning(
                    "%s: %s has %d normal and %d anomalous images, the publishers state %d and %d: another set than theirs",
                    self.name, split, *here, *published,
                )  # fmt: skip

    def references(self) -> list[Sample]:
        """Normal images of the training split, or of the used split where a category has none there.

        In the second case the images that are picked are removed from the test set.
        """
        found = [sample for sample in self._read("test") if sample.label == 0]
        trained = {sample.category for sample in found if sample.split == "train"}
        split = None if self.split == "all" or self.shares is not None else self.split
        return self._finished(
            [
                sample
                for sample in found
                if sample.split == "train" or (sample.category not in trained and split in (None, sample.split))
            ]
        )

    def _read(self, side: str) -> list[Sample]:
        root = self._root(side)
        found = self.reader(root)
        if not found:
            raise self._absent(side, f"no images of {self.name} in '{root}'")
        for path in (path for sample in found for path in (sample.path, *sample.masks)):
            if "\0" in path:
                raise UserError(f"{self.name} in '{root}' lists {path!r}, which no file can be called: mend the list")
        if not self.outside:
            self._check_places(side, root, found)
        if self.shares is None:
            return found
        return dealt(sorted(found, key=lambda s: (s.category, Path(s.path).parts)), self.shares, seed=self.shares_seed)

    def _check_places(self, side: str, root: Path, found: list[Sample]) -> None:
        """Raises a `UserError` where a stored path leads out of the set's folder; links inside it are the user's own."""
        base = os.path.normpath((root.parent if root.is_file() else root).absolute())
        for sample in found:
            for path in (sample.path, *sample.masks):
                place = os.path.normpath(Path(path).absolute())
                if place != base and not place.startswith(base.rstrip(os.sep) + os.sep):
                    raise UserError(
                        f"{self.name} in '{root}' lists '{path}', which lies outside: move the file, or allow it with"
                        f" ++dataset.{side}.{self.place}outside=true"
                    )

    def _finished(self, found: list[Sample]) -> list[Sample]:
        """The chosen categories under their words, sorted."""
        found = self._chosen(found)
        self._check_words({sample.category for sample in found})
        lookup, max_value = self._lookup(), self.max_value or self._guessed_white(found)
        renamed = [
            dataclasses.replace(
                sample,
                category=self.class_words.get(sample.category, sample.category),
                dataset=self.name,
                mask_threshold=self.mask_threshold,
                max_value=max_value,
                drawing=_with_white(sample.drawing, max_value),
                lookup=lookup if lookup and sample.kind == "mask" and len(sample.masks) == 1 else sample.lookup,
            )
            for sample in found
        ]
        return sorted(renamed, key=lambda s: (s.category, s.split, Path(s.path).parts))

    def _lookup(self) -> tuple[int, ...] | None:
        """Label of each value in mask files with void pixels."""
        if self.mask_void is None:
            return None
        threshold = self.mask_threshold or 0
        return tuple(VOID if value == self.mask_void else int(value > threshold) for value in range(256))

    def _guessed_white(self, found: list[Sample]) -> float | None:
        """The value of white in files of more than 8 bits: one for the whole set, so that its images stay comparable."""
        paths = [job.image for sample in found if (job := file_job(sample)) is not None]
        if not paths or self._white is not None:
            return self._white
        self._white = guess_white(paths)
        if self._white is not None and self._white < 65535:
            log.warning(
                "%s: images of more than 8 bits, whose values say that white is %g; if it is not, set max_value=65535 on the"
                " data set", self.name, self._white,
            )  # fmt: skip
        return self._white

    def _root(self, side: str) -> Path:
        if self.root is None:
            raise self._absent(side, f"{self.name}: no folder given")
        root = expanded(self.root)
        if self.root.startswith(PACKAGE):
            package, _, inside = self.root.removeprefix(PACKAGE).partition("/")
            # Found without importing, as a plain name: the files are all that counts, no code is run.
            spec = find_spec(package) if package.isidentifier() else None
            if spec is None or not spec.submodule_search_locations:
                raise self._absent(side, f"{self.name}: package {package} is not installed")
            root = Path(spec.submodule_search_locations[0]) / inside
        if not root.exists():
            raise self._absent(side, f"{self.name}: no folder '{root}'")
        return root

    def _absent(self, side: str, found: str) -> UserError:
        variable = f" (make: {MAKE_VARIABLES[side]}=FOLDER)" if side in MAKE_VARIABLES and not self.place else ""
        get = f"get it from {self.origin}, then " if self.origin else ""
        return UserError(f"{found}: expected {self.layout}; {get}set dataset.{side}.{self.place}root=FOLDER{variable}")

    def _chosen(self, found: list[Sample]) -> list[Sample]:
        present = {sample.category for sample in found}
        if self.categories is not None:
            for name in self.categories:
                if name not in present:
                    raise unknown_choice(f"category of {self.name}", name, present)
            return [sample for sample in found if sample.category in self.categories]
        if missing := [name for name in self.published_categories or () if name not in present]:
            log.warning(
                "%s in '%s' is incomplete: %d of %d categories, without %s",
                self.name, self.root, len(present), len(present) + len(missing), ", ".join(missing),
            )  # fmt: skip
        return found

    def _check_words(self, present: set[str]) -> None:
        for name in self.class_words:
            if name not in present:
                raise unknown_choice(f"category in class_words of {self.name}", name, present)
        words = Counter(self.class_words.get(name, name) for name in present)
        for word, count in words.items():
            if count > 1:
                names = sorted(name for name in present if self.class_words.get(name, name) == word)
                raise UserError(
                    f"class_words of {self.name} gives {' and '.join(names)} the same word '{word}', and with it one row of"
                    " the results: give different words"
                )


def _with_white(drawing: Any, white: float | None) -> Any:
    """A drawing of a file, which is told what white is in it; other drawings as they are."""
    knows = white is not None and hasattr(drawing, "max_value")
    return dataclasses.replace(drawing, max_value=white) if knows else drawing


def _check_number(name: str, value: object, low: int, high: int, *, whole: bool = True) -> None:
    kinds = (int,) if whole else (int, float)
    if value is not None and (isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high):
        raise UserError(f"{name} is {value!r}: give a {'whole ' if whole else ''}number from {low} to {high}")


def _names(values: Iterable[str]) -> list[str]:
    return [str(value) for value in ([values] if isinstance(values, str) else values)]
