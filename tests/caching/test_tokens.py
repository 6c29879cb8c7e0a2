"""Token cache: nothing wrong is ever read, nothing that goes wrong stops a run."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from anomaly_vlm.caching import entries
from anomaly_vlm.caching import tokens as module
from anomaly_vlm.caching.entries import read_entry
from anomaly_vlm.caching.tokens import TokenCache, clear, list_caches

ABOUT = {"weights": "abc", "layers": [24]}


def entry(seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "cls": torch.randn(8, generator=generator).to(dtype),
        "patches": torch.randn(1, 6, 8, generator=generator).to(dtype),
    }


def same(a: dict[str, torch.Tensor] | None, b: dict[str, torch.Tensor]) -> bool:
    return a is not None and a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_is_put_comes_back_bit_by_bit_in_another_process(tmp_path: Path, dtype: torch.dtype) -> None:
    TokenCache(ABOUT, folder=tmp_path).put("k1", entry(dtype=dtype))
    other = TokenCache(ABOUT, folder=tmp_path)
    assert same(other.get("k1"), entry(dtype=dtype))
    assert other.get("k2") is None and other.get(None) is None
    assert other.hits == 1


def test_another_kind_of_tokens_is_never_seen(tmp_path: Path) -> None:
    TokenCache(ABOUT, folder=tmp_path).put("k1", entry())
    assert TokenCache({**ABOUT, "layers": [12]}, folder=tmp_path).get("k1") is None
    assert len(list_caches(tmp_path)) == 2


def test_memory_alone_keeps_to_its_budget() -> None:
    size = sum(t.nbytes for t in entry().values())
    cache = TokenCache(ABOUT, memory_bytes=2 * size)
    for i in range(3):
        cache.put(f"k{i}", entry(i))
    assert [cache.get(f"k{i}") is not None for i in range(3)] == [True, True, False]


def test_a_copy_is_kept() -> None:
    cache, tokens = TokenCache(ABOUT, memory_bytes=10**6), entry()
    cache.put("k", tokens)
    tokens["cls"].zero_()
    assert same(cache.get("k"), entry())


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "junk", "no checksum"])
def test_a_damaged_entry_counts_as_absent(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    TokenCache(ABOUT, folder=tmp_path).put("k1", entry())
    (file,) = tmp_path.rglob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    replaced = {"truncate": content[:-4], "flip": content, "empty": b"", "junk": b"x" * 100}
    if damage in replaced:
        file.write_bytes(bytes(replaced[damage]))
    else:
        entries.save_file(entry(), file)
    assert TokenCache(ABOUT, folder=tmp_path).get("k1") is None
    assert "is damaged" in caplog.text and not file.exists()
    cache = TokenCache(ABOUT, folder=tmp_path)
    cache.put("k1", entry())
    assert same(TokenCache(ABOUT, folder=tmp_path).get("k1"), entry())


def test_a_full_disk_costs_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    cache = TokenCache(ABOUT, folder=tmp_path)
    monkeypatch.setattr(entries, "save_file", full)
    for i in range(3):
        cache.put(f"k{i}", entry())
    assert caplog.text.count("cannot be written") == 1 and "No space left" in caplog.text
    assert not list(tmp_path.rglob("*.unfinished"))


def test_a_folder_that_cannot_be_made_costs_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    cache = TokenCache(ABOUT, folder=tmp_path / "file", memory_bytes=10**6)
    cache.put("k", entry())
    assert caplog.text.count("cannot be written") == 1
    assert same(cache.get("k"), entry())  # the memory still works


def test_budget(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    size = sum(t.nbytes for t in entry().values())
    cache = TokenCache(ABOUT, folder=tmp_path, disk_bytes=2 * size)
    for i in range(4):
        cache.put(f"k{i}", entry(i))
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2
    assert caplog.text.count("reached its budget") == 1


def test_least_recently_used_caches_give_way(tmp_path: Path) -> None:
    for i, age in enumerate((9000, 5000, 0)):
        old = TokenCache({"kind": i}, folder=tmp_path)
        old.put("k", entry())
        assert old.place is not None
        os.utime(old.place / module.ABOUT, (time.time() - age,) * 2)
    total = sum(info.bytes for info in list_caches(tmp_path))
    TokenCache({"kind": 9}, folder=tmp_path, disk_bytes=total - 1)
    assert [info.about["kind"] for info in list_caches(tmp_path)] == [1, 2, 9]


def test_listing_and_clearing(tmp_path: Path) -> None:
    TokenCache(ABOUT, folder=tmp_path).put("k1", entry())
    (tmp_path / "not a cache").mkdir()
    (info,) = list_caches(tmp_path)
    assert (info.entries, info.about) == (1, ABOUT) and info.bytes > 0
    clear(info)
    assert list_caches(tmp_path) == [] and (tmp_path / "not a cache").exists()


WRITER = """
import sys, torch
from pathlib import Path
from anomaly_vlm.caching.tokens import TokenCache
cache = TokenCache({"weights": "abc", "layers": [24]}, folder=Path(sys.argv[1]))
i = 0
while True:
    cache.put(f"k{i % 20}", {"cls": torch.full((200_000,), float(i % 20))})
    i += 1
    if i == 3:
        print("going", flush=True)
"""


def test_killed_writers_leave_whole_entries_only(tmp_path: Path) -> None:
    """Two processes write the same entries; both are killed (-9) at once."""
    logging.disable(logging.NOTSET)
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        for writer in writers:
            assert writer.stdout is not None and writer.stdout.readline() == "going\n"
        time.sleep(0.3)
    finally:
        for writer in writers:
            writer.send_signal(signal.SIGKILL)
            writer.communicate()
    files = list(tmp_path.rglob("*.safetensors"))
    assert files
    for file in files:
        found = read_entry(file)
        assert found is not None and (found["cls"] == float(file.stem[1:])).all()


def test_only_what_a_cache_wrote_is_removed(tmp_path: Path) -> None:
    """A stranger's `about.json` makes no folder a cache; files that are not the cache's stay."""
    stranger = tmp_path / "photos"
    (stranger / "ab").mkdir(parents=True)
    (stranger / "about.json").write_text('{"weights": "x"}\n')
    (stranger / "ab" / "wedding.safetensors").write_bytes(b"1")
    cache = TokenCache({"weights": "x"}, folder=tmp_path, disk_bytes=10**6)
    cache.put("abcd", {"cls": torch.zeros(3)})
    assert cache.place is not None
    (cache.place / "notes.txt").write_text("mine")
    (info,) = list_caches(tmp_path)
    clear(info)
    assert [path.name for path in cache.place.iterdir()] == ["notes.txt"]
    assert (stranger / "ab" / "wedding.safetensors").is_file()
