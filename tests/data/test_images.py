"""Odd image files: every kind opens the same way, and what cannot be read is named in one line."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomaly_vlm.data import images
from anomaly_vlm.data.images import ReadError, open_image, values_of
from anomaly_vlm.data.masks import open_mask
from tests.data.trees import mask, picture


def rgb(path: Path) -> np.ndarray:
    return np.asarray(open_image(str(path)).convert("RGB"))


def test_grey_palette_and_alpha(tmp_path: Path) -> None:
    colours = np.arange(3 * 16, dtype=np.uint8).reshape(4, 4, 3) * 5
    for mode in ("RGB", "RGBA", "P", "L", "LA", "1", "CMYK"):
        expected = Image.fromarray(colours).convert(mode if mode != "RGBA" else "RGB").convert("RGB")
        image = Image.fromarray(colours).convert(mode)
        if mode in ("RGBA", "LA"):
            image.putalpha(0)  # invisible pixels keep their colour
        path = tmp_path / f"{mode}{'.tif' if mode == 'CMYK' else '.png'}"
        image.save(path)
        assert open_image(str(path)).mode in ("1", "L", "P", "RGB", "CMYK")
        np.testing.assert_array_equal(rgb(path), np.asarray(expected), err_msg=mode)


def test_palette_with_transparency_gives_no_warning(tmp_path: Path) -> None:
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).convert("P")
    image.save(tmp_path / "p.png", transparency=bytes(range(64)))
    assert rgb(tmp_path / "p.png").shape == (8, 8, 3)
    assert open_mask(str(tmp_path / "p.png"), 0).sum() == 63


@pytest.mark.parametrize(
    "suffix, kind", [(".png", np.uint16), (".tif", np.uint16), (".tif", np.int32), (".pgm", np.uint16)]
)
def test_sixteen_bits_are_scaled(tmp_path: Path, suffix: str, kind: type) -> None:
    values = np.array([[0, 255, 256, 32768], [40000, 65280, 65534, 65535]]).astype(kind)
    Image.fromarray(values).save(tmp_path / f"x{suffix}")
    np.testing.assert_array_equal(rgb(tmp_path / f"x{suffix}")[..., 0], values >> 8)


def test_float_images(tmp_path: Path) -> None:
    for name, values, expected in (("unit", [0.0, 0.5, 1.0], [0, 128, 255]), ("byte", [0.0, 2.0, 255.0], [0, 2, 255])):
        Image.fromarray(np.array([values], np.float32)).save(tmp_path / f"{name}.tif")
        assert rgb(tmp_path / f"{name}.tif")[0, :, 0].tolist() == expected
    Image.fromarray(np.array([[-1.0, 30.0]], np.float32)).save(tmp_path / "wide.tif")
    with pytest.raises(ReadError, match=r"wide\.tif' has values from -1\.0 to 30\.0"):
        open_image(str(tmp_path / "wide.tif"))


@pytest.mark.parametrize("orientation, corner", [(1, (0, 0)), (3, (3, 1)), (6, (0, 1)), (8, (3, 0))])
def test_exif_rotation_is_applied(tmp_path: Path, orientation: int, corner: tuple[int, int]) -> None:
    pixels = np.zeros((2, 4), np.uint8)
    pixels[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "x.png", exif=exif)
    image = open_image(str(tmp_path / "x.png"))
    assert image.size == ((4, 2) if orientation in (1, 3) else (2, 4))
    turned = np.asarray(image)
    expected = {1: (0, 0), 3: (1, 3), 6: (0, 1), 8: (3, 0)}[orientation]
    assert tuple(np.argwhere(turned == 255)[0]) == expected


def test_first_frame_and_lying_suffix(tmp_path: Path) -> None:
    frames = [Image.new("L", (8, 8), value) for value in (10, 200)]
    frames[0].save(tmp_path / "x.tif", save_all=True, append_images=frames[1:])
    assert rgb(tmp_path / "x.tif").max() == 10
    picture(tmp_path / "x.png").rename(tmp_path / "really.jpg")
    assert rgb(tmp_path / "really.jpg").shape == (8, 8, 3)


def test_masks_are_above_the_threshold(tmp_path: Path) -> None:
    mask(tmp_path / "m.png", value=2)
    assert open_mask(str(tmp_path / "m.png"), 0).sum() == 16
    assert open_mask(str(tmp_path / "m.png"), 2).sum() == 0
    Image.fromarray(np.array([[0, 1, 128 * 257, 65535]], np.uint16)).save(tmp_path / "wide.png")
    assert open_mask(str(tmp_path / "wide.png"), 0).tolist() == [[False, True, True, True]]  # a class number stays
    assert open_mask(str(tmp_path / "wide.png"), 127).tolist() == [[False, False, True, True]]


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match=r"image file '.*x\.png' is missing"):
        open_image(str(tmp_path / "x.png"))
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(
        ReadError, match=r"text\.png' cannot be read \(no image format that is known\): replace the file"
    ):
        open_image(str(tmp_path / "text.png"))
    for suffix in (".jpg", ".png", ".bmp", ".tif"):
        path = tmp_path / f"cut{suffix}"
        Image.fromarray(np.random.default_rng(0).integers(256, size=(40, 40, 3), dtype=np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:-600])
        with pytest.raises(ReadError, match=rf"cut\{suffix}' cannot be read"):
            open_image(str(path))


def test_error_keeps_its_line_inside_a_traceback() -> None:
    error = ReadError("image file 'a.png' is missing: restore it")
    text = f"Caught ReadError in worker 0.\nTraceback:\n  x\nanomaly_vlm.data.images.ReadError: {error}"
    assert str(ReadError(text)) == str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_only_image_formats_are_decoded(tmp_path: Path) -> None:
    """A PostScript file that is called .png never reaches an interpreter."""
    path = tmp_path / "part.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    with pytest.raises(ReadError, match=r"part\.png' cannot be read"):
        open_image(str(path))


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGB", "I;16", "F"])
def test_large_images_are_copied_band_by_band(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "BAND", 100)
    kinds = {"I;16": np.uint16, "F": np.float32}
    shape = (37, 29, 3) if mode == "RGB" else (37, 29)
    values = np.random.default_rng(0).integers(0, 200, shape).astype(kinds.get(mode, np.uint8))
    image = Image.fromarray(values)
    image = image.convert("1") if mode == "1" else image.quantize(8) if mode == "P" else image
    assert image.mode == mode
    found, wanted = values_of(image), np.asarray(image)
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(found, wanted)


def test_deep_colours_in_separate_planes_are_refused(tmp_path: Path) -> None:
    """PIL takes other bytes than theirs without a word."""
    values = np.full((3, 4, 5), 40_000, np.uint16)
    tags = [(256, 3, 1, 5), (257, 3, 1, 4), (258, 3, 3, 134), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 3, 140)]
    tags += [(277, 3, 1, 3), (278, 3, 1, 4), (279, 4, 3, 152), (284, 3, 1, 2)]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    head = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + struct.pack("<I", 0)
    tables = struct.pack("<3H3I3I", 16, 16, 16, 164, 204, 244, 40, 40, 40)
    (tmp_path / "planes.tif").write_bytes(head + tables + values.tobytes())
    with Image.open(tmp_path / "planes.tif") as file:
        assert file.mode == "RGB" and file.size == (5, 4)
    for white in (None, 4095.0):
        with pytest.raises(ReadError, match="16 bits a channel in separate planes"):
            open_image(str(tmp_path / "planes.tif"), white)
