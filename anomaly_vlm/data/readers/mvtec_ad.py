"""The layout of MVTec AD and of everything shaped like it."""

from __future__ import annotations

from pathlib import Path

from anomaly_vlm.data.readers.listing import Masks, child, folders, images
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
    samples = []
    for split, place in (("train", "train"), ("val", "validation"), ("test", test)):
        for defect in folders(child(folder, place) or folder / place):
            if defect.name == "ground_truth":  # MVTec AD 2 keeps its masks inside the test folder
                continue
            is_normal = defect.name.lower() == normal.lower()
            found = Masks(folder / masks / defect.name) if masks is not None and not is_normal else None
            for path in images(defect):
                samples.append(
                    Sample(
                        path=str(path),
                        category=category,
                        label=0 if is_normal else 1,
                        masks=found.of(path) if found else (),
                        defect="good" if is_normal else defect.name,
                        split=split,
                        kind=kind,
                    )
                )
    return samples
