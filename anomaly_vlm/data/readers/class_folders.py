"""Sets whose labels are their folders, without masks: BrainMRI, Br35H, COVID-19."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from anomaly_vlm.data.readers.listing import child, images
from anomaly_vlm.data.readers.mvtec_ad import read_mvtec_ad
from anomaly_vlm.data.types import Sample


def read_class_folders(root: Path, *, category: str, normal: Sequence[str], anomalous: Sequence[str]) -> list[Sample]:
    """`{NORMAL,ANOMALOUS}/*` or `{NORMAL,ANOMALOUS}/images/*`; every other folder is left out. Names count in any case.

    Left out are Br35H's unlabelled `pred` and COVID-19's other diseases; `masks` of COVID-19 are lungs, not lesions. The
    converted layout `CAT/{train,test}/{good,...}` is read too.

    Args:
        root: Folder of the set.
        category: Word of the set.
        normal: Names of the folders with normal images.
        anomalous: Names of the folders with anomalous images.
    """
    samples = []
    for label, names in enumerate((normal, anomalous)):
        for name in names:
            folder = child(root, name)
            if folder is None:
                continue
            for path in images(child(folder, "images") or folder):
                defect = folder.name.lower() if label else "good"
                samples.append(Sample(path=str(path), category=category, label=label, defect=defect, kind="image"))
    return samples or read_mvtec_ad(root, masks=None)
