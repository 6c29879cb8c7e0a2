"""The torch data set: items, determinism of everything random, the pixel cache, batches."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import kornia.augmentation as K
import numpy as np
import pytest
import torch
from PIL import Image

from anomaly_vlm.caching.tokens import TokenCache
from anomaly_vlm.data import AnomalyDataset, Item, Sample, collate
from anomaly_vlm.data.augment import Augment, TrainingAugmentation
from anomaly_vlm.data.pixels import PixelCache, pixel_key
from anomaly_vlm.errors import UserError
from anomaly_vlm.methods.base.images import as_batch, as_pictures, tell_guesses
from tests.data.made import PIXELS, Square, squares


def same(a: Item, b: Item) -> bool:
    masks = (a.mask is None and b.mask is None) or torch.equal(a.mask, b.mask)  # type: ignore[arg-type]
    return (
        torch.equal(a.image, b.image)
        and masks
        and (a.label, a.path, a.index, a.key) == (b.label, b.path, b.index, b.key)
    )


def test_items() -> None:
    item = AnomalyDataset(squares(4), PIXELS)[1]
    assert (item.label, item.category, item.path, item.index) == (1, "gear", "squares/gear/00001", 1)
    white = (1 - torch.tensor(PIXELS.mean)) / torch.tensor(PIXELS.std)
    torch.testing.assert_close(item.image[:, 0, 0], white)
    assert item.mask is not None
    assert (item.mask.dtype, int(item.mask.sum()), int(item.mask[:4, :4].sum())) == (torch.uint8, 16, 16)
    normal = AnomalyDataset(squares(4), PIXELS)[0].mask
    assert normal is not None
    assert normal.sum() == 0


def test_key_names_the_exact_pixels() -> None:
    samples = squares(3)
    data = AnomalyDataset(samples, PIXELS)
    keys = [data[i].key for i in range(3)]
    assert len(set(keys)) == 3
    assert keys == [AnomalyDataset(samples, PIXELS)[i].key for i in range(3)]
    assert AnomalyDataset(samples, replace(PIXELS, mean=(0.0, 0.0, 0.0)))[0].key != keys[0]
    assert AnomalyDataset(samples, replace(PIXELS, size=16))[0].key != keys[0]


def test_the_key_of_a_file_depends_on_the_value_of_white(tmp_path: Path) -> None:
    """Of 16-bit files, what the set says of white decides the pixels; a method called on the file has the same key."""
    path = tmp_path / "deep.png"
    Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16) * 16).save(path)
    files = {white: Sample(str(path), "gear", 0, max_value=white) for white in (None, 4095, 65535)}
    items = {white: AnomalyDataset([sample], PIXELS)[0] for white, sample in files.items()}
    assert len({item.key for item in items.values()}) == 3
    assert items[None].key == pixel_key(path.read_bytes(), PIXELS)  # as before, so that caches stay valid
    assert torch.equal(items[None].image, items[4095].image) and not torch.equal(items[4095].image, items[65535].image)
    for white, item in items.items():
        (picture,) = as_pictures(str(path), None if white is None else float(white))
        batch = as_batch(SimpleNamespace(preprocess=PIXELS, backbone=None), [picture], "gear")
        assert batch.key == [item.key] and torch.equal(batch.image[0], item.image)


@pytest.mark.parametrize("kind", ["deep", "turned", "alpha", "palette", "grey"])
def test_a_pil_image_is_read_as_its_file(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    rng = np.random.default_rng(0)
    path, exif, options = tmp_path / f"image.{'jpg' if kind == 'turned' else 'png'}", Image.Exif(), {}
    made = Image.fromarray(rng.integers(0, 256, (20, 30, 4 if kind == "alpha" else 3), dtype=np.uint8))
    if kind == "deep":
        made = Image.fromarray(rng.integers(0, 4096, (20, 30), dtype=np.uint16))
    elif kind == "turned":
        exif[0x0112] = 6
        options = {"exif": exif}
    elif kind == "palette":
        made, options = made.quantize(8), {"transparency": 0}
    elif kind == "grey":
        made = made.convert("L")
    made.save(path, **options)
    method = SimpleNamespace(preprocess=PIXELS, backbone=None)
    with Image.open(path) as opened:
        pictures = [as_pictures(image)[0] for image in (str(path), opened)]
    by_path, by_image = (as_batch(method, [picture], "gear").image for picture in pictures)
    assert torch.equal(by_path, by_image) and pictures[0].size == pictures[1].size
    tell_guesses(pictures)
    assert ("whose values say that white is 4095" in caplog.text) == (kind == "deep") and len(caplog.messages) < 2


@pytest.mark.parametrize(
    ("image", "told"),
    [
        (torch.full((3, 8, 8), math.nan), "values from nan to nan"),
        (Image.fromarray(np.full((8, 8), math.nan, np.float32)), "pixels without a value"),
        (np.zeros((0, 0, 3), np.uint8), r"shape \[0, 0, 3\] has no pixels"),
        (torch.zeros(3, 0, 8), r"shape \[3, 0, 8\] has no pixels"),
        (Image.new("RGB", (0, 0)), "0x0 has no pixels"),
    ],
)
def test_images_that_say_nothing_are_refused(image: object, told: str) -> None:
    with pytest.raises(UserError, match=told):
        as_pictures(image)


def test_stored_pixels_of_another_white_are_not_served(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16) * 16).save(path)
    store = TokenCache({"weights": "none", "version": 1}, folder=tmp_path / "cache")
    for white in (4095.0, 65535.0, 4095.0):
        sample = Sample(str(path), "gear", 0, max_value=white)
        stored = AnomalyDataset([sample], PIXELS, stored_pixels=store)[0]
        assert torch.equal(stored.image, AnomalyDataset([sample], PIXELS)[0].image)


def test_masks_of_sets_with_image_labels_only() -> None:
    assert AnomalyDataset(squares(2, kind="image"), PIXELS)[1].mask is None
    mixed = AnomalyDataset(squares(2) + squares(2, dataset="b", kind="image"), PIXELS)
    assert [sorted(mixed[i].mask.unique().tolist()) for i in range(4)] == [[0], [0, 1], [0], [255]]  # type: ignore[union-attr]


def test_mosaic_is_a_function_of_seed_epoch_and_index() -> None:
    samples = squares(6) + squares(6, category="disc")
    data = AnomalyDataset(samples, PIXELS, seed=3, augment=TrainingAugmentation(mosaic=0.5))
    first = [data[0, i] for i in range(12)]
    tiled = [i for i, item in enumerate(first) if item.key is None]
    assert 2 <= len(tiled) <= 10
    torch.rand(1)  # the global state has no say
    again = AnomalyDataset(samples, PIXELS, seed=3, augment=TrainingAugmentation(mosaic=0.5), cache=PixelCache(10**6))
    assert all(same(again[0, i], first[i]) for i in (7, 3, 11, *range(12)))
    assert [i for i in range(12) if data[1, i].key is None] != tiled
    other = AnomalyDataset(samples, PIXELS, seed=4, augment=TrainingAugmentation(mosaic=0.5))
    assert [i for i in range(12) if other[0, i].key is None] != tiled
    assert [item.label for item in first] == [0, 1] * 6  # labels stay the sample's
    assert [item.index for item in first] == list(range(12))


def test_mosaic_tiles_come_from_the_same_category() -> None:
    samples: list[Sample] = []
    for category, base in (("gear", 10), ("disc", 150)):
        samples += [
            replace(s, drawing=Square(base + 20 * i, False)) for i, s in enumerate(squares(4, category=category))
        ]
    data = AnomalyDataset(
        samples, replace(PIXELS, mean=(0.0,) * 3, std=(1.0,) * 3), augment=TrainingAugmentation(mosaic=1.0)
    )
    kinds = set()
    for i in range(8):
        corners = (data[0, i].image[0, ::7, ::7] * 255).round().flatten().tolist()
        assert all((value < 100) == (i < 4) for value in corners)
        kinds.update(corners)
    assert len(kinds) > 4


def test_mosaic_only_on_the_sets_that_are_named() -> None:
    samples = squares(4, dataset="mvtec_ad") + squares(4, dataset="cvc_colondb")
    data = AnomalyDataset(samples, PIXELS, augment=TrainingAugmentation(mosaic=1.0, mosaic_on=["mvtec_ad"]))
    assert [data[0, i].key is None for i in range(8)] == [True] * 4 + [False] * 4


def test_augmentations_are_repeatable_and_move_the_mask_along() -> None:
    samples = squares(8)
    plain = AnomalyDataset(samples, replace(PIXELS, mean=(0.0,) * 3, std=(1.0,) * 3))
    operations = [K.RandomHorizontalFlip(p=0.5), K.RandomVerticalFlip(p=0.5), K.RandomBrightness((0.5, 0.9), p=0.5)]
    data = AnomalyDataset(samples, plain.preprocess, augment=TrainingAugmentation(operations=operations))
    before = torch.get_rng_state()
    first = [data[0, i] for i in range(8)]
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert all(same(data[0, i], first[i]) for i in reversed(range(8)))
    assert not all(torch.equal(data[1, i].image, first[i].image) for i in range(8))
    assert {item.key for item in first} == {None}
    corners = set()
    for item in first[1::2]:
        assert item.mask is not None
        assert set(item.mask.unique().tolist()) == {0, 1}
        bright = item.image[0] > 0.4  # the square, darkened or not
        assert torch.equal(bright, item.mask == 1)
        corners.add(tuple(item.mask.nonzero()[0].tolist()))
    assert len(corners) > 1


def test_augmentations_keep_void_and_size() -> None:
    augment = Augment([K.RandomRotation(30.0, p=1.0)])
    mask = torch.full((8, 8), 255, dtype=torch.uint8)
    assert set(augment(torch.rand(3, 8, 8), mask, 0)[1].unique().tolist()) <= {0, 255}  # type: ignore[union-attr]
    assert augment(torch.rand(3, 8, 8), None, 0)[1] is None
    with pytest.raises(UserError, match=r"augment\.operations turn \[8, 8\] pixels into \[4, 4\]"):
        Augment([K.CenterCrop(4)])(torch.rand(3, 8, 8), None, 0)


def test_cache_draws_once_and_keeps_to_its_bound() -> None:
    drawn = []

    class Counting:
        def __init__(self, i: int) -> None:
            self.i = i

        def draw(self):
            drawn.append(self.i)
            return squares(8)[self.i].drawing.draw()  # type: ignore[union-attr]

    samples = [replace(sample, drawing=Counting(i)) for i, sample in enumerate(squares(8))]
    one = 3 * 8 * 8
    cache = PixelCache(4 * one + 2 * 64)  # two of four have a mask of their own
    data = AnomalyDataset(samples, PIXELS, cache=cache, name="test")
    first = [data[i] for i in range(8)]
    assert all(same(data[i], first[i]) for i in range(8))
    assert drawn == [*range(8), *range(4, 8)]
    assert cache.used == 4 * one + 2 * 64
    AnomalyDataset(samples, PIXELS, cache=cache, name="train")[0]  # other sides keep their own
    assert drawn[-1] == 0


@pytest.mark.parametrize("stored", [None, {"cls": torch.zeros(2)}])
def test_a_drawn_sample_is_drawn_once_for_its_tokens(
    stored: dict[str, torch.Tensor] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    draw = Square.draw
    monkeypatch.setattr(Square, "draw", lambda square: (drawn.append(square), draw(square))[1])
    plain = AnomalyDataset(squares(3), PIXELS)[1]
    drawn.clear()
    item = AnomalyDataset(squares(3), PIXELS, stored_tokens=lambda _: stored)[1]
    assert len(drawn) == 1
    assert item.tokens is stored and (item.key, item.label) == (plain.key, plain.label)
    assert item.mask is not None and plain.mask is not None and torch.equal(item.mask, plain.mask)
    assert len(item.image) == 0 if stored else torch.equal(item.image, plain.image)


def test_collate() -> None:
    data = AnomalyDataset(squares(3), PIXELS)
    batch = collate([data[2], data[1]])
    assert tuple(batch.image.shape) == (2, 3, 8, 8)
    assert batch.image.dtype == torch.float32
    assert batch.label.tolist() == [0, 1]
    assert batch.index.tolist() == [2, 1]
    assert (batch.label.dtype, batch.index.dtype) == (torch.int64, torch.int64)
    assert batch.mask is not None
    assert tuple(batch.mask.shape) == (2, 8, 8)
    assert (len(batch), batch.category, batch.path[0]) == (2, ["gear", "gear"], "squares/gear/00002")
    assert batch.key == [data[2].key, data[1].key]
    unlabelled = AnomalyDataset([replace(s, label=None, kind="none") for s in squares(2)], PIXELS)
    batch = collate([unlabelled[0], unlabelled[1]])
    assert (batch.label.tolist(), batch.mask) == ([-1, -1], None)
