"""The journal of a prediction: what is damaged in it does not count."""

from __future__ import annotations

from pathlib import Path

import pytest

from anomaly_vlm.runs.journal import BatchPositions, Finished, Journal, still_true

ENTRY = Finished(3, "parts/\udcffé.png", (120, 99), ["parts/é.png", "0.5", "", "", "pictures/e.png"], [["a", "1"]])


def test_a_flipped_bit_or_a_cut_is_recognised(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", "key")
    journal.begin()
    journal.add(ENTRY)
    assert journal.read() == (True, {3: ENTRY})
    assert Journal(tmp_path / "j", "other").read() == (False, {3: ENTRY})
    line = (tmp_path / "j").read_bytes().splitlines(keepends=True)[1]
    for place in range(len(line)):
        for bit in range(8):
            flipped = line[:place] + bytes([line[place] ^ 1 << bit]) + line[place + 1 :]
            assert Finished.read(flipped) in (None, ENTRY)  # the latter where a blank became another one
        assert Finished.read(line[:place]) is None


@pytest.mark.parametrize("line", [b"", b"\n", b"null\n", b"[1]\n", b"[0, {}]\n", b"[" * 20_000, b'[0, {"index": 1}]\n'])
def test_other_lines_do_not_count(line: bytes) -> None:
    assert Finished.read(line) is None


def test_what_changed_since_does_not_count(tmp_path: Path) -> None:
    paths, states, names = ["", "", "", ENTRY.path], [(0, 0)] * 3 + [ENTRY.state], {3: "pictures/e.png"}
    assert still_true({3: ENTRY}, paths, states, names, None) == {3: ENTRY}
    assert not still_true({3: ENTRY}, paths, states, names, tmp_path)  # its picture is gone
    assert not still_true({3: ENTRY}, paths, states, {3: "pictures/e_2.png"}, None)
    assert not still_true({3: ENTRY}, paths, [(0, 0)] * 4, names, None)
    assert not still_true({3: ENTRY}, paths[:3], states[:3], {}, None)


def test_batches_are_whole_or_not_there() -> None:
    batches = BatchPositions(2, 5)
    assert batches.whole({0, 2, 3, 4}) == {2, 3, 4}
    assert batches.touched({1, 4}) == {0, 1, 4}
