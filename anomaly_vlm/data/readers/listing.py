"""Folders, image files and masks as they lie on disk; names sorted, so that the file system's own order never shows."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from anomaly_vlm.errors import UserError

MASK_SUFFIXES = frozenset({".png", ".bmp", ".jpg", ".jpeg", ".tif", ".tiff"})
IMAGE_SUFFIXES = MASK_SUFFIXES | {".webp", ".gif", ".pgm", ".ppm"}
MASK_ENDINGS = ("_mask", "_label", "_GT", "_Segmentation", "_segmentation")


def folders(root: Path) -> list[Path]:
    """Sub-folders by name, hidden ones left out; none where `root` is no folder."""
    if not root.is_dir():
        return []
    return sorted((p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")), key=lambda p: p.name)


def images(folder: Path | None, suffixes: Iterable[str] = IMAGE_SUFFIXES) -> list[Path]:
    """Image files by name, by suffix in any case; stray and hidden files (`Thumbs.db`, `.DS_Store`) left out."""
    if folder is None or not folder.is_dir():
        return []
    allowed = frozenset(suffixes)
    found = (p for p in folder.iterdir() if p.suffix.lower() in allowed and not p.name.startswith(".") and p.is_file())
    return sorted(found, key=lambda p: p.name)


def child(root: Path, *names: str) -> Path | None:
    """The first of `names` that is a sub-folder of `root`, in any case."""
    by_name = {p.name.lower(): p for p in reversed(folders(root))}
    by_name.update({p.name: p for p in by_name.values()})
    return next((by_name.get(n) or by_name[n.lower()] for n in names if n in by_name or n.lower() in by_name), None)


class Masks:
    """Mask files of a folder, found by the stem of their image.

    For the image `X.jpg` these count: `X.*`, `X_mask.*`, `X_label.*`, `X_GT.*`, `X_Segmentation.*`, `X_segmentation.*`,
    and, where an image may have several masks, all files of the folder `X/`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._by_stem: dict[str, list[Path]] = {}
        for path in images(folder, MASK_SUFFIXES):
            self._by_stem.setdefault(path.stem, []).append(path)
        self._parts = {path.name: path for path in folders(folder)}

    def of(self, image: Path) -> tuple[str, ...]:
        """The mask of an anomalous image.

        Raises:
            UserError: It has none, or more than one.
        """
        if image.stem in self._parts and (pieces := images(self._parts[image.stem], MASK_SUFFIXES)):
            return tuple(str(piece) for piece in pieces)
        stems = (image.stem, *(image.stem + ending for ending in MASK_ENDINGS))
        found = [path for stem in stems for path in self._by_stem.get(stem, []) if path != image]
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
        return bool(self._parts.get(image.stem)) or any(
            path != image for ending in ("", *MASK_ENDINGS) for path in self._by_stem.get(image.stem + ending, [])
        )
