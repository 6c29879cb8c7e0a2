"""Folders, image files and masks as they lie on disk; names sorted, so that the file system's own order never shows."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from anomaly_vlm.data.images import ReadError, decode

SPLITS = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
}  # word -> split
IMAGE_SUFFIXES = frozenset({".png", ".bmp", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".gif", ".pgm", ".ppm"})
# Of formats that show pictures and are not decoded.
UNREAD_SUFFIXES = frozenset(
    {".heic", ".heif", ".avif", ".jfif", ".jpe", ".jp2", ".j2k", ".jxl", ".svg", ".eps", ".psd", ".exr", ".hdr", ".tga"}
    | {".pnm", ".pbm", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".dcm"}
)
MASK_ENDINGS = ("_mask", "_label", "_GT", "_Segmentation", "_segmentation")  # of published sets
# Names that people give to folders and files of masks, in any case.
MASK_WORDS = "masks?|gts?|ground[ _-]?truths?|labels?|seg|segs|segmentations?|annotations?"
MASK_FOLDER = re.compile(rf"(?:{MASK_WORDS})(?:[ _-]?dir|[ _-]?folder|[ _-]?images?)?", re.IGNORECASE)
MASK_NAME = re.compile(rf"(?:(?:{MASK_WORDS})[ _.-]+(.+)|(.+?)[ _.-]+(?:{MASK_WORDS})(?:[ _-]?\d+)?)", re.IGNORECASE)
MASK_TOKEN = re.compile(r"gts?|segs?|annot.*|.*(?:mask|label|truth|segment).*")
TOKEN = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_A-Za-z]+|\d+")  # of `SegmentationClass` and `bad_mask2`
LOOKED_AT = 16  # files of a folder that are decoded to see whether they are masks


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
    places = [folder, *_below(folder, _above(folder))] if deep else [folder]
    found = (p for place in places for p in place.iterdir())
    listed = (p for p in found if p.suffix.lower() in allowed and not p.name.startswith(".") and p.is_file())
    return sorted(listed, key=lambda p: p.relative_to(folder).parts)


def other_files(folder: Path) -> list[Path]:
    """Files below a folder that `images` does not list: other formats, and links that lead nowhere; hidden ones left out."""
    places = [folder, *_below(folder, _above(folder))] if folder.is_dir() else []
    found = (
        path for place in places for path in place.iterdir() if not path.name.startswith(".") and not path.is_dir()
    )
    return sorted(path for path in found if path.suffix.lower() not in IMAGE_SUFFIXES or not path.is_file())


def _above(folder: Path) -> set[str]:
    """A folder and all that it lies in, so that no link leads back to them."""
    return {os.path.realpath(place) for place in (folder, *folder.absolute().parents, *folder.resolve().parents)}


def _below(folder: Path, seen: set[str]) -> list[Path]:
    """All folders below one, each once, whatever links lead to it; `seen` holds those that must not be read again."""
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
    """Whether a folder holds masks, by its name or, where that leaves it open, by its files too.

    `ground_truth`, `gt`, `masks` and `label` alone, in any case, need no look at the files. `bad_mask`, `masks_png` and
    `pixel_labels` do, as a defect may be called `label_defect`: its photographs are no masks.
    """
    return MASK_FOLDER.fullmatch(folder.name) is not None or (has_mask_word(folder.name) and holds_masks(folder))


def has_mask_word(name: str) -> bool:
    """Whether a word of a folder's name speaks of masks."""
    return any(MASK_TOKEN.fullmatch(token) for token in tokens(name))


def tokens(name: str) -> list[str]:
    """The words and numbers of a name, in small letters: `["bad", "mask", "2"]` of `bad_mask2` and `BadMask 2`."""
    return [token.lower() for token in TOKEN.findall(name)]


def holds_masks(folder: Path) -> bool:
    """Whether the files of a folder look like masks of the images beside it, and those images do not."""
    found = _walk(folder)
    if not found or not all(looks_like_mask(path) for path in spread(found, LOOKED_AT)):
        return False
    if not (beside := _images_beside(folder)):
        return False
    stems = {name for path in beside for name in (path.stem.lower(), path.name.lower())}
    matching = sum(without_mask_words(path.stem).lower() in stems for path in found)
    return 2 * matching >= len(found) and not all(looks_like_mask(path) for path in spread(beside, LOOKED_AT))


def looks_like_mask(path: Path) -> bool:
    """Whether a file has at most three values, one of them black; JPEG: little but black and white."""
    try:
        decoded = decode(str(path), draft=256)
    except ReadError:
        return False
    image = decoded.image
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.unique(np.asarray(image))
        return len(values) <= 3 and values[0] == 0
    if decoded.format == "JPEG":
        grey = np.asarray(image.convert("L"))
        return bool((grey < 32).any() and ((grey < 32) | (grey > 223)).mean() > 0.95)
    colours = image.convert("RGB").getcolors(3)
    return colours is not None and (0, 0, 0) in [colour for _, colour in colours]


def spread(paths: list[Path], most: int) -> list[Path]:
    """At most so many of the paths, evenly spread."""
    return paths if len(paths) <= most else [paths[len(paths) * i // most] for i in range(most)]


def _images_beside(folder: Path) -> list[Path]:
    """The images in the folder's parent, and in the parent's other folders."""
    others = [path for place in folders(folder.parent) if place != folder for path in _walk(place)]
    return images(folder.parent) + others


def _walk(folder: Path) -> list[Path]:
    """Image files below a folder, whatever its sub-folders are called, but not behind links."""
    return [
        Path(place, name)
        for place, _, names in os.walk(folder)
        for name in sorted(names)
        if Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")
    ]


def split_by_name(path: Path) -> str:
    """The split that a word of a file's name says, else one of its folders, the innermost first; else `test`."""
    words = [word for name in (path.stem, *reversed(path.parts[:-1])) for word in re.split(r"[-_.]", name.lower())]
    return next((SPLITS[word] for word in (re.sub(r"\d+$", "", word) for word in words) if word in SPLITS), "test")


def without_mask_words(stem: str) -> str:
    """The name of the image that a mask's name holds: `X` for `X_mask`, `mask_X`, `X-gt`, `X_seg` and `X_mask_1`."""
    match = MASK_NAME.fullmatch(stem)
    return stem if match is None else match[1] or match[2]
