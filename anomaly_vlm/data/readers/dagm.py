"""DAGM 2007: ten artificial textures; masks are coarse ellipses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from anomaly_vlm.data.readers.listing import MASK_ENDINGS, child, folders, images
from anomaly_vlm.data.readers.mask_files import Masks
from anomaly_vlm.data.readers.mvtec_ad import read_mvtec_ad
from anomaly_vlm.data.types import Sample
from anomaly_vlm.errors import unknown_choice

PROTOCOLS = ("test_folder", "balanced")


def read_dagm(root: Path, *, protocol: str = "test_folder") -> list[Sample]:
    """`ClassN/{Train,Test}/NNNN.PNG` with `Label/NNNN_label.PNG` inside for the defective ones (`Labels.txt` names them).

    The converted layout, `ClassN/{train,test}/{good,DEFECT}` with `ClassN/ground_truth/DEFECT`, is read as it is.

    Args:
        root: Folder of the set.
        protocol: `test_folder`: the set's own folders (AnomalyCLIP). `balanced`: of each folder all defective and
            equally many normal images are test, the other normal ones train (AdaCLIP, whose own choice follows the
            order of the file system; here the first by name).

    Raises:
        UserError: Unknown protocol; a defective image without mask.
    """
    if protocol not in PROTOCOLS:
        raise unknown_choice("protocol", str(protocol), PROTOCOLS)
    classes = [folder for folder in folders(root) if images(child(folder, "Test"))]
    if not classes:
        return read_mvtec_ad(root)
    return [
        sample
        for folder in classes
        for split in ("train", "test")
        if (place := child(folder, split)) is not None
        for sample in _read_split(place, folder.name, split, protocol)
    ]


def _read_split(place: Path, category: str, split: str, protocol: str) -> list[Sample]:
    labels = child(place, "Label") or place / "Label"
    masks, defective = Masks(labels), _defective(labels)
    found = images(place)
    anomalous = [path for path in found if path.stem in defective or masks.has(path)]
    normal = [path for path in found if path not in set(anomalous)]
    samples = [
        Sample(path=str(path), category=category, label=1, masks=masks.of(path), defect="anomaly", split=split)
        for path in anomalous
    ]
    samples += [Sample(path=str(path), category=category, label=0, split=split) for path in normal]
    if protocol == "test_folder":
        return samples
    return [
        replace(sample, split="test" if k < 2 * len(anomalous) else "train")
        for k, sample in enumerate(samples)  # the anomalous ones come first
    ]


def _defective(labels: Path) -> set[str]:
    """Stems of the images for which `Labels.txt` names a mask, so that a lost mask does not turn an image normal."""
    table = next((path for path in sorted(labels.glob("*.[tT][xX][tT]")) if path.stem.lower() == "labels"), None)
    words = table.read_text(encoding="utf-8", errors="replace").split() if table else []
    stems = (Path(word).stem for word in words)
    return {stem.removesuffix("_label") for stem in stems if stem.endswith(MASK_ENDINGS)}
