"""Magnetic tile defects (Huang, Qiu, Yuan, "Surface defect saliency of magnetic tile", 2018)."""

from __future__ import annotations

from pathlib import Path

from anomaly_vlm.data.readers.listing import child, folders, images
from anomaly_vlm.data.readers.mask_files import Masks
from anomaly_vlm.data.types import Sample


def read_magnetic_tile(root: Path, *, category: str = "magnetic tile") -> list[Sample]:
    """`MT_TYPE/Imgs/NAME.jpg` with its mask `NAME.png` beside it; TYPE is Free (normal) or the defect.

    The label is the folder's: four `MT_Uneven` masks are empty, their images stay anomalous with a zero mask.
    """
    samples = []
    for folder in folders(root):
        if not folder.name.lower().startswith("mt_"):
            continue
        defect = folder.name[3:].lower()
        label = 0 if defect == "free" else 1
        place = child(folder, "Imgs") or folder
        masks = Masks(place)
        for path in images(place, (".jpg", ".jpeg")):
            samples.append(
                Sample(
                    path=str(path),
                    category=category,
                    label=label,
                    masks=masks.of(path) if label else (),
                    defect=defect if label else "good",
                )
            )
    return samples
