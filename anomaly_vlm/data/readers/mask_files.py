"""The masks of images: in which folder they lie, what they are called, and which belong to no image."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from anomaly_vlm.data.images import ReadError
from anomaly_vlm.data.masks import open_mask
from anomaly_vlm.data.readers.listing import (
    LOOKED_AT,
    MASK_ENDINGS,
    MASK_TOKEN,
    child,
    folders,
    images,
    is_mask_folder,
    looks_like_mask,
    other_files,
    spread,
    tokens,
    without_mask_words,
)
from anomaly_vlm.data.types import Sample
from anomaly_vlm.errors import UserError

log = logging.getLogger("anomaly_vlm")
NOTES = ("readme", "license", "licence", "thumbs.db", "desktop.ini")  # files that lie beside masks and are none
PIECE = re.compile(r"\d+$")  # ends the name of one of several masks of an image


def mask_place(bases: Sequence[Path], folder: Path) -> Path | None:
    """Where the masks of a class lie: in a folder of masks in one of `bases`, or in the folder of the class itself.

    A folder of masks may be called like the class (`bad_mask` of `bad`), and then holds the masks of this class alone; or
    it has a folder called like the class; or the masks of all classes.

    Raises:
        UserError: There are several.
    """
    found = [place for base in bases for place in folders(base) if is_mask_folder(place)]
    classes = {tuple(tokens(place.name)) for base in bases for place in folders(base) if place not in found}
    own = [place for place in found if owner(place) == tuple(tokens(folder.name))]
    for chosen in (own, [place for place in found if owner(place) not in classes], _inside(folder)):
        if len(chosen) > 1:
            names = " and ".join(f"'{place.name}'" for place in chosen)
            raise UserError(f"'{chosen[0].parent}' has several folders of masks, {names}: keep one of them there")
        if chosen:
            return _part(chosen[0], folder.name)
    return None


def _inside(folder: Path) -> list[Path]:
    return [place for place in folders(folder) if is_mask_folder(place)]


def owner(place: Path) -> tuple[str, ...]:
    """The words of a name that do not speak of masks: of the class whose masks `bad_mask` and `Ground_Truth_bad` hold."""
    return tuple(token for token in tokens(place.name) if token != "ground" and not MASK_TOKEN.fullmatch(token))


def _part(place: Path, name: str) -> Path:
    """The sub-folder for a class, `bad` or `bad_mask`; the folder itself where it has none."""
    like = (folder for folder in folders(place) if owner(folder) == tuple(tokens(name)))
    return child(place, name) or next(like, place)


def without_masks(found: Sequence[Path]) -> list[Path]:
    """Image files without those that are masks of another beside them.

    These are `X_mask.png` or `X.png.png` beside `X.png`; and `X.png` beside `X.jpg` where all that are looked at of one type
    look like masks and those of the other do not.
    """
    stems = {(path.parent, path.stem) for path in found}
    names = {(path.parent, path.name) for path in found}
    twins = _masks_of_another_type(found)

    def is_mask(path: Path) -> bool:
        name = without_mask_words(path.stem)
        return path in twins or (path.parent, name) in names or (name != path.stem and (path.parent, name) in stems)

    return [path for path in found if not is_mask(path)]


def _masks_of_another_type(found: Sequence[Path]) -> set[Path]:
    """Files that are masks of the images with the same stem beside them, which the files themselves decide."""
    same: dict[tuple[Path, str], list[Path]] = {}
    for path in found:
        same.setdefault((path.parent, path.stem), []).append(path)
    types: dict[Path, dict[str, list[Path]]] = {}  # folder -> suffix -> files that have a twin
    for (parent, _), paths in same.items():
        for path in paths if len(paths) > 1 else ():
            types.setdefault(parent, {}).setdefault(path.suffix.lower(), []).append(path)
    masks: set[Path] = set()
    for by_suffix in types.values():
        like = [all(looks_like_mask(path) for path in spread(paths, LOOKED_AT)) for paths in by_suffix.values()]
        if not all(like):
            masks.update(
                path for paths, is_mask in zip(by_suffix.values(), like, strict=True) if is_mask for path in paths
            )
    return masks


class Masks:
    """Mask files of a folder, found by the name of their image.

    For the image `X.jpg` these count: `X.*`, `X.jpg.*`, `X_mask.*` and the other `MASK_ENDINGS`, all files of the folder
    `X/` (an image may have several masks); and where there are none of these, names like `mask_X`, `X-gt` or `x_SEG`, and
    all of `X_mask_1`, `X_mask_2`, ...
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._by_stem: dict[str, list[Path]] = {}
        self._by_loose_name: dict[str, list[Path]] = {}
        for path in images(folder):
            self._by_stem.setdefault(path.stem, []).append(path)
            for name in {path.stem.lower(), without_mask_words(path.stem).lower()}:
                self._by_loose_name.setdefault(name, []).append(path)
        self._parts = {path.name: path for path in folders(folder)}

    def of(self, image: Path) -> tuple[str, ...]:
        """The mask of an anomalous image.

        Raises:
            UserError: It has none, or more than one.
        """
        if image.stem in self._parts and (pieces := images(self._parts[image.stem])):
            return tuple(str(piece) for piece in pieces)
        found = self._files(image)
        if not found:
            raise UserError(
                f"anomalous image '{image}' has no mask: expected {image.stem}.png or {image.stem}_mask.png in"
                f" '{self.folder}'; add it, or take the image out"
            )
        if len(found) > 1 and all(PIECE.search(path.stem) for path in found):
            return tuple(str(path) for path in found)
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
        exact = (path for stem in stems for path in self._by_stem.get(stem, []))
        loose = (path for name in (image.stem, image.name) for path in self._by_loose_name.get(name.lower(), []))
        for found in (exact, loose):
            if kept := [
                path for path in dict.fromkeys(found) if path != image and not self._is_of_another(path, image)
            ]:
                return kept
        return []

    def _is_of_another(self, path: Path, image: Path) -> bool:
        """Whether a mask bears the full name of another image: `x.png` belongs to `x.png`, and not to `x.jpg` beside it."""
        return path.name != image.name and self.folder != image.parent and (image.parent / path.name).is_file()


def check_pairs(samples: Sequence[Sample], places: Iterable[Path]) -> None:
    """Checks the pairs of images and masks of a listing, and says which files in folders of masks are not read.

    Args:
        samples: Samples with their masks.
        places: Folders of masks; files of normal images in them may stay unused, as long as they mark nothing.

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
    unused: list[Path] = []
    of_normal: list[Path] = []
    unread: list[Path] = []
    for place in places:
        unread += [path for path in other_files(place) if not path.name.lower().startswith(NOTES)]
        for path in images(place, deep=True):
            folder = None if path.parent == place else path.parent.name.lower()
            if str(path) not in owners:
                is_normal = (folder, without_mask_words(path.stem).lower()) in normal
                (of_normal if is_normal else unused).append(path)
    _say("%d mask files belong to no image (%s)", unused)
    _say("%d files in folders of masks are not read (%s): masks are image files, png for example", unread)
    marking = [path for path in spread(of_normal, LOOKED_AT) if _marks_pixels(path)]
    _say(
        "masks of normal images are not read, and %d of those looked at mark pixels (%s): are the images normal?",
        marking,
    )


def _say(line: str, paths: Sequence[Path]) -> None:
    if paths:
        shown = ", ".join(f"'{path}'" for path in paths[:3])
        log.warning(line, len(paths), shown + ", ..." * (len(paths) > 3))


def _marks_pixels(path: Path) -> bool:
    try:
        return bool(open_mask(str(path), None).any())
    except ReadError:
        return False


def _owner_names(image: Path) -> tuple[tuple[str | None, str], ...]:
    """Names by which a mask may belong to an image: in a folder called like the image's, or in none."""
    return (image.parent.name.lower(), image.stem.lower()), (None, image.stem.lower())
