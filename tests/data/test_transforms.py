"""Pixels: CLIP's own transform against torchvision's, masks, mosaics."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as tv

from anomaly_vlm.data import Sample
from anomaly_vlm.data.transforms import mosaic, normalise, read_sample, resize_image, resize_labels, resize_mask
from anomaly_vlm.errors import UserError
from tests.data.made import PIXELS, Square
from tests.data.trees import mask, picture


def noise(height: int, width: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(256, size=(height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize("rgb", ["before", "after"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_image_equals_clips_transform(mode: str, rgb: str) -> None:
    image = noise(31, 57, mode)
    to_rgb = tv.Lambda(lambda x: x.convert("RGB"))
    resize = tv.Resize((8, 8), interpolation=tv.InterpolationMode.BICUBIC)
    steps = [to_rgb, resize] if rgb == "before" else [resize, to_rgb]
    expected = tv.Compose([*steps, tv.ToTensor(), tv.Normalize(PIXELS.mean, PIXELS.std)])(image)
    preprocess = replace(PIXELS, rgb=rgb)
    pixels = resize_image(image, preprocess)
    assert (pixels.dtype, tuple(pixels.shape)) == (torch.uint8, (3, 8, 8))
    assert torch.equal(normalise(pixels.float().div(255), preprocess), expected)


def test_bilinear_images() -> None:
    image, bilinear = noise(31, 57), replace(PIXELS, interpolation="bilinear")
    expected = tv.Resize((8, 8), interpolation=tv.InterpolationMode.BILINEAR)(image)
    assert torch.equal(resize_image(image, bilinear), tv.functional.pil_to_tensor(expected))
    assert not torch.equal(resize_image(image, bilinear), resize_image(image, PIXELS))


@pytest.mark.parametrize(("height", "width"), [(31, 57), (57, 31), (20, 20)])
def test_the_shorter_side_to_a_size(height: int, width: int) -> None:
    image, preprocess = noise(height, width), replace(PIXELS, fit="short_side")
    expected = tv.Resize(8, interpolation=tv.InterpolationMode.BICUBIC)(image)
    pixels = resize_image(image, preprocess)
    assert torch.equal(pixels, tv.functional.pil_to_tensor(expected)) and min(pixels.shape[1:]) == 8
    region = Image.new("L", (width, height), 255)
    assert resize_mask(region, preprocess).shape == resize_labels(region, preprocess).shape == pixels.shape[1:]


def test_conversion_before_and_after_differ_for_palettes_only() -> None:
    for mode, differs in (("RGB", False), ("L", False), ("P", True)):
        before, after = (resize_image(noise(31, 57, mode), replace(PIXELS, rgb=rgb)) for rgb in ("before", "after"))
        assert torch.equal(before, after) != differs


def test_mask_is_resized_bilinear_then_above_one_half() -> None:
    region = Image.fromarray((np.random.default_rng(1).random((20, 30)) > 0.6).astype(np.uint8) * 255)
    soft = tv.functional.to_tensor(region.resize((8, 8), Image.Resampling.BILINEAR))[0]
    assert torch.equal(resize_mask(region, PIXELS), (soft > 0.5).to(torch.uint8))
    hard = torch.from_numpy(np.array(region.resize((8, 8), Image.Resampling.NEAREST)) > 0).to(torch.uint8)
    assert torch.equal(resize_mask(region, replace(PIXELS, mask_resize="nearest")), hard)
    assert not torch.equal(hard, resize_mask(region, PIXELS))


def test_sample_from_files_unites_masks_above_the_threshold(tmp_path: Path) -> None:
    path = str(picture(tmp_path / "x.png"))
    masks = (
        str(mask(tmp_path / "1.png", box=(0, 0, 2, 8), value=100)),
        str(mask(tmp_path / "2.png", box=(0, 0, 8, 2))),
    )
    for threshold, area in ((0, 28), (100, 16)):
        region = read_sample(Sample(path, "x", 1, masks=masks, mask_threshold=threshold))[1]
        assert region is not None
        assert (np.asarray(region) == 255).sum() == area
    assert read_sample(Sample(path, "x", 0))[1] is None


def test_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    path, region = picture(tmp_path / "x.png", size=(10, 8)), mask(tmp_path / "m.png", size=(5, 4))
    with pytest.raises(UserError, match=r"mask '.*m\.png' is 5x4 but its image is 10x8: give masks at image size"):
        read_sample(Sample(str(path), "x", 1, masks=(str(region),)))


def test_drawn_samples() -> None:
    image, region = read_sample(Sample("drawn", "x", 1, drawing=Square(50, True)))
    assert image.size == (16, 16)
    assert region is not None
    assert np.asarray(region)[:8, :8].min() == 255
    assert read_sample(Sample("drawn", "x", 0, drawing=Square(50, False)))[1] is None
    assert read_sample(Sample("drawn", "x", 1, kind="image", drawing=Square(50, True)))[1] is None


def test_mosaic_has_tiles_of_the_first_images_size() -> None:
    tiles = [(Image.new("L", (4, 6), 10 * i), Image.new("L", (4, 6), 255) if i == 2 else None) for i in range(3)]
    tiles.append((Image.new("RGB", (9, 9), (30, 30, 30)), Image.new("L", (9, 9), 0)))
    image, region = mosaic(tiles)
    assert image.size == region.size == (8, 12)
    grey = np.asarray(image)[..., 0]
    assert [grey[0, 0], grey[0, 7], grey[11, 0], grey[11, 7]] == [0, 10, 20, 30]
    assert (np.asarray(region)[6:, :4] == 255).all()
    assert (np.asarray(region) == 255).sum() == 24
