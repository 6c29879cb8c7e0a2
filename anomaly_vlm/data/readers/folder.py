"""The user's own images: sorted into folders, or in one heap."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from anomaly_vlm.data.readers.listing import IMAGE_SUFFIXES, MASK_ENDINGS, Masks, child, folders, images
from anomaly_vlm.data.readers.mvtec_ad import read_category
from anomaly_vlm.data.types import Sample
from anomaly_vlm.errors import UserError

MASK_FOLDER = "ground_truth"


def read_folder(root: Path, *, normal: str = "good", category: str = "object") -> list[Sample]:
    """`NORMAL/` and one folder a defect; `[CAT/]{train,test}/{NORMAL,DEFECT}`; or flat images without labels.

    Masks are optional: in `ground_truth/DEFECT/` (or flat in `ground_truth/`), named like their image or `NAME_mask.png`;
    or beside the image as `NAME_mask.png`. Where one anomalous image has a mask, all must.

    Args:
        root: Folder of the set.
        normal: Folder of the normal images, in any case.
        category: Word for the text prompts, where the folders do not name categories.

    Raises:
        UserError: folders without a normal one, or a missing mask.
    """
    if child(root, "test"):
        return _category(root, normal)
    if any(child(folder, "test") for folder in folders(root)):
        return [sample for folder in folders(root) for sample in _category(folder, normal)]
    classes = [folder for folder in folders(root) if folder.name != MASK_FOLDER and images(folder)]
    if not classes:
        return [_unlabelled(path, category) for path in images(root)]
    if not any(folder.name.lower() == normal.lower() for folder in classes):
        names = ", ".join(folder.name for folder in classes[:5])
        raise UserError(
            f"folder '{root}' has no '{normal}' for the normal images (found {names}): put them into {normal}/, or name"
            " their folder with the option reader.normal"
        )
    samples = [sample for folder in classes for sample in _class(root, folder, normal, category)]
    if any(sample.masks for sample in samples):
        for sample in samples:
            if sample.label and not sample.masks:
                place = Path(sample.path).parent
                (_mask_place(root, place) or Masks(place)).of(Path(sample.path))
        return samples
    return [dataclasses.replace(sample, kind="image") for sample in samples]


def read_unlabelled(root: Path, *, category: str = "object") -> list[Sample]:
    """All images below `root`, without labels, for prediction."""
    found = [
        path
        for path in root.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
        and path.is_file()
    ]
    return [_unlabelled(path, category) for path in sorted(found, key=lambda p: p.relative_to(root).parts)]


def _unlabelled(path: Path, category: str) -> Sample:
    return Sample(path=str(path), category=category, label=None, defect="", kind="none")


def _category(folder: Path, normal: str) -> list[Sample]:
    masks = MASK_FOLDER if (folder / MASK_FOLDER).is_dir() else None
    return read_category(folder, normal=normal, masks=masks, test="test")


def _mask_place(root: Path, folder: Path) -> Masks | None:
    place = child(root, MASK_FOLDER)
    return None if place is None else Masks(child(place, folder.name) or place)


def _class(root: Path, folder: Path, normal: str, category: str) -> list[Sample]:
    label = 0 if folder.name.lower() == normal.lower() else 1
    separate = _mask_place(root, folder)
    found = images(folder)
    stems = {path.stem for path in found}
    if separate is None:  # masks beside their images are no images themselves
        found = [
            p for p in found if not any(p.stem.endswith(e) and p.stem.removesuffix(e) in stems for e in MASK_ENDINGS)
        ]
    masks = separate or Masks(folder)
    return [
        Sample(
            path=str(path),
            category=category,
            label=label,
            masks=masks.of(path) if label and masks.has(path) else (),
            defect=folder.name if label else "good",
        )
        for path in found
    ]
