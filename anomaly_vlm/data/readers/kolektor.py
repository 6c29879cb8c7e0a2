"""KolektorSDD (electrical commutators, in thirds) and KolektorSDD2, both of ViCoS, University of Ljubljana."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from anomaly_vlm.data.images import as_rgb, mask_size_error, open_image
from anomaly_vlm.data.masks import open_mask
from anomaly_vlm.data.readers.listing import child, folders, images
from anomaly_vlm.data.readers.mask_files import Masks
from anomaly_vlm.data.readers.mvtec_ad import read_mvtec_ad
from anomaly_vlm.data.types import Drawn, Sample

SPLIT_SEED, TEST_SHARE = 42, 0.25


@dataclass(frozen=True)
class Third:
    """One of the three stacked thirds of an image file and its mask file; `max_value` is as in `Sample`."""

    image: str
    mask: str
    part: int
    max_value: float | None = None

    @property
    def files(self) -> tuple[str, tuple[str, ...]]:
        """Image and masks, for the check of files."""
        return self.image, (self.mask,)

    def draw(self) -> Drawn:
        """Cuts the third out of the image and its mask."""
        image = as_rgb(open_image(self.image, self.max_value))
        mask = open_mask(self.mask, 0)
        if mask.shape != (image.height, image.width):
            raise mask_size_error(self.mask, (mask.shape[1], mask.shape[0]), image.size)
        rows = third(image.height, self.part)
        return Drawn(np.asarray(image)[rows], mask[rows], f"third {self.part + 1} of 3")


def third(height: int, part: int) -> slice:
    """Rows of a third; cuts at `H // 3` and `2 H // 3`."""
    cuts = (0, height // 3, 2 * height // 3, height)
    return slice(cuts[part], cuts[part + 1])


def read_ksdd(root: Path, *, category: str = "SDD") -> list[Sample]:
    """`kosNN/PartN.jpg` with `PartN_label.bmp` beside it, cut into thirds as the zero-shot papers do.

    Their converted layout `CAT/{train/good,test/{good,DEFECT},ground_truth/DEFECT}` is read too.

    A third is anomalous where its mask is. Test: all anomalous thirds and a quarter of the normal ones, drawn as the papers'
    script draws (scikit-learn, `random_state=42`), but from a sorted list; the papers' own draw follows the file system.
    """
    items = [folder for folder in folders(root) if folder.name.lower().startswith("kos")]
    if not items:
        return read_mvtec_ad(root)
    found = []
    for folder in items:
        masks = Masks(folder)
        photographs = [path for path in images(folder) if not path.stem.endswith("_label")]
        found += [(path, masks.of(path)[0]) for path in photographs]
    with ThreadPoolExecutor() as pool:
        thirds = [row for rows in pool.map(lambda pair: _thirds(pair[0], pair[1], category), found) for row in rows]
    normal = [sample for sample in thirds if not sample.label]
    return [sample for sample in thirds if sample.label] + _split_normal(normal)


def _thirds(image: Path, mask: str, category: str) -> list[Sample]:
    values = open_mask(mask, 0)
    samples = []
    for part in range(3):
        label = int(values[third(len(values), part)].any())
        samples.append(
            Sample(
                path=f"{image}#{part + 1}",
                category=category,
                label=label,
                defect="defect" if label else "good",
                drawing=Third(str(image), mask, part),
            )
        )
    return samples


def _split_normal(samples: list[Sample]) -> list[Sample]:
    if len(samples) < 2:
        return samples
    from sklearn.model_selection import train_test_split

    train: list[Sample]
    test: list[Sample]
    train, test = train_test_split(samples, test_size=TEST_SHARE, random_state=SPLIT_SEED)
    return [replace(sample, split="train") for sample in train] + test


def read_ksdd2(root: Path, *, category: str = "ksdd2") -> list[Sample]:
    """`{train,test}/NNNNN.png` with the mask `NNNNN_GT.png` beside it; anomalous where the mask is (any value above 0)."""
    rows = []
    for split in ("train", "test"):
        place = child(root, split)
        if place is None:
            continue
        masks = Masks(place)
        rows += [(path, masks.of(path), split) for path in images(place) if not path.stem.endswith("_GT")]
    with ThreadPoolExecutor() as pool:
        labels = pool.map(lambda row: int(open_mask(row[1][0], 0).any()), rows)
        return [
            Sample(
                path=str(path),
                category=category,
                label=label,
                masks=masks_of if label else (),
                defect="defect" if label else "good",
                split=split,
            )
            for (path, masks_of, split), label in zip(rows, labels, strict=True)
        ]
