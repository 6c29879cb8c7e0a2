"""The user's own images: sorted into folders, or in one heap."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from anomaly_vlm.data.readers.listing import (
    IMAGE_SUFFIXES,
    UNREAD_SUFFIXES,
    child,
    folders,
    has_mask_word,
    holds_masks,
    images,
    is_mask_folder,
    other_files,
    tokens,
)
from anomaly_vlm.data.readers.mask_files import Masks, check_pairs, mask_place, owner, without_masks
from anomaly_vlm.data.readers.mvtec_ad import split_folders
from anomaly_vlm.data.types import Sample
from anomaly_vlm.errors import UserError, unknown_choice

log = logging.getLogger("anomaly_vlm")


UNSORTED = ("inbox", "incoming", "new", "todo", "unknown", "unlabeled", "unlabelled", "unsorted")  # names of no defect


def read_folder(
    root: Path,
    *,
    normal: str = "good",
    category: str = "object",
    defects: Sequence[str] | None = None,
    missing_masks: Literal["error", "ignore"] = "error",
) -> list[Sample]:
    """`NORMAL/` and one folder a defect; `[CAT/]{train,val,test}/{NORMAL,DEFECT}`; or flat images without labels.

    Masks are optional: in `ground_truth/DEFECT/` (or flat in `ground_truth/`), named like their image or `NAME_mask.png`;
    or beside the image as `NAME_mask.png`. The folder may have another name by which folders of masks go (`is_mask_folder`),
    and so may the files (`Masks`). Where one anomalous image has a mask, all must. Sub-folders of a class are read too.
    Folders whose names say that nobody has sorted them (`UNSORTED`) are left out, and named.

    Args:
        root: Folder of the set.
        normal: Folder of the normal images, in any case.
        category: Word for the text prompts, where the folders do not name categories.
        defects: Names of the folders of defects, where not all folders beside the normal one are.
        missing_masks: `ignore`: where some anomalous images have masks, the others have their image label alone.

    Raises:
        UserError: Folders without a normal one, a missing mask, or two images that share one.
    """
    categories = [root] if child(root, "test") else folders(root)
    if not any(child(folder, "test") for folder in categories):
        part = _part(root, category, {"test": root})
        if not part.classes["test"]:
            say_left_out(root, unread_pictures(root))
            return [_unlabelled(path, category) for path in images(root)]
        parts = [part]
    else:
        parts = [
            _part(folder, folder.name or folder.resolve().name, split_folders(folder), [folder])
            for folder in categories
        ]
        beside = [path for part in parts if not part.places for path in images(part.root, deep=True)]
        say_left_out(root, beside if categories == [root] else [*images(root), *beside])
    present = [folder.name for part in parts for found in part.classes.values() for folder in found]
    for name in defects or ():
        if name not in present:
            raise unknown_choice(f"folder of '{root}' in reader.defects", name, list(dict.fromkeys(present)))
    return [sample for part in parts for sample in _read(part, normal, defects, missing_masks)]


class Part(NamedTuple):
    """One category of a set.

    Attributes:
        root: Its folder.
        word: Its name, for prompts and tables.
        places: Split -> the folder that holds the folders of classes.
        outside: Folders beside `places` in which the folder of masks may lie.
        classes: Split -> the folders of classes, which hold images that are no masks.
    """

    root: Path
    word: str
    places: Mapping[str, Path]
    outside: Sequence[Path]
    classes: Mapping[str, Sequence[Path]]


def _part(root: Path, word: str, places: Mapping[str, Path], outside: Sequence[Path] = ()) -> Part:
    classes = {
        split: [folder for folder in folders(place) if not is_mask_folder(folder) and images(folder, deep=True)]
        for split, place in places.items()
    }
    return Part(root, word, places, outside, classes)


def _read(part: Part, normal: str, defects: Sequence[str] | None, missing_masks: str) -> list[Sample]:
    classes = [folder for found in part.classes.values() for folder in found]
    kept = _sorted_ones(part.root, classes, normal, defects)
    loose = [path for place in (*part.outside, *part.places.values()) for path in images(place) if part.places]
    say_left_out(part.root, [*loose, *unread_pictures(part.root)])
    if kept and not any(_is_normal(folder, normal) for folder in kept):
        names = ", ".join(dict.fromkeys(folder.name for folder in kept[:5]))
        raise UserError(
            f"folder '{part.root}' has no '{normal}' for the normal images (found {names}): put them into {normal}/, or name"
            " their folder with the option reader.normal"
        )
    masks_of: dict[str, Masks] = {}
    samples = []
    for split, place in part.places.items():
        for folder in (folder for folder in part.classes[split] if folder in kept):
            label = 0 if _is_normal(folder, normal) else 1
            for path, masks in _class([*part.outside, place], folder):
                masks_of[str(path)] = masks
                samples.append(
                    Sample(
                        path=str(path),
                        category=part.word,
                        label=label,
                        masks=masks.of(path) if label and masks.has(path) else (),
                        defect=folder.name if label else "good",
                        split=split,
                    )
                )
    bases = [*part.outside, *part.places.values(), *kept]
    places = [place for base in bases for place in folders(base) if is_mask_folder(place)]
    check_pairs(samples, places)
    without = [sample for sample in samples if sample.label and not sample.masks]
    if not any(sample.masks for sample in samples) and not (part.outside and places and without):
        return [dataclasses.replace(sample, kind="image") for sample in samples]
    if not without:
        return samples
    if missing_masks == "error":
        first = without[0].path
        try:
            masks_of[first].of(Path(first))
        except UserError as error:
            raise UserError(f"{error}, or set reader.missing_masks=ignore on the data set") from None
    log.warning(
        "'%s': %d anomalous images have no mask ('%s'): only their labels count",
        part.root,
        len(without),
        without[0].path,
    )
    return [dataclasses.replace(one, kind="image") if one.label and not one.masks else one for one in samples]


def _is_normal(folder: Path, normal: str) -> bool:
    return folder.name.lower() == normal.lower()


def _sorted_ones(root: Path, classes: Sequence[Path], normal: str, defects: Sequence[str] | None) -> list[Path]:
    """The normal folders and those of defects; others are named, so that nothing is taken for a defect silently.

    Raises:
        UserError: A folder seems to hold masks, though its name does not say so.
    """
    kept = []
    for folder in classes:
        is_defect = folder.name.lower() not in UNSORTED if defects is None else folder.name in defects
        if not _is_normal(folder, normal) and not is_defect:
            continue
        kept.append(folder)
        if defects is None and not _is_normal(folder, normal) and holds_masks(folder):
            raise UserError(
                f"'{folder}' holds images of at most three values, called like those beside it, as masks are: rename it"
                " to masks, or say which folders are defects with reader.defects=[...] on the data set"
            )
    if left_out := [folder.name for folder in classes if folder not in kept]:
        log.warning(
            "'%s': left out, as they are no defects: %s; reader.defects=[...] on the data set says which folders are",
            root, ", ".join(left_out),
        )  # fmt: skip
    names = {tuple(tokens(folder.name)) for folder in kept}
    for folder in kept if defects is None else ():
        if has_mask_word(folder.name) and owner(folder) in names:
            log.warning(
                "'%s' counts as a defect, as its images have more than three values; if they are masks, name the defects"
                " with reader.defects=[...] on the data set", folder,
            )  # fmt: skip
    return kept


def read_unlabelled(root: Path, *, category: str = "object", quiet: bool = False) -> list[Sample]:
    """All images below `root`, without labels, for prediction.

    Masks in folders or beside images are left out, and named unless `quiet`.
    """
    found = images(root, deep=True)
    kept = without_masks(found)
    if not quiet:
        if left_out := [folder.name for folder in folders(root) if is_mask_folder(folder)]:
            log.warning("'%s': folders of masks are not scored: %s", root, ", ".join(left_out))
        if len(kept) < len(found):
            first = min(set(found) - set(kept))
            log.warning("'%s': %d masks beside their images are left out ('%s')", root, len(found) - len(kept), first)
        say_left_out(root, unread_pictures(root))
    return [_unlabelled(path, category) for path in kept]


def unread_pictures(root: Path) -> list[Path]:
    """Files below a folder that are pictures by their suffix, and are not read."""
    return [path for path in other_files(root) if path.suffix.lower() in UNREAD_SUFFIXES | IMAGE_SUFFIXES]


def say_left_out(root: Path, left_out: Sequence[Path]) -> None:
    """One line on picture files of a set that are not read."""
    if left_out:
        shown = ", ".join(path.relative_to(root).as_posix() for path in left_out[:3])
        log.warning(
            "'%s': %d files are not read (%s%s): png, jpg, bmp, tif, webp, gif, pgm or ppm in the folders of classes are",
            root, len(left_out), shown, ", ..." * (len(left_out) > 3),
        )  # fmt: skip


def _unlabelled(path: Path, category: str) -> Sample:
    return Sample(path=str(path), category=category, label=None, defect="", kind="none")


def _class(bases: Sequence[Path], folder: Path) -> list[tuple[Path, Masks]]:
    """The images of a class, each with its folder of masks (which may have the same sub-folders), or its own folder."""
    place = mask_place(bases, folder)
    found: dict[Path, Masks] = {}
    rows = []
    for path in without_masks(images(folder, deep=True)):
        if path.parent not in found:
            inside = None if place is None else place / path.parent.relative_to(folder)
            found[path.parent] = Masks(inside if inside is not None and inside.is_dir() else place or path.parent)
        rows.append((path, found[path.parent]))
    return rows
