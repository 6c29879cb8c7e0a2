"""The user's own images: sorted into folders, or in one heap."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from anomaly_vlm.data.readers.listing import (
    Masks,
    check_pairs,
    child,
    folders,
    images,
    is_mask_folder,
    mask_folder,
    without_mask_words,
)
from anomaly_vlm.data.readers.mvtec_ad import read_category
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
    """`NORMAL/` and one folder a defect; `[CAT/]{train,test}/{NORMAL,DEFECT}`; or flat images without labels.

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
    if child(root, "test"):
        return _category(root, normal)
    if any(child(folder, "test") for folder in folders(root)):
        return [sample for folder in folders(root) for sample in _category(folder, normal)]
    classes = [folder for folder in folders(root) if not is_mask_folder(folder) and images(folder, deep=True)]
    if not classes:
        return [_unlabelled(path, category) for path in images(root)]
    classes = _sorted_ones(root, classes, normal, defects)
    if not any(folder.name.lower() == normal.lower() for folder in classes):
        names = ", ".join(folder.name for folder in classes[:5])
        raise UserError(
            f"folder '{root}' has no '{normal}' for the normal images (found {names}): put them into {normal}/, or name"
            " their folder with the option reader.normal"
        )
    samples = [sample for folder in classes for sample in _class(root, folder, normal, category)]
    places = [place for folder in (root, *classes) if (place := mask_folder(folder)) is not None]
    check_pairs(samples, places)
    without = [sample for sample in samples if sample.label and not sample.masks]
    if not any(sample.masks for sample in samples):
        return [dataclasses.replace(sample, kind="image") for sample in samples]
    if not without:
        return samples
    if missing_masks == "error":
        path = Path(without[0].path)
        try:
            _masks_of(root, _class_folder(root, path), path).of(path)
        except UserError as error:
            raise UserError(f"{error}, or set reader.missing_masks=ignore on the data set") from None
    log.warning(
        "'%s': %d anomalous images have no mask ('%s'): only their labels count", root, len(without), without[0].path
    )
    return [dataclasses.replace(one, kind="image") if one.label and not one.masks else one for one in samples]


def _sorted_ones(root: Path, classes: Sequence[Path], normal: str, defects: Sequence[str] | None) -> list[Path]:
    """The normal folder and those of defects; others are named, so that nothing is taken for a defect silently.

    Raises:
        UserError: A folder of defects is not there.
    """
    if defects is not None:
        for name in defects:
            if name not in [folder.name for folder in classes]:
                raise unknown_choice(f"folder of '{root}' in reader.defects", name, [folder.name for folder in classes])
        kept = [folder for folder in classes if folder.name in defects or folder.name.lower() == normal.lower()]
    else:
        kept = [
            folder for folder in classes if folder.name.lower() not in UNSORTED or folder.name.lower() == normal.lower()
        ]
    if left_out := [folder.name for folder in classes if folder not in kept]:
        log.warning(
            "'%s': left out, as they are no defects: %s; reader.defects=[...] on the data set says which folders are",
            root, ", ".join(left_out),
        )  # fmt: skip
    return kept


def read_unlabelled(root: Path, *, category: str = "object") -> list[Sample]:
    """All images below `root`, without labels, for prediction; folders of masks are left out, and named."""
    if root.is_dir() and (left_out := [folder.name for folder in folders(root) if is_mask_folder(folder)]):
        log.warning("'%s': folders of masks are not scored: %s", root, ", ".join(left_out))
    return [_unlabelled(path, category) for path in images(root, deep=True)]


def _unlabelled(path: Path, category: str) -> Sample:
    return Sample(path=str(path), category=category, label=None, defect="", kind="none")


def _category(folder: Path, normal: str) -> list[Sample]:
    masks = mask_folder(folder)
    return read_category(folder, normal=normal, masks=None if masks is None else masks.name, test="test")


def _class_folder(root: Path, image: Path) -> Path:
    return root / image.relative_to(root).parts[0]


def _masks_of(root: Path, folder: Path, image: Path) -> Masks:
    """Where the mask of an image lies: in a folder of masks that has the same sub-folders, or beside the image."""
    inside = image.parent.relative_to(folder)
    common, own = mask_folder(root), mask_folder(folder)
    place = own if common is None else child(common, folder.name) or common
    if place is None:
        return Masks(image.parent)
    return Masks(place / inside if (place / inside).is_dir() else place)


def _class(root: Path, folder: Path, normal: str, category: str) -> list[Sample]:
    label = 0 if folder.name.lower() == normal.lower() else 1
    found = images(folder, deep=True)
    beside = mask_folder(root) is None and mask_folder(folder) is None
    if beside:  # masks beside their images are no images themselves
        stems = {(path.parent, path.stem) for path in found}
        found = [
            path
            for path in found
            if (name := without_mask_words(path.stem)) == path.stem or (path.parent, name) not in stems
        ]
    places: dict[Path, Masks] = {}
    samples = []
    for path in found:
        if path.parent not in places:
            places[path.parent] = _masks_of(root, folder, path)
        masks = places[path.parent]
        samples.append(
            Sample(
                path=str(path),
                category=category,
                label=label,
                masks=masks.of(path) if label and masks.has(path) else (),
                defect=folder.name if label else "good",
            )
        )
    return samples
