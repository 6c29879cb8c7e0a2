"""Fake data sets: trees of tiny images."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

SIDE = 8
FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".bmp": "BMP", ".tif": "TIFF", ".webp": "WEBP"}


def picture(path: Path, *, size: tuple[int, int] = (SIDE, SIDE), mode: str = "RGB", value: int = 90) -> Path:
    """An image file of one colour; size is (width, height). The content is PNG unless the suffix says otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("L", size, value).convert(mode)
    with path.open("wb") as file:
        image.save(file, FORMATS.get(path.suffix.lower(), "PNG"))
    return path


def mask(path: Path, *, size: tuple[int, int] = (SIDE, SIDE), box: tuple[int, int, int, int] | None = (0, 0, 4, 4),
         value: int = 255) -> Path:  # fmt: skip
    """A mask file with `value` inside `box` (left, top, right, bottom) and 0 elsewhere."""
    pixels = np.zeros(size[::-1], np.uint8)
    if box is not None:
        pixels[box[1] : box[3], box[0] : box[2]] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def mvtec_category(
    folder: Path, *, normal: str = "good", defect: str = "crack", mask_name: str = "{}_mask.png"
) -> Path:
    """One category: two normal training images, two normal and two anomalous test images with masks, and a stray file."""
    for i in range(2):
        picture(folder / "train" / normal / f"{i:03d}.png")
        picture(folder / "test" / normal / f"{i:03d}.png")
        picture(folder / "test" / defect / f"{i:03d}.png")
        mask(folder / "ground_truth" / defect / mask_name.format(f"{i:03d}"))
    (folder / "test" / defect / "Thumbs.db").write_bytes(b"stray")
    (folder / "test" / defect / ".DS_Store").write_bytes(b"stray")
    return folder


def visa_download(root: Path, *, categories: Iterable[str] = ("pcb1",)) -> Path:
    """The downloaded layout, with one normal and one anomalous image a category in either split of 1cls."""
    rows = ["object,split,label,image,mask"]
    for name in categories:
        for i, split in enumerate(("train", "test")):
            image = picture(root / name / "Data" / "Images" / "Normal" / f"000{i}.JPG")
            rows.append(f"{name},{split},normal,{image.relative_to(root).as_posix()},")
        image = picture(root / name / "Data" / "Images" / "Anomaly" / "000.JPG")
        region = mask(root / name / "Data" / "Masks" / "Anomaly" / "000.png", value=2)
        rows.append(f"{name},test,anomaly,{image.relative_to(root).as_posix()},{region.relative_to(root).as_posix()}")
    (root / "split_csv").mkdir(parents=True)
    (root / "split_csv" / "1cls.csv").write_text("\n".join(rows) + "\n")
    return root


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def labels(path: Path, rows: list[list[int]]) -> Path:
    """A label file of these values, each a square of 4 x 4 pixels (2 x 2 of them fill a picture)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.kron(np.array(rows), np.ones((4, 4))).astype(np.uint8)).save(path)
    return path


def road_tree(name: str, root: Path) -> Path:
    """One or two frames of a road set in its published layout; labels known, anomalous, and (where the set has it) void."""
    if name == "cityscapes":
        for split in ("train", "val"):
            picture(root / f"leftImg8bit/{split}/ulm/ulm_000000_000019_leftImg8bit.png")
            labels(root / f"gtFine/{split}/ulm/ulm_000000_000019_gtFine_labelIds.png", [[7, 26], [0, 33]])
    elif name == "fishyscapes_laf":
        picture(root / "leftImg8bit/test/04_Maurener/04_Maurener_000000_000010_leftImg8bit.png")
        labels(root / "fishyscapes_lostandfound/0003_04_Maurener_000000_000010_labels.png", [[0, 1], [255, 0]])
    elif name == "fishyscapes_static":
        for version, void in ((1, 0), (2, 255)):
            picture(root / f"fs_static_images_v{version}/0001_dog_rgb.png")
            labels(root / f"fs_val_v{version}/0001_dog_labels.png", [[0, 1], [void, 0]])
    elif name == "road_anomaly":
        for i, stem in enumerate(("animals01", "sheep2")):
            picture(root / f"frames/{stem}.jpg", size=(SIDE + 8 * i, SIDE))
            rows = [[0, 2], [0, 1]] if i == 0 else [[0, 2, 0, 0], [0, 0, 0, 0]]
            labels(root / f"frames/{stem}.labels/labels_semantic.png", rows)
        write_json(root / "frame_list.json", ["sheep2.jpg", "animals01.jpg"])
    elif name in ("road_anomaly21", "road_obstacle21"):
        anomaly = name == "road_anomaly21"
        base = root / ("dataset_AnomalyTrack" if anomaly else "dataset_ObstacleTrack")
        stems = ["validation0001"] if anomaly else ["validation_1", "validation_19", "validation_21"]
        for stem in [*stems, "test0001"]:
            picture(base / f"images/{stem}.{'jpg' if anomaly else 'webp'}")
        for stem in stems:
            labels(base / f"labels_masks/{stem}_labels_semantic.png", [[0, 1], [255, 0]])
    elif name == "lost_and_found":
        for scene in ("04_Maurener_Weg_8", "15_Rechbergstr_Deckenpfronn"):
            picture(root / f"leftImg8bit/test/{scene}/{scene}_000000_000010_leftImg8bit.png")
            labels(root / f"gtCoarse/test/{scene}/{scene}_000000_000010_gtCoarse_labelIds.png", [[0, 1], [7, 1]])
            labels(root / f"gtCoarse/test/{scene}/{scene}_000000_000010_gtCoarse_trainIds.png", [[255, 1], [2, 1]])
    return root


def kaputt(root: Path, *, prefix: str = "") -> Path:
    """A normal item, one with minor and one with major damage, in the layout of the set; `prefix` is where its files lie."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = []
    for i, (kinds, major) in enumerate((("", False), ("spillage", False), ("deformation,penetration", True))):
        path = f"data/test/query-data/crop/{i}.jpg"
        picture(root / prefix / path)
        rows.append(
            {
                "capture_id": str(i),
                "defect": bool(kinds),
                "major_defect": major,
                "defect_types": kinds,
                "item_material": ("cardboard", "paper", "paper")[i],
                "query_crop": path,
                "query_mask": f"data/test/query-data/mask/{i}.png",
            }
        )
    (root / "datasets").mkdir()
    parquet.write_table(pyarrow.Table.from_pylist(rows), root / "datasets/query-test.parquet")
    return root
