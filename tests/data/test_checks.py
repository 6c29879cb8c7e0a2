"""The look at every file before any work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomaly_vlm.data import Sample
from anomaly_vlm.data.checks import check_files, checked_size
from anomaly_vlm.data.images import ReadError
from anomaly_vlm.data.readers.kolektor import read_ksdd
from tests.data.made import squares
from tests.data.trees import mask, picture


def noisy(path: Path, **options) -> Path:
    pixels = np.random.default_rng(0).integers(256, size=(60, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def test_good_files_and_drawn_samples_pass(tmp_path: Path) -> None:
    image, region = picture(tmp_path / "x.jpg", size=(10, 6)), mask(tmp_path / "x.png", size=(10, 6))
    check_files([Sample(str(image), "x", 1, masks=(str(region),)), *squares(3)])


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".tif", ".webp"])
def test_truncated_files_are_found(tmp_path: Path, suffix: str) -> None:
    path = noisy(tmp_path / f"x{suffix}")
    assert checked_size(str(path)) == (40, 60)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(ReadError, match=rf"image file '.*x\{suffix}' cannot be read \(.*\): replace the file"):
        check_files([Sample(str(path), "x", 0)])


def test_bytes_behind_the_end_do_no_harm(tmp_path: Path) -> None:
    path = noisy(tmp_path / "x.jpg")
    path.write_bytes(path.read_bytes() + b"\0" * 10000)  # the end marker is out of sight, but the file decodes
    assert checked_size(str(path)) == (40, 60)


@pytest.mark.parametrize(
    "content, message",
    [(None, "is missing"), (b"", r"is empty \(0 bytes\)"), (b"not an image", "no image format that is known"),
     (b"\x89PNG\r\n\x1a\n", "cannot be read")],
)  # fmt: skip
def test_bad_files(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "x.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ReadError, match=rf"image file '.*x\.png' .*{message}"):
        check_files([Sample(str(path), "x", 0)])


def test_mask_size_is_compared_with_the_upright_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn: 40x60 in the file, 60x40 upright
    image = noisy(tmp_path / "x.jpg", exif=exif)
    check_files([Sample(str(image), "x", 1, masks=(str(mask(tmp_path / "turned.png", size=(60, 40))),))])
    wrong = mask(tmp_path / "flat.png", size=(40, 60))
    message = r"mask '.*flat\.png' is 40x60 but its image is 60x40: give masks at image size$"
    with pytest.raises(ReadError, match=message):
        check_files([Sample(str(image), "x", 1, masks=(str(wrong),))])


def test_first_bad_file_in_order_and_how_many_more(tmp_path: Path) -> None:
    paths = [picture(tmp_path / f"{i:02d}.png") for i in range(40)]
    for i in (31, 7, 20):
        paths[i].write_bytes(b"")
    samples = [Sample(str(path), "x", 0) for path in reversed(paths)]
    with pytest.raises(ReadError, match=r"07\.png' is empty .*: replace the file \(and 2 more bad files\)$"):
        check_files(samples * 2)
    picture(paths[31])
    with pytest.raises(ReadError, match=r"\(and 1 more bad file\)$"):
        check_files(samples)


def test_files_of_cut_images_are_looked_at(tmp_path: Path) -> None:
    picture(tmp_path / "kos01/Part0.jpg", size=(4, 9))
    mask(tmp_path / "kos01/Part0_label.bmp", size=(4, 9), box=None)
    samples = read_ksdd(tmp_path)
    check_files(samples)
    mask(tmp_path / "kos01/Part0_label.bmp", size=(4, 6), box=None)
    with pytest.raises(ReadError, match="is 4x6 but its image is 4x9"):
        check_files(samples)
