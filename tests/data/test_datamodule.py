"""The data module: what it says, what it refuses, its loaders."""

from __future__ import annotations

import traceback
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from anomaly_vlm.data import AnomalyDataModule, Sample
from anomaly_vlm.data.augment import TrainingAugmentation
from anomaly_vlm.errors import UserError
from anomaly_vlm.reporting.describe import describe_data
from tests.data.made import PIXELS, Given, Square, squares
from tests.data.trees import picture


def module(count: int = 10, **options) -> AnomalyDataModule:
    data = AnomalyDataModule(**{"train": Given(squares(count)), "test": Given(squares(7), "tiles"), **options})
    data.preprocess = PIXELS
    return data


def on_rank(data: AnomalyDataModule, rank: int, world_size: int) -> AnomalyDataModule:
    """The data module as a trainer with several processes sees it, at the start of a run."""
    progress = SimpleNamespace(current=SimpleNamespace(ready=0))
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress), epoch_progress=progress)
    facts = {"global_rank": rank, "world_size": world_size, "current_epoch": 0, "limit_train_batches": None}
    data.trainer = SimpleNamespace(fit_loop=loop, **facts)  # type: ignore[assignment]
    return data


def test_describe_says_what_is_used() -> None:
    data = module(1200, limits={"train": 50}, val=Given(squares(1)))
    assert describe_data(data).train == "trained on squares (50 of 1,200 images)"
    assert describe_data(data).sides["test"] == "tested on tiles (7 images)"
    assert describe_data(data).whole == (
        "trained on squares (50 of 1,200 images), validated on squares (1 image), tested on tiles (7 images)"
    )
    noted = Given(squares(4))
    noted.note = "train split, gear"  # type: ignore[attr-defined]
    assert describe_data(AnomalyDataModule(test=noted)).whole == "tested on squares (train split, gear; 4 images)"


def test_sides_that_are_absent_or_empty() -> None:
    data = AnomalyDataModule(test=Given([]))
    with pytest.raises(UserError, match=r"no train set: choose one with source@dataset\.train=NAME"):
        data.samples("train")
    with pytest.raises(UserError, match="squares has no images for side test"):
        data.samples("test")
    with pytest.raises(RuntimeError, match="preprocess is not set"):
        AnomalyDataModule(test=Given(squares(1))).dataset("test")


def test_unlabelled_images_can_be_predicted_but_not_trained_or_tested() -> None:
    heap = Given([replace(sample, label=None, kind="none") for sample in squares(3)], "heap")
    data = module(train=heap, test=heap)
    with pytest.raises(
        UserError, match=r"the train set heap has no labels \('squares/gear/00000'\): sort the images into good/"
    ):
        data.samples("train")
    with pytest.raises(UserError, match=r"the test set has no labels .* or use 'predict'"):
        data.test_dataloader()
    (batch,) = data.predict_dataloader()
    assert (batch.label.tolist(), batch.mask, batch.index.tolist()) == ([-1] * 3, None, [0, 1, 2])


def test_evaluation_is_in_order_and_repeatable() -> None:
    data = module(eval_batch_size=3, batch_size=4)
    batches = list(data.test_dataloader())
    assert [len(batch) for batch in batches] == [3, 3, 1]
    assert torch.cat([batch.index for batch in batches]).tolist() == list(range(7))
    again = torch.cat([batch.image for batch in data.test_dataloader()])
    assert torch.equal(again, torch.cat([batch.image for batch in batches]))


def test_training_is_shuffled_and_covers_all_without_touching_the_global_generator() -> None:
    data = module(batch_size=4)
    before = torch.get_rng_state()
    first = torch.cat([batch.index for batch in data.train_dataloader()]).tolist()
    assert torch.equal(torch.get_rng_state(), before)
    assert sorted(first) == list(range(10))
    assert first != list(range(10))
    assert torch.cat([batch.index for batch in module(batch_size=3).train_dataloader()]).tolist() == first
    assert torch.cat([batch.index for batch in module(seed=1).train_dataloader()]).tolist() != first


def test_validation_serves_the_side_that_selects() -> None:
    data = module(val=Given(squares(5)))
    assert data.val_dataloader() == []
    data.selection_side = "val"
    assert sum(len(batch) for batch in data.val_dataloader()) == 5
    data.selection_side = "test"
    assert sum(len(batch) for batch in data.val_dataloader()) == 7


def test_limits_hold_for_their_sides() -> None:
    data = module(10, limits={"train": 4, "val": 3, "test": 3}, val=Given(squares(9)))
    assert [len(data.samples(side)) for side in ("train", "val", "test")] == [4, 3, 3]
    assert data.samples("train") is data.samples("train")


def test_ranks_share_the_work() -> None:
    tested: list[int] = []
    trained: list[list[int]] = []
    for rank in range(3):
        data = on_rank(module(batch_size=2), rank, 3)
        tested += torch.cat([batch.index for batch in data.test_dataloader()]).tolist()
        trained.append(torch.cat([batch.index for batch in data.train_dataloader()]).tolist())
    assert sorted(tested) == list(range(7))
    assert {len(share) for share in trained} == {4}
    assert {i for share in trained for i in share} == set(range(10))
    with pytest.raises(UserError, match="7 images for 8 processes"):
        on_rank(module(), 0, 8).test_dataloader()


def test_mosaic_and_augmentation_touch_training_only() -> None:
    data = module(augment=TrainingAugmentation(mosaic=1.0))
    assert {data.dataset("train")[0, i].key for i in range(4)} == {None}
    assert None not in {data.dataset("test")[i].key for i in range(4)}
    assert data.dataset("train") is data.dataset("train")


def test_cache_is_for_the_main_process_only() -> None:
    data = module()
    data.evaluations = 2
    assert data.dataset("test").cache is data.dataset("train").cache is not None
    assert module(cache_mb=0).dataset("train").cache is None
    assert module(num_workers=1).dataset("train").cache is None


def test_pixels_that_are_read_once_are_not_kept() -> None:
    """A prediction over a whole production day holds no picture of it."""
    assert module().dataset("test").cache is None


def test_worker_processes_give_the_same_batches() -> None:
    plain, forked = (module(num_workers=n, augment=TrainingAugmentation(mosaic=0.5), batch_size=3) for n in (0, 2))
    for a, b in zip(plain.train_dataloader(), forked.train_dataloader(), strict=True):
        assert torch.equal(a.image, b.image)
        assert (a.path, a.key) == (b.path, b.key)


@pytest.mark.parametrize("workers", [0, 1])
def test_file_that_fails_in_decoding_is_one_line(tmp_path, workers: int) -> None:
    path = picture(tmp_path / "x.png", size=(64, 64))
    content = bytearray(path.read_bytes())
    place = content.index(b"IDAT") + 6
    content[place : place + 4] = b"\xff\xff\xff\xff"  # the header and the end are as they were
    path.write_bytes(content)
    data = module(test=Given([Sample(str(path), "x", 0)]), num_workers=workers)
    data.check()
    with pytest.raises(UserError) as caught:
        list(data.test_dataloader())
    message = str(caught.value)
    traceback.clear_frames(caught.tb)  # ends the loader's processes at once
    assert message.startswith(f"image file '{path}' cannot be read (")
    assert "Traceback" not in message


def test_check_looks_at_all_sides(tmp_path) -> None:
    bad = Given([Sample(str(tmp_path / "x.png"), "x", 0)])
    module().check()
    for side in ("train", "val", "test"):
        with pytest.raises(UserError, match=r"x\.png' is missing"):
            module(**{side: bad}).check()


def test_images_of_any_size_meet_in_one_batch() -> None:
    sizes = [(16, 16), (9, 30), (40, 8)]
    samples = [replace(s, drawing=Square(5, True, size)) for s, size in zip(squares(3), sizes, strict=True)]
    (batch,) = module(test=Given(samples)).test_dataloader()
    assert tuple(batch.image.shape) == (3, 3, 8, 8)
