"""How files become pixels quickly: threads, drafts, resized images on disk. None of it changes what it need not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from threading import current_thread, main_thread

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from torch.utils.data import DataLoader

from anomaly_vlm.caching.tokens import TokenCache
from anomaly_vlm.data import AnomalyDataset, Item, Sample, collate, images, pixels, threads
from anomaly_vlm.data.masks import _values_of
from tests.data.made import PIXELS

SMALL = replace(PIXELS, size=16)


def photographs(root: Path, count: int = 5, size: tuple[int, int] = (160, 128), suffix: str = ".jpg") -> list[Sample]:
    root.mkdir(exist_ok=True)
    samples = []
    for i in range(count):
        random = np.random.default_rng(i)
        image = Image.fromarray(random.integers(0, 255, (8, 8, 3), dtype=np.uint8)).resize(size)
        image.save(root / f"{i}{suffix}", quality=95)
        mask = np.zeros(size[::-1], np.uint8)
        mask[20 : 40 + i, 30:90] = 255
        Image.fromarray(mask).save(root / f"{i}_mask.png")
        samples.append(Sample(str(root / f"{i}{suffix}"), "gear", 1, (str(root / f"{i}_mask.png"),), dataset="x"))
    return samples


def same(a: Item, b: Item) -> bool:
    assert a.mask is not None and b.mask is not None
    return torch.equal(a.image, b.image) and torch.equal(a.mask, b.mask) and (a.path, a.key) == (b.path, b.key)


def test_batches_read_by_threads_are_those_read_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = photographs(tmp_path)
    photographs(tmp_path / "large", 1, (320, 240))
    samples.insert(
        2, replace(samples[0], path=str(tmp_path / "large/0.jpg"), masks=(str(tmp_path / "large/0_mask.png"),))
    )
    data = AnomalyDataset(samples, SMALL)
    alone = [data[i] for i in range(6)]
    monkeypatch.setattr(pixels, "LARGE", 320 * 240 - 1)
    monkeypatch.setattr(threads.os, "cpu_count", lambda: 4)
    assert all(map(same, data.__getitems__([5, 0, 2, 1, 3, 4]), [alone[i] for i in (5, 0, 2, 1, 3, 4)]))
    for workers in (0, 1):
        loader = DataLoader(data, batch_size=4, num_workers=workers, collate_fn=collate)
        assert torch.equal(torch.cat([batch.image for batch in loader]), torch.stack([item.image for item in alone]))


def test_large_files_are_read_by_the_main_thread_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual, large = photographs(tmp_path / "usual", 3), photographs(tmp_path / "large", 3, (320, 240))
    data, threads_of = AnomalyDataset([*usual, *large], SMALL), {}
    monkeypatch.setattr(pixels, "LARGE", 320 * 240 - 1)
    monkeypatch.setattr(threads.os, "cpu_count", lambda: 4)

    def view(epoch: int, i: int) -> pixels.Pixels:
        threads_of[i] = current_thread() is main_thread()
        return data._pixels(i)

    monkeypatch.setattr(data, "_view", view)
    assert [item.index for item in data.__getitems__([3, 0, 4, 1, 2, 5])] == [3, 0, 4, 1, 2, 5]
    assert threads_of == {i: i >= 3 for i in range(6)}


def test_an_unreadable_file_among_the_threads_is_rejected(tmp_path: Path) -> None:
    samples = photographs(tmp_path, 3)
    (tmp_path / "1.jpg").write_bytes((tmp_path / "1.jpg").read_bytes()[:200])
    with pytest.raises(images.ReadError, match=r"1\.jpg' cannot be read"):
        AnomalyDataset(samples, SMALL).__getitems__([0, 1, 2])


def test_a_draft_is_close_has_its_own_key_and_keeps_its_mask(tmp_path: Path) -> None:
    samples = photographs(tmp_path, 2)
    turned = Image.open(samples[1].path)
    exif = turned.getexif()
    exif[0x0112] = 6  # a quarter turn: the file is 160 x 128, what is shown 128 x 160
    turned.save(samples[1].path, quality=95, exif=exif)
    with Image.open(samples[1].masks[0]) as mask:
        mask.transpose(Image.Transpose.ROTATE_270).save(samples[1].masks[0])
    full, draft = AnomalyDataset(samples, SMALL), AnomalyDataset(samples, replace(SMALL, decode="draft"))
    assert images.decode(samples[0].path, draft=16).image.size == (40, 32)
    for i in range(2):
        a, b = full[i], draft[i]
        assert a.mask is not None and b.mask is not None and torch.equal(a.mask, b.mask)
        off = 255 * float(np.mean(SMALL.std)) * (a.image - b.image).abs()
        assert 0 < off.mean() < 2 and off.max() < 12
        assert a.key != b.key


@pytest.mark.parametrize("suffix, options", [(".png", {"decode": "draft"}), (".jpg", {"decode": "draft", "size": 120})])
def test_other_formats_and_small_files_have_no_draft(tmp_path: Path, suffix: str, options: dict[str, object]) -> None:
    samples = photographs(tmp_path, 1, suffix=suffix)
    chosen = replace(SMALL, **options)  # type: ignore[arg-type]
    full = AnomalyDataset(samples, replace(chosen, decode="full"))[0]
    assert torch.equal(full.image, AnomalyDataset(samples, chosen)[0].image)


def test_resized_images_on_disk_are_the_same_and_are_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = photographs(tmp_path, 3)
    plain = [AnomalyDataset(samples, SMALL)[i] for i in range(3)]

    def dataset() -> AnomalyDataset:
        return AnomalyDataset(samples, SMALL, stored_pixels=TokenCache({"pixels": 1}, folder=tmp_path / "cache"))

    first = dataset()
    assert all(map(same, first.__getitems__([0, 1, 2]), plain))

    def decodes_nothing(*_: object, **__: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("anomaly_vlm.data.transforms.decode", decodes_nothing)
    assert all(map(same, dataset().__getitems__([0, 1, 2]), plain))
    Path(samples[0].path).write_bytes(Path(samples[1].path).read_bytes())  # another content under the same name
    assert torch.equal(dataset()[0].image, plain[1].image)
    with pytest.raises(AssertionError, match="decoded"):
        AnomalyDataset(samples, replace(SMALL, size=20), stored_pixels=first.stored_pixels)[0]


@given(arrays(np.uint8, st.tuples(st.integers(1, 5), st.integers(1, 5)), elements=st.sampled_from([0, 1, 7, 254, 255])))
def test_values_of_masks_are_the_distinct_ones(mask: np.ndarray) -> None:
    assert _values_of(mask).tolist() == np.unique(mask).tolist()
