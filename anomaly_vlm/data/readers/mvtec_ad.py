"""The layout of MVTec AD and of everything shaped like it."""

from __future__ import annotations

from pathlib import Path

from anomaly_vlm.data.readers.listing import child, folders, images, is_mask_folder
from anomaly_vlm.data.readers.mask_files import Masks, check_pairs
from anomaly_vlm.data.types import LabelKind, Sample


def read_mvtec_ad(
    root: Path, *, normal: str = "good", masks: str | None = "ground_truth", test: str = "test"
) -> list[Sample]:
    """`CAT/{train,validation,TEST}/{NORMAL,DEFECT}/*`, masks in `CAT/MASKS/DEFECT/` (a file, or a folder of several).

    Serves MVTec AD, MVTec LOCO AD, MVTec AD 2, MPDD, BTAD, DTD-Synthetic, the converted KSDD and medical sets, and VisA's
    second layout. `root` may also be the folder of a single category.

    Args:
        root: Folder of the set.
        normal: Folder of the normal images (BTAD: `ok`).
        masks: Folder of the masks inside the category; None: the set has image labels only.
        test: Folder of the test split.
    """
    categories = [root] if child(root, test) else folders(root)
    return [sample for folder in categories for sample in read_category(folder, normal=normal, masks=masks, test=test)]


def read_category(folder: Path, *, normal: str, masks: str | None, test: str) -> list[Sample]:
    """The samples of one category; its word is the folder's name."""
    kind: LabelKind = "image" if masks is None else "mask"
    category = folder.name or folder.resolve().name
    samples: list[Sample] = []
    truth = None if masks is None else child(folder, masks) or folder / masks
    for split, place in split_folders(folder, test).items():
        for defect in folders(place):
            if is_mask_folder(defect):  # MVTec AD 2 keeps its masks inside the test folder
                continue
            is_normal = defect.name.lower() == normal.lower()
            regions = None if truth is None or is_normal else child(truth, defect.name) or truth / defect.name
            places: dict[Path, Masks] = {}
            for path in images(defect, deep=True):
                if regions is not None and path.parent not in places:
                    places[path.parent] = _masks_of(regions, path.parent.relative_to(defect))
                samples.append(
                    Sample(
                        path=str(path),
                        category=category,
                        label=0 if is_normal else 1,
                        masks=places[path.parent].of(path) if places else (),
                        defect="good" if is_normal else defect.name,
                        split=split,
                        kind=kind,
                    )
                )
    if truth is not None and truth.is_dir():
        check_pairs(samples, [truth])
    return samples


def split_folders(folder: Path, test: str = "test") -> dict[str, Path]:
    """Split -> its folder, of those that a category has."""
    names = {"train": ("train",), "val": ("validation", "valid", "val"), "test": (test,)}
    places = {split: child(folder, *wanted) or folder / wanted[0] for split, wanted in names.items()}
    return {split: place for split, place in places.items() if place.is_dir()}


def _masks_of(regions: Path, inside: Path) -> Masks:
    """The masks of images in a sub-folder of a defect's folder, which may lie in a sub-folder of the same name."""
    return Masks(regions / inside if (regions / inside).is_dir() else regions)
