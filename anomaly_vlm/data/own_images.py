"""Images as a user names them on the command line: a file, a folder, a pattern, a list."""

from __future__ import annotations

import glob
import hashlib
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from anomaly_vlm.data.images import ReadError, open_image, read_bytes
from anomaly_vlm.data.readers.folder import read_unlabelled
from anomaly_vlm.data.readers.index import NORMAL
from anomaly_vlm.data.readers.listing import IMAGE_SUFFIXES, child, folders, images, is_mask_folder
from anomaly_vlm.data.source import FileSource
from anomaly_vlm.data.types import Sample
from anomaly_vlm.errors import UserError
from anomaly_vlm.files import expanded
from anomaly_vlm.names import elements

log = logging.getLogger("anomaly_vlm")
KINDS = (
    "a folder with png, jpg, bmp, tif or webp files, one such file, a pattern, a list in a .txt file, or [a.png,b.png]"
)


def image_files(spec: str, *, key: str = "images", quiet: bool = False) -> tuple[Path, list[Path]]:
    """The image files that a user means.

    Args:
        spec: A folder (sub-folders included), an image file, a pattern such as `parts/*.png`, a `.txt` file with a path in
            each line, or several of these as `[a.png,b.png]`. A name that exists is never read as a pattern or a list.
        key: Under which name the user gave it, for messages.
        quiet: Whether to leave unnamed what is left out of a folder, because it is read again.

    Returns:
        The folder that all of them lie in, and the files, each once.

    Raises:
        UserError: There are none.
    """
    root, found = _files(spec, key, quiet)
    if not found:
        raise UserError(f"no images in '{spec}': give {KINDS}, with {key}=...")
    return root, list(dict.fromkeys(found))


def _files(spec: str, key: str, quiet: bool) -> tuple[Path, list[Path]]:
    path = expanded(spec)
    if path.is_dir():
        return path, [Path(sample.path) for sample in read_unlabelled(path, quiet=quiet)]
    if path.is_file():
        return (path.parent, [path]) if path.suffix.lower() != ".txt" else _common(_in_list(path, key))
    if spec.startswith("[") and spec.endswith("]"):
        return _common([file for part in elements(spec[1:-1]) if part for file in _files(part, key, quiet)[1]])
    if glob.has_magic(spec):
        matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))  # noqa: PTH207 (absolute patterns too)
        return _common([match for match in matches if match.suffix.lower() in IMAGE_SUFFIXES and match.is_file()])
    raise UserError(f"{key}={spec}: no such file or folder: give {KINDS}")


def _in_list(path: Path, key: str) -> list[Path]:
    """The files that a list names, relative to the working directory or to the list's own folder."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # Windows begins files with a mark
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{key}={path}: no list of paths ({error}): give one path in each line, as UTF-8") from error
    named = [expanded(line.strip()) for line in lines if line.strip() and not line.startswith("#")]
    return [file if file.exists() or not (path.parent / file).exists() else path.parent / file for file in named]


def _common(files: Sequence[Path]) -> tuple[Path, list[Path]]:
    """Files with the folder that all lie in."""
    if not files:
        return Path(), []
    try:
        return Path(os.path.commonpath([file.parent.absolute() for file in files])), list(files)
    except ValueError:  # on several drives
        return Path(files[0].anchor), list(files)


def readable(files: Sequence[Path], max_value: float | None = None) -> tuple[list[Path], list[tuple[Path, str]]]:
    """Decodes every file once, in threads.

    Args:
        files: Image files.
        max_value: Value of white in files of more than 8 bits; None: guessed for each file.

    Returns:
        Those that can be read, and the others each with the reason.
    """
    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
        reasons = list(pool.map(partial(_reason, max_value=max_value), files))
    good = [file for file, reason in zip(files, reasons, strict=True) if not reason]
    return good, [(file, reason) for file, reason in zip(files, reasons, strict=True) if reason]


def _reason(file: Path, max_value: float | None) -> str:
    """Why a file cannot be read; empty where it can."""
    try:
        open_image(str(file), max_value)
    except ReadError as error:
        return str(error)
    return ""


def own_images(
    spec: str,
    category: str,
    *,
    label: int | None = None,
    key: str = "images",
    max_value: float | None = None,
    once: bool = False,
) -> FileSource:
    """The image files that a user means as a data set without masks.

    Args:
        spec: See `image_files`.
        category: What they show, for the text prompts.
        label: 0 for good parts, 1 for defective ones, None for unknown ones.
        key: Under which name the user gave them, for messages.
        max_value: Value of white in files of more than 8 bits; None: guessed from the files.
        once: Whether files of the same content count once.

    Raises:
        UserError: There are none.
    """
    if label == 0:
        _check_good(expanded(spec), key)
    root, files = image_files(spec, key=key)
    return source_of(root, _once(files, spec) if once else files, category, label=label, max_value=max_value)


def _check_good(root: Path, key: str) -> None:
    """Raises a `UserError` where a folder of good parts holds a folder of them and others, which may be defective."""
    for inside in (root, child(root, "train")):
        good = None if inside is None else child(inside, *NORMAL)
        others = [folder.name for folder in folders(root) if folder not in (good, inside) and images(folder, deep=True)]
        others = [name for name in others if not is_mask_folder(root / name)]
        if good is not None and others:
            raise UserError(
                f"{key}={root}: holds {', '.join(others[:3])} beside '{good}', whose images would count as good:"
                f" give {key}={good}"
            )


def source_of(
    root: Path, files: Sequence[Path], category: str, *, label: int | None = None, max_value: float | None = None
) -> FileSource:
    """Image files as a data set without masks; see `own_images`."""
    return FileSource(
        name=root.resolve().name or str(root),
        root=root,
        reader=partial(_samples, files=files, category=category, label=label),
        layout="image files, in sub-folders or not",
        max_value=max_value,
    )


def _samples(
    _: Path, *, files: Sequence[Path] = (), category: str = "object", label: int | None = None
) -> list[Sample]:
    kind, defect = ("none", "") if label is None else ("image", "defect" if label else "good")
    return [Sample(str(file), category, label, defect=defect, kind=kind) for file in files]  # type: ignore[arg-type]


def _once(files: Sequence[Path], spec: str) -> list[Path]:
    """Files without those whose content is that of an earlier one."""
    first: dict[bytes, Path] = {}
    for file in files:
        first.setdefault(hashlib.blake2b(read_bytes(str(file)), digest_size=16).digest(), file)
    if len(first) < len(files):
        log.warning(
            "'%s': %d of %d files are copies of others and count once", spec, len(files) - len(first), len(files)
        )
    return list(first.values())
