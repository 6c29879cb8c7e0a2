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


@pytest.mark.parametrize("values", [[0.0, np.nan, 1.0], [-1.0, 0.0, 900.0]])
def test_values_that_no_image_has_are_found_before_the_run(tmp_path: Path, values: list[float]) -> None:
    Image.fromarray(np.array([values], np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(ReadError, match=r"x\.tif' has (pixels without a value \(NaN\)|values from -1\.0 to 900\.0)"):
        check_files([Sample(str(tmp_path / "x.tif"), "x", 0, max_value=65535)])
    with pytest.raises(ReadError, match=r"x\.tif' has "):
        checked_size(str(tmp_path / "x.tif"))


def warnings_on(samples: list[Sample], caplog: pytest.LogCaptureFixture) -> list[str]:
    caplog.clear()
    check_files(samples)
    return caplog.messages


def test_odd_masks_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = noisy(tmp_path / "x.png")
    region = np.zeros((60, 40), np.float32)
    region[:5, :5] = 1

    def lines(*regions: np.ndarray, **options) -> list[str]:
        samples = []
        for i, values in enumerate(regions):
            Image.fromarray(values).save(tmp_path / f"{i}.tif", **options)
            samples.append(Sample(str(image), "x", 1, masks=(str(tmp_path / f"{i}.tif"),)))
        return warnings_on(samples, caplog)

    assert not lines(region)
    assert "1 of 1 masks have several pages" in lines(region, save_all=True, append_images=[Image.fromarray(region)])[0]
    for odd in (np.nan, -1):
        assert "1 of 1 masks have values below 0 or none (NaN)" in lines(np.where(region > 0, region, odd))[0]
    assert not lines(1 - region, region)
    assert "2 of 3 masks mark more than half" in lines(1 - region, region, 1 - region)[0]


@pytest.mark.parametrize("turn, size, named", [(3, (40, 60), True), (6, (40, 40), True), (6, (60, 40), False)])
def test_masks_that_may_lie_across_their_images_are_named(
    tmp_path: Path, turn: int, size: tuple[int, int], named: bool, caplog: pytest.LogCaptureFixture
) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    stored = size[::-1] if turn == 6 else size
    Image.new("L", stored, 90).save(tmp_path / "x.jpg", exif=exif)
    region = mask(tmp_path / "m.png", size=size)
    sample = Sample(str(tmp_path / "x.jpg"), "x", 1, masks=(str(region),))
    assert any("stored unturned" in line for line in warnings_on([sample], caplog)) is named
    Image.open(region).transpose(Image.Transpose.ROTATE_180).resize(stored, Image.Resampling.NEAREST).save(
        region, exif=exif
    )
    assert not warnings_on([sample], caplog)
