"""Folders, image files and masks as they lie on disk; names sorted, so that the file system's own order never shows."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from anomaly_vlm.data.types import Sample
from anomaly_vlm.errors import UserError

log = logging.getLogger("anomaly_vlm")
SPLITS = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
}  # word -> split
MASK_SUFFIXES = frozenset({".png", ".bmp", ".jpg", ".jpeg", ".tif", ".tiff", ".webp"})
IMAGE_SUFFIXES = MASK_SUFFIXES | {".gif", ".pgm", ".ppm"}
MASK_ENDINGS = ("_mask", "_label", "_GT", "_Segmentation", "_segmentation")  # of published sets
# Names that people give to folders and files of masks, in any case.
MASK_WORDS = "masks?|gts?|ground[ _-]?truths?|labels?|seg|segs|segmentations?|annotations?"
MASK_FOLDER = re.compile(rf"(?:{MASK_WORDS})(?:[ _-]?dir|[ _-]?folder|[ _-]?images?)?", re.IGNORECASE)
MASK_NAME = re.compile(rf"(?:(?:{MASK_WORDS})[ _.-]+(.+)|(.+?)[ _.-]+(?:{MASK_WORDS}))", re.IGNORECASE)


def folders(root: Path) -> list[Path]:
    """Sub-folders by name, hidden ones left out; none where `root` is no folder."""
    if not root.is_dir():
        return []
    return sorted((p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")), key=lambda p: p.name)


def images(folder: Path | None, suffixes: Iterable[str] = IMAGE_SUFFIXES, *, deep: bool = False) -> list[Path]:
    """Image files by name, by suffix in any case; stray and hidden files (`Thumbs.db`, `.DS_Store`) left out.

    Args:
        folder: Where to look; None for nothing.
        suffixes: Which files count.
        deep: Whether sub-folders are read too, also behind symbolic links, but not folders of masks.
    """
    if folder is None or not folder.is_dir():
        return []
    allowed = frozenset(suffixes)
    places = [folder, *_below(folder, {os.path.realpath(folder)})] if deep else [folder]
    found = (p for place in places for p in place.iterdir())
    listed = (p for p in found if p.suffix.lower() in allowed and not p.name.startswith(".") and p.is_file())
    return sorted(listed, key=lambda p: p.relative_to(folder).parts)


def _below(folder: Path, seen: set[str]) -> list[Path]:
    """All folders below one, each once, whatever links lead to it."""
    found = []
    for place in folders(folder):
        real = os.path.realpath(place)
        if real not in seen and not is_mask_folder(place):
            seen.add(real)
            found += [place, *_below(place, seen)]
    return found


def child(root: Path, *names: str) -> Path | None:
    """The first of `names` that is a sub-folder of `root`, in any case."""
    by_name = {p.name.lower(): p for p in reversed(folders(root))}
    by_name.update({p.name: p for p in by_name.values()})
    return next((by_name.get(n) or by_name[n.lower()] for n in names if n in by_name or n.lower() in by_name), None)


def is_mask_folder(folder: Path) -> bool:
    """Whether a folder is called as people call folders of masks: `ground_truth`, `gt`, `masks`, `label`, in any case."""
    return MASK_FOLDER.fullmatch(folder.name) is not None


def mask_folder(root: Path) -> Path | None:
    """The folder of the masks in `root`, by its name; None where there is none.

    Raises:
        UserError: There are several.
    """
    found = [folder for folder in folders(root) if is_mask_folder(folder)]
    if len(found) > 1:
        names = " and ".join(f"'{folder.name}'" for folder in found)
        raise UserError(f"'{root}' has several folders of masks, {names}: keep one of them there")
    return found[0] if found else None


def split_by_name(path: Path) -> str:
    """The split that a word of a file's name says, else one of its folders, the innermost first; else `test`."""
    words = [word for name in (path.stem, *reversed(path.parts[:-1])) for word in re.split(r"[-_.]", name.lower())]
    return next((SPLITS[word] for word in (re.sub(r"\d+$", "", word) for word in words) if word in SPLITS), "test")


def without_mask_words(stem: str) -> str:
    """The name of the image that a mask's name holds: `X` for `X_mask`, `mask_X`, `X-gt` and `X_seg`."""
    match = MASK_NAME.fullmatch(stem)
    return stem if match is None else match[1] or match[2]


class Masks:
    """Mask files of a folder, found by the name of their image.

    For the image `X.jpg` these count: `X.*`, `X.jpg.*`, `X_mask.*` and the other `MASK_ENDINGS`, all files of the folder
    `X/` (an image may have several masks); and where there are none of these, names like `mask_X`, `X-gt` or `x_SEG`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._by_stem: dict[str, list[Path]] = {}
        self._by_loose_name: dict[str, list[Path]] = {}
        for path in images(folder, MASK_SUFFIXES):
            self._by_stem.setdefault(path.stem, []).append(path)
            for name in {path.stem.lower(), without_mask_words(path.stem).lower()}:
                self._by_loose_name.setdefault(name, []).append(path)
        self._parts = {path.name: path for path in folders(folder)}

    def of(self, image: Path) -> tuple[str, ...]:
        """The mask of an anomalous image.

        Raises:
            UserError: It has none, or more than one.
        """
        if image.stem in self._parts and (pieces := images(self._parts[image.stem], MASK_SUFFIXES)):
            return tuple(str(piece) for piece in pieces)
        found = self._files(image)
        if not found:
            raise UserError(
                f"anomalous image '{image}' has no mask: expected {image.stem}.png or {image.stem}_mask.png in"
                f" '{self.folder}'; add it, or take the image out"
            )
        if len(found) > 1:
            raise UserError(
                f"image '{image}' has {len(found)} masks in '{self.folder}' ({', '.join(p.name for p in found)}): keep one"
            )
        return (str(found[0]),)

    def has(self, image: Path) -> bool:
        """Whether there is any mask file for the image."""
        return bool(self._parts.get(image.stem)) or bool(self._files(image))

    def _files(self, image: Path) -> list[Path]:
        stems = (image.stem, *(image.stem + ending for ending in MASK_ENDINGS), image.name)
        found = [path for stem in stems for path in self._by_stem.get(stem, [])]
        found = found or self._by_loose_name.get(image.stem.lower(), [])
        return [path for path in found if path != image and not self._is_of_another(path, image)]

    def _is_of_another(self, path: Path, image: Path) -> bool:
        """Whether a mask bears the full name of another image: `x.png` belongs to `x.png`, and not to `x.jpg` beside it."""
        return path.name != image.name and self.folder != image.parent and (image.parent / path.name).is_file()


def check_pairs(samples: Sequence[Sample], places: Iterable[Path]) -> None:
    """Checks the pairs of images and masks of a listing, and says which mask files belong to no image.

    Args:
        samples: Samples with their masks.
        places: Folders of masks; files of normal images in them may stay unused.

    Raises:
        UserError: Two images share a mask.
    """
    owners: dict[str, str] = {}
    for sample in samples:
        for mask in sample.masks:
            if owners.setdefault(mask, sample.path) != sample.path:
                raise UserError(
                    f"images '{owners[mask]}' and '{sample.path}' share the mask '{mask}': give them different names"
                )
    normal = {name for sample in samples if not sample.label for name in _owner_names(Path(sample.path))}
    unused = [
        path
        for place in places
        for path in _all_files(place)
        if str(path) not in owners
        and (None if path.parent == place else path.parent.name.lower(), without_mask_words(path.stem).lower())
        not in normal
    ]
    if unused:
        shown = ", ".join(f"'{path}'" for path in unused[:3])
        log.warning("%d mask files belong to no image (%s%s)", len(unused), shown, ", ..." if len(unused) > 3 else "")


def _owner_names(image: Path) -> tuple[tuple[str | None, str], ...]:
    """Names by which a mask may belong to an image: in a folder called like the image's, or in none."""
    return (image.parent.name.lower(), image.stem.lower()), (None, image.stem.lower())


def _all_files(place: Path) -> list[Path]:
    return [
        path for folder in (place, *_below(place, {os.path.realpath(place)})) for path in images(folder, MASK_SUFFIXES)
    ]
