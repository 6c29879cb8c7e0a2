"""Whether two image files hold the same: by their beginning first, then by all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from anomaly_vlm.data.overlap import HEAD, content_keys, contents, from_record, shared_images, to_tensor
from anomaly_vlm.data.types import Sample


def stored(folder: Path, **files: bytes) -> list[Sample]:
    found = []
    for name, content in files.items():
        (folder / name).write_bytes(content)
        found.append(Sample(str(folder / name), "object", 0))
    return found


@pytest.fixture
def alike(tmp_path: Path) -> list[Sample]:
    """Two files that differ behind their beginning, and a copy of the first one."""
    start = bytes(HEAD)
    return stored(tmp_path, a=start + b"1" * 9, b=start + b"2" * 9, copy=start + b"1" * 9)


def test_files_that_differ_behind_their_beginning_are_different(alike: list[Sample]) -> None:
    assert shared_images(alike, contents(alike[:1])) == [alike[0].path, alike[2].path]
    assert shared_images(alike, from_record(to_tensor(contents(alike[1:2])))) == [alike[1].path]


def test_the_numbers_of_old_checkpoints_are_those_of_beginnings(alike: list[Sample]) -> None:
    old = content_keys(alike[:1])
    for record in (torch.tensor(old), old):
        assert shared_images(alike, from_record(record)) == [sample.path for sample in alike]
    assert from_record(None) == [] and to_tensor([]).shape == (0, 2)


def test_files_that_cannot_be_read_are_themselves_alone(tmp_path: Path) -> None:
    absent = [Sample(str(tmp_path / name), "object", 0) for name in "ab"]
    assert shared_images(absent, contents(absent[:1])) == [absent[0].path]
