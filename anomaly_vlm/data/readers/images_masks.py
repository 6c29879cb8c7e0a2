"""Medical segmentation sets, anomalous images only: ColonDB, ClinicDB, Kvasir, EndoTect, ISIC, TN3K."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from anomaly_vlm.data.readers.listing import child, images
from anomaly_vlm.data.readers.mask_files import Masks
from anomaly_vlm.data.readers.mvtec_ad import read_mvtec_ad
from anomaly_vlm.data.types import Sample


def read_images_masks(root: Path, *, category: str, folders: Sequence[Sequence[str]], inside: str = "") -> list[Sample]:
    """`IMAGES/X.*` with `MASKS/X.*`, `MASKS/X_Segmentation.*` or the like; every image is anomalous.

    AdaCLIP's copies, `WORD/{train,test}/{good,DEFECT}` with `WORD/ground_truth/DEFECT`, are read too.

    Args:
        root: Folder of the set.
        category: Word of the set.
        folders: Pairs of the names of the image folder and the mask folder, tried in order, in any case.
        inside: A sub-folder in which they may lie.
    """
    for base in (root, root / inside):
        for image_name, mask_name in folders:
            place, truth = child(base, image_name), child(base, mask_name)
            if place is None or truth is None:
                continue
            masks = Masks(truth)
            return [
                Sample(path=str(path), category=category, label=1, masks=masks.of(path), defect="anomaly")
                for path in images(place)
            ]
    return read_mvtec_ad(root)
