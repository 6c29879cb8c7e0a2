"""Mask files as people save them: the right pixels, or one line that says what was found."""

from __future__ import annotations

import logging
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomaly_vlm.data.checks import check_files
from anomaly_vlm.data.images import ReadError, open_image
from anomaly_vlm.data.masks import read_mask
from anomaly_vlm.data.readers.folder import read_folder
from anomaly_vlm.data.source import FileSource
from anomaly_vlm.data.transforms import read_sample
from anomaly_vlm.data.types import Preprocess
from anomaly_vlm.errors import UserError
from tests.data.trees import mask, picture

REGION = np.zeros((48, 64), bool)
REGION[10:30, 20:50] = True
BYTES = REGION.astype(np.uint8) * 255


def palette(colours: list[int], indices: np.ndarray) -> Image.Image:
    image = Image.new("P", indices.shape[::-1])
    image.putdata(indices.astype(np.uint8).ravel().tolist())
    image.putpalette(colours + [0] * (768 - len(colours)))
    return image


def transparent(colour: int) -> Image.Image:
    image = Image.new("RGBA", (64, 48), (colour, colour, colour, 0))
    image.putalpha(Image.fromarray(BYTES))
    return image


KINDS = {
    "bytes.png": (Image.fromarray(BYTES), ""),
    "ones.png": (Image.fromarray(REGION.astype(np.uint8)), ""),
    "class_seven.bmp": (Image.fromarray(REGION.astype(np.uint8) * 7), ""),
    "two_classes.png": (Image.fromarray(np.where(REGION, np.arange(64) % 2 + 3, 0).astype(np.uint8)), ""),
    "bits.png": (Image.fromarray(REGION), ""),
    "red.png": (Image.fromarray(np.stack([BYTES, BYTES * 0, BYTES * 0], axis=-1)), ""),
    "wide.png": (Image.fromarray(BYTES.astype(np.uint16)), ""),
    "float.tif": (Image.fromarray(REGION.astype(np.float32)), ""),
    "two_greys.png": (
        Image.fromarray(np.where(REGION, np.where(np.arange(64) % 2, 120, 255), 0).astype(np.uint8)),
        "several",
    ),
    "quality_75.jpg": (Image.fromarray(BYTES), "hold up to"),
    "smooth.png": (Image.fromarray(BYTES).resize((128, 96), Image.Resampling.BICUBIC).resize((64, 48)), "hold up to"),
    "black_and_alpha.png": (transparent(0), "transparency alone"),
    "white_and_alpha.png": (transparent(255), "transparency alone"),
    "opaque.png": (Image.fromarray(BYTES).convert("RGBA"), ""),
    "dark_palette.png": (palette([0, 0, 0, 255, 255, 255], REGION), ""),
    "white_background.png": (palette([255, 255, 255, 0, 0, 0], REGION), "index 0 is the background"),
}


@pytest.mark.parametrize("name", KINDS)
def test_the_region_is_found_whatever_the_file(name: str, tmp_path: Path) -> None:
    image, oddity = KINDS[name]
    image.save(tmp_path / name, **({"quality": 75} if name.endswith("jpg") else {}))
    found = read_mask(str(tmp_path / name), None)
    assert (found.anomalous != REGION).sum() <= (8 if oddity.startswith("hold") else 0)  # corners of blurred edges
    assert oddity in found.oddity and bool(oddity) == bool(found.oddity)


@pytest.mark.parametrize("content, oddity", [(0, "mark no pixel"), (255, "mark every pixel")])
def test_masks_of_nothing_and_of_everything_are_named(content: int, oddity: str, tmp_path: Path) -> None:
    Image.new("L", (8, 8), content).save(tmp_path / "m.png")
    assert oddity in read_mask(str(tmp_path / "m.png"), None).oddity


def test_void_pixels_are_left_out_only_where_the_user_says_so(tmp_path: Path) -> None:
    values = REGION.astype(np.uint8)
    values[9, 20:50] = 255
    for place in ("good/0.png", "bad/1.png"):
        picture(tmp_path / place, size=(64, 48))
    (tmp_path / "ground_truth").mkdir()
    for image in (Image.fromarray(values), palette([0] * 3 + [128, 0, 0], values)):
        image.save(tmp_path / "ground_truth/1.png")
        with pytest.raises(ReadError, match=r"holds the values 0, 1 and 255, .* set mask_void=255"):
            read_mask(str(tmp_path / "ground_truth/1.png"), None)
        source = FileSource(name="x", root=tmp_path, reader=read_folder, layout="", mask_void=255)
        (sample,) = [sample for sample in source.samples("test") if sample.label]
        region = read_sample(sample)[1]
        assert region is not None
        np.testing.assert_array_equal(np.asarray(region), np.where(values == 255, 255, values))


def test_colours_and_transparency_that_disagree_are_refused(tmp_path: Path) -> None:
    image = Image.fromarray(np.stack([BYTES[:, ::-1]] * 3, axis=-1)).convert("RGBA")
    image.putalpha(Image.fromarray(BYTES))
    image.save(tmp_path / "m.png")
    with pytest.raises(ReadError, match="both colours and transparency"):
        read_mask(str(tmp_path / "m.png"), None)


def test_an_explicit_threshold_counts_grey_values(tmp_path: Path) -> None:
    palette([255, 255, 255, 0, 0, 0], REGION).save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(str(tmp_path / "m.png"), 127).anomalous, ~REGION)


def test_what_is_odd_is_said_once_for_a_set(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for i in range(3):
        picture(tmp_path / f"bad/{i}.png", size=(64, 48))
        picture(tmp_path / f"good/{i}.png", size=(64, 48))
        (tmp_path / "ground_truth").mkdir(exist_ok=True)
        Image.fromarray(np.roll(BYTES, i)).save(tmp_path / f"ground_truth/{i}.jpg", quality=60 + 10 * i)
    with caplog.at_level(logging.WARNING):
        check_files(read_folder(tmp_path))
    (line,) = caplog.messages
    assert line.startswith("3 of 3 masks hold up to") and "above 127" in line


@pytest.mark.parametrize(
    "bits, dtype, suffix",
    [
        (10, np.uint16, "png"),
        (12, np.uint16, "png"),
        (14, np.uint16, "tif"),
        (8, np.int32, "tif"),
        (12, np.float32, "tif"),
    ],
)
def test_white_is_guessed_from_the_set_and_said(
    bits: int, dtype: type, suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    grey = np.random.default_rng(0).integers(20, 250, (16, 16))
    (tmp_path / "good").mkdir()
    for name, share in (("bright", 1.0), ("dark", 0.2)):
        values = np.rint(grey * share / 255 * (2**bits - 1)).astype(dtype)
        Image.fromarray(values).save(tmp_path / f"good/{name}.{suffix}")
    source = FileSource(name="parts", root=tmp_path, reader=read_folder, layout="")
    with caplog.at_level(logging.WARNING):
        samples = source.samples("test")
    assert f"white is {2**bits - 1}" in caplog.text
    for sample, share in zip(samples, (1.0, 0.2), strict=True):
        found = np.asarray(read_sample(sample)[0].convert("L")).astype(float)
        assert np.abs(found - grey * share).max() <= 1.5
    with pytest.raises(UserError, match="max_value=N on the data set"):
        open_image(samples[0].path, max_value=7)


def colours(path: Path, values: np.ndarray) -> Path:
    """A colour file of 16 bits a channel, as cameras of 10 or 12 bits write them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        height, width = values.shape[:2]
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
        header = struct.pack(">2I5B", width, height, 16, 2, 0, 0, 0)
        chunks = (b"IHDR" + header, b"IDAT" + zlib.compress(rows), b"IEND")
        framed = (struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data)) for data in chunks)
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(framed))
    else:
        compression = "zlib" if "packed" in path.stem else None
        pytest.importorskip("tifffile").imwrite(path, values, photometric="rgb", compression=compression)
    return path


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_colours_of_twelve_bits_are_not_read_as_black(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    bright = np.random.default_rng(0).integers(0, 4096, (16, 16, 3)).astype(np.uint16)
    bright[0, 0] = 4095
    colours(tmp_path / f"good/bright{suffix}", bright)
    colours(tmp_path / f"good/dark_packed{suffix}", bright // 8)
    samples = FileSource(name="parts", root=tmp_path, reader=read_folder, layout="").samples("test")
    assert "white is 4095" in caplog.text
    check_files(samples)
    for sample, values in zip(samples, (bright, bright // 8), strict=True):
        np.testing.assert_array_equal(np.asarray(read_sample(sample)[0]), np.rint(values * (255 / 4095)))
    with pytest.raises(UserError, match="to 4095: expected 0 to 1023; set max_value=N"):
        check_files([replace(samples[0], max_value=1023)])


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_colours_of_sixteen_bits_keep_their_pixels(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (16, 16, 3)).astype(np.uint16)
    colours(tmp_path / f"good/0{suffix}", values)
    (sample,) = FileSource(name="parts", root=tmp_path, reader=read_folder, layout="").samples("test")
    assert sample.max_value is None and not caplog.messages
    np.testing.assert_array_equal(np.asarray(read_sample(sample)[0]), values >> 8)


def test_eight_bits_need_no_guess(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    picture(tmp_path / "good/0.png")
    (sample,) = FileSource(name="parts", root=tmp_path, reader=read_folder, layout="").samples("test")
    assert sample.max_value is None and not caplog.messages


def test_several_pages_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "good").mkdir()
    first, second = (Image.new("L", (8, 8), value) for value in (10, 20))
    first.save(tmp_path / "good/0.tif", save_all=True, append_images=[second])
    with caplog.at_level(logging.WARNING):
        check_files(read_folder(tmp_path))
    assert "1 files hold several pages" in caplog.text and "0.tif" in caplog.text


def test_preprocess_is_unchanged_by_the_new_keys() -> None:
    assert Preprocess(size=8, mean=(0, 0, 0), std=(1, 1, 1)).mask_side == 8


def test_unreadable_threshold(tmp_path: Path) -> None:
    mask(tmp_path / "m.png")
    for wrong in (1.5, True, 255, -1):
        with pytest.raises(UserError, match="mask_threshold is"):
            FileSource(name="x", root=tmp_path, reader=read_folder, layout="", mask_threshold=wrong)  # type: ignore[arg-type]
