"""Files that are whole or not there, digests of checkpoints, names that are shown harmlessly."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from anomaly_vlm.errors import UserError
from anomaly_vlm.files import (
    clear_unfinished,
    is_damaged,
    os_error_line,
    sealed,
    unique_folder,
    whole_bytes,
    whole_file,
    write_text,
)
from anomaly_vlm.methods.base.checkpoints import read_tensors
from anomaly_vlm.names import csv_cell, shown, slug
from anomaly_vlm.runs.saving import last_state
from anomaly_vlm.runs.trainer import WholeCheckpoints


def test_a_file_is_the_old_one_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    write_text(path, "old")
    with pytest.raises(RuntimeError), whole_file(path) as file:
        file.write("half")
        file.flush()
        assert path.read_text() == "old"
        raise RuntimeError
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["results.csv"]
    with whole_bytes(path, durable=False) as raw:
        raw.write(b"new")
    assert path.read_text() == "new"


def test_what_is_no_text_is_written_as_an_escape(tmp_path: Path) -> None:
    write_text(tmp_path / "x.json", json.dumps({"path": "a\udcff.png"}, ensure_ascii=False))
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {"path": "a\udcff.png"}


def archive(value: float = 1.0) -> bytes:
    buffer = io.BytesIO()
    torch.save({"state_dict": {"w": torch.full((50,), value)}}, buffer)
    return buffer.getvalue()


def test_every_flipped_bit_and_every_cut_is_recognised(tmp_path: Path) -> None:
    whole, path = sealed(archive()), tmp_path / "x.ckpt"
    path.write_bytes(whole)
    assert not is_damaged(path) and zipfile.is_zipfile(path)
    assert torch.load(path, weights_only=True)["state_dict"]["w"].sum() == 50
    for place in [*range(0, len(whole) - 90, 7), len(whole) - 1]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(UserError, match="damaged"):
            read_tensors(path)
    for length in (0, 1, 22, len(whole) // 2, len(whole) - 200, len(whole) - 90, len(whole) - 30):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"does not load|is damaged"):
            read_tensors(path)


def test_the_state_before_takes_the_place_of_a_damaged_one(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    writer, last = WholeCheckpoints(), tmp_path / "checkpoints" / "last.ckpt"
    assert last_state(tmp_path) is None
    for value in (1.0, 2.0):
        writer.save_checkpoint({"state_dict": {"w": torch.full((3,), value)}}, last)
    assert last_state(tmp_path) == last and capfd.readouterr().out == ""
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content)
    assert last_state(tmp_path) == last
    assert read_tensors(last)["state_dict"]["w"][0] == 1
    out = capfd.readouterr().out
    assert out.count("\n") == 1 and "resumes from the state before it" in out
    last.unlink()
    assert last_state(tmp_path) == last  # the only name that is left is that of the state before
    (tmp_path / "checkpoints" / "previous.ckpt").write_bytes(b"x")
    last.write_bytes(b"y")
    with pytest.raises(UserError, match="so is the state before it"):
        last_state(tmp_path)


def test_two_runs_of_one_second_get_two_folders(tmp_path: Path) -> None:
    names = [unique_folder(tmp_path / "runs" / "12-00-00").name for _ in range(3)]
    assert names == ["12-00-00", "12-00-00_2", "12-00-00_3"]


def test_os_errors_in_one_line() -> None:
    line = os_error_line(OSError(28, "No space left on device", "/x/.last.ckpt.77.unfinished"))
    assert line.startswith("'/x/last.ckpt': No space left on device: free space")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("metal nut", "metal nut"),
        ("a\nb\r\tc", "a\\nb\\r\\tc"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("bad\udcffbyte", "bad\\udcffbyte"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("métal 螺母", "métal 螺母"),
    ],
)
def test_names_are_shown_harmlessly(text: str, expected: str) -> None:
    assert shown(text) == expected


def test_cells_are_no_formulas_and_numbers_stay_numbers() -> None:
    assert [csv_cell(t) for t in ("=1+1", "@x", "-x", "-0.5", "+1e-3", "gear", 3)] == [
        "'=1+1", "'@x", "'-x", "-0.5", "+1e-3", "gear", "3",
    ]  # fmt: skip


def test_slugs_fit_into_file_names_and_stay_different() -> None:
    one, two = slug("x" * 300), slug("x" * 301)
    assert one != two and len(one) < 100
    assert slug("..") == slug("\x1b") == "image"


def test_what_a_killed_writer_left_is_removed_and_what_is_being_written_stays(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left, busy = (tmp_path / f"pictures/.a.png.{pid}.unfinished" for pid in (gone.pid, os.getpid()))
    left.parent.mkdir()
    for path in (left, busy, tmp_path / "a.unfinished"):
        path.touch()
    clear_unfinished(tmp_path)
    assert not left.exists() and busy.exists() and (tmp_path / "a.unfinished").exists()
