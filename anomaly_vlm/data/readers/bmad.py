"""Sets that come in splits of normal and anomalous images: BMAD's six medical sets, and VAD."""

from __future__ import annotations

from pathlib import Path

from anomaly_vlm.data.readers.listing import child, folders, images
from anomaly_vlm.data.readers.mask_files import Masks
from anomaly_vlm.data.types import Sample

SPLITS = (("train", ("train",)), ("val", ("valid", "validation", "val")), ("test", ("test",)))


def read_bmad(root: Path) -> list[Sample]:
    """`SET/{train,valid,test}/{good,Ungood}`; where a set has masks, the images are in `img/` and the masks in `label/`.

    The category of a set is the first word of its folder's name (`Brain_AD`: `Brain`). `root` may also be one set.
    """
    sets = [root] if child(root, "test") else folders(root)
    return [
        sample
        for folder in sets
        for sample in read_splits(folder, category=folder.resolve().name.partition("_")[0], anomalous="Ungood")
    ]


def read_splits(root: Path, *, category: str, anomalous: str = "bad", normal: str = "good") -> list[Sample]:
    """`{train,valid,test}/{NORMAL,ANOMALOUS}/[img/]*`, with `label/` beside `img/` where there are masks.

    Args:
        root: Folder of the set, or one that holds it alone.
        category: Word of the set.
        anomalous: Folder of the anomalous images of a split, in any case.
        normal: Folder of the normal images of a split, in any case.
    """
    if not child(root, "test") and len(inside := folders(root)) == 1:
        root = inside[0]
    samples = []
    bad = [folder for place in folders(root) if (folder := child(place, anomalous)) is not None]
    with_masks = any(child(folder, "label") for folder in bad)
    for split, names in SPLITS:
        place = child(root, *names)
        if place is None:
            continue
        for label, name in enumerate((normal, anomalous)):
            folder = child(place, name)
            if folder is None:
                continue
            truth = child(folder, "label")
            masks = Masks(truth) if label and truth is not None else None
            samples += [
                Sample(
                    path=str(path),
                    category=category,
                    label=label,
                    masks=() if masks is None else masks.of(path),
                    defect=folder.name.lower() if label else "good",
                    split=split,
                    kind="mask" if with_masks else "image",
                )
                for path in images(child(folder, "img") or folder)
            ]
    return samples
