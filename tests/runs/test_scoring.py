"""Batches that are predicted side by side."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from anomaly_vlm.runs.scoring import in_streams


@pytest.fixture
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("four_threads")
def test_results_come_in_order_from_threads_that_share_the_cores() -> None:
    """Each waits for its neighbour, so that all but the first must run two at a time; the second of a pair ends first."""
    pairs = threading.Barrier(2, timeout=30)
    ended = threading.Event()

    def work(i: int) -> tuple[int, int]:
        if i > 0:
            pairs.wait()
            if i % 2:
                ended.wait(30)
            else:
                ended.set()
        return i, torch.get_num_threads()

    assert list(in_streams(work, range(3), 2)) == [(0, 4), (1, 2), (2, 2)]
    assert torch.get_num_threads() == 4


@pytest.mark.usefixtures("four_threads")
def test_what_would_be_left_over_at_the_end_runs_before_on_all_threads() -> None:
    found = list(in_streams(lambda i: (i, torch.get_num_threads()), range(6), 2, alone=2))
    assert found == [(i, 4 if i < 2 else 2) for i in range(6)]


@pytest.mark.parametrize("streams", [1, 2])
def test_an_error_comes_at_its_place_and_ends_the_rest(streams: int) -> None:
    begun = []

    def work(i: int) -> int:
        begun.append(i)
        if i == 2:
            raise ValueError("broken")
        return i

    found = in_streams(work, range(100), streams)
    assert [next(found), next(found)] == [0, 1]
    with pytest.raises(ValueError, match="broken"):
        next(found)
    assert len(begun) <= 6


@pytest.mark.usefixtures("four_threads")
def test_a_reader_that_leaves_early_leaves_no_thread() -> None:
    found = in_streams(lambda i: i, range(100), 2)
    assert [next(found), next(found)] == [0, 1]
    found.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("stream")]
    assert torch.get_num_threads() == 4
