"""Batches that are made ahead, and the threads that make them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from anomaly_vlm.data import AnomalyDataModule, AnomalyDataset, Batch
from anomaly_vlm.data import threads as data_threads
from anomaly_vlm.data.loaders import MOST_AHEAD, AheadLoader
from anomaly_vlm.data.threads import side_by_side
from tests.data.made import PIXELS, Given, squares


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(data_threads.os, "cpu_count", lambda: 2)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_batches_are_those_made_one_by_one_and_encoded_before_they_are_handed_out() -> None:
    data = AnomalyDataset(squares(37), PIXELS)
    encoded: list[int] = []

    def encode(batch: Batch) -> None:
        encoded.extend(batch.index.tolist())
        batch.tokens = [{"mean": image.mean()} for image in batch.image]

    loader = AheadLoader(data, encode=encode, batch_size=5)
    assert len(loader) == 8 and loader.group == MOST_AHEAD // 5
    seen = 0
    for number, batch in enumerate(loader):
        alone = [data[i] for i in range(37)[5 * number : 5 * number + 5]]
        assert batch.index.tolist() == [item.index for item in alone]
        assert torch.equal(batch.image, torch.stack([item.image for item in alone]))
        assert batch.tokens is not None and batch.tokens[0] is not None
        assert batch.tokens[0]["mean"] == batch.image[0].mean()
        seen += len(batch)
        ahead = min(37, 15 * (1 + number // 3))
        assert sorted(encoded) == list(range(ahead))
    assert seen == 37


def test_one_large_batch_is_left_to_its_step() -> None:
    loader = AheadLoader(
        AnomalyDataset(squares(40), PIXELS), encode=lambda _: pytest.fail("encoded alone"), batch_size=20
    )
    assert loader.group == 1 and [len(batch) for batch in loader] == [20, 20]
    own_sizes = AnomalyDataset(squares(2), replace(PIXELS, fit="keep"))
    assert AheadLoader(own_sizes, batch_size=1).group == 1


def test_a_batch_is_encoded_on_as_many_threads_wherever_its_group_begins() -> None:
    used: dict[int, int] = {}

    def encode(batch: Batch) -> None:
        used[int(batch.index)] = torch.get_num_threads()

    samples = squares(MOST_AHEAD + 1)  # the last one is a group of its own
    assert len(list(AheadLoader(AnomalyDataset(samples, PIXELS), encode=encode, batch_size=1))) == len(samples)
    assert used == dict.fromkeys(range(len(samples)), 1)


def test_an_error_of_the_encoder_reaches_the_caller() -> None:
    def encode(batch: Batch) -> None:
        raise ValueError(f"no {batch.index.tolist()}")

    with pytest.raises(ValueError, match=r"no \[0\]"):
        next(iter(AheadLoader(AnomalyDataset(squares(4), PIXELS), encode=encode, batch_size=1)))
    assert torch.get_num_threads() == 2


def test_training_and_evaluation_encode_ahead_and_prediction_does_not() -> None:
    data = AnomalyDataModule(train=Given(squares(8)), test=Given(squares(8)), batch_size=2, eval_batch_size=2)
    data.preprocess, data.selection_side = PIXELS, "test"
    seen: list[int] = []
    data.encode_ahead(lambda batch: seen.extend(batch.index.tolist()))
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        seen.clear()
        assert sorted(i for batch in loader for i in batch.index.tolist()) == sorted(seen) == list(range(8))
    seen.clear()
    assert len(list(data.predict_dataloader())) == 4 and not seen


def test_what_is_made_side_by_side_comes_in_order_from_threads_that_share_torchs() -> None:
    pairs = threading.Barrier(2, timeout=30)

    def make(i: int) -> tuple[int, int]:
        pairs.wait()
        return i, torch.get_num_threads()

    assert side_by_side(make, range(6)) == [(i, 1) for i in range(6)]
    assert torch.get_num_threads() == 2
    alone = side_by_side(lambda i: (i, threading.current_thread()), range(3), most=1)
    assert alone == [(i, threading.main_thread()) for i in range(3)]
