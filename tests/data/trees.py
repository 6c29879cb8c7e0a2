"""Fake data sets: trees of tiny images."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIDE = 8


def picture(path: Path, *, size: tuple[int, int] = (SIDE, SIDE), mode: str = "RGB", value: int = 90) -> Path:
    """An image file of one colour; size is (width, height). The content is PNG unless the suffix says otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("L", size, value).convert(mode)
    with path.open("wb") as file:
        image.save(
            file, {".jpg": "JPEG", ".jpeg": "JPEG", ".bmp": "BMP", ".tif": "TIFF"}.get(path.suffix.lower(), "PNG")
        )
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
