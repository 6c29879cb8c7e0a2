"""Real-IAD (Wang et al., CVPR 2024): 30 categories, five views a part."""

from __future__ import annotations

from pathlib import Path

from anomaly_vlm.data.readers.listing import child
from anomaly_vlm.data.types import Sample
from anomaly_vlm.errors import UserError
from anomaly_vlm.files import read_json


def read_real_iad(root: Path, *, resolution: int = 1024, lists: str = "realiad_jsons") -> list[Sample]:
    """`realiad_{RESOLUTION}/CAT/...` as listed in `realiad_jsons/LISTS/CAT.json` (or `realiad_jsons/CAT.json`).

    Args:
        root: Folder of the set.
        resolution: Resolution of the images: 256, 512 or 1024.
        lists: Which folder of lists.

    Raises:
        UserError: A damaged list, or an anomalous image without mask in it.
    """
    pictures, tables = child(root, f"realiad_{resolution}"), child(root, "realiad_jsons")
    if pictures is None or tables is None:
        return []
    place = child(tables, lists) or tables
    samples: list[Sample] = []
    for table in sorted(place.glob("*.json")):
        content = read_json(table, what="list of Real-IAD", way="take the original file")
        try:
            for split in ("train", "test"):
                samples += [_sample(pictures, table.stem, split, entry) for entry in content[split]]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"'{table}' is no list of Real-IAD ({type(error).__name__}: {error}): expected train and test with"
                " image_path, mask_path, anomaly_class; take the original file"
            ) from error
    return samples


def _sample(pictures: Path, category: str, split: str, entry: dict[str, str | None]) -> Sample:
    image = pictures / category / str(entry["image_path"])
    label = int(entry["anomaly_class"] != "OK")
    if label and not entry["mask_path"]:
        raise UserError(f"anomalous image '{image}' has no mask_path in the list of {category}: take the original list")
    return Sample(
        path=str(image),
        category=category,
        label=label,
        masks=(str(pictures / category / str(entry["mask_path"])),) if label else (),
        defect=str(entry["anomaly_class"]) if label else "good",
        split=split,
    )
