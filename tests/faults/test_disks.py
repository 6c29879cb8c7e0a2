"""Full, read-only and vanished folders: one line, status 2, and what is there is whole."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import TRAIN, Outcome, Server, check_whole, same_run
from tests.faults.test_kills import operations, spread


def check_refused(outcome: Outcome, folder: Path) -> None:
    assert outcome.status == 2, (outcome.status, outcome.err)
    assert outcome.line
    if folder.is_dir():
        check_whole(folder)


@pytest.mark.parametrize("size", [2_000, 300_000])
def test_files_cannot_grow(size: int, server: Server, tmp_path: Path) -> None:
    check_refused(server([*TRAIN, "output_dir=run"], tmp_path, largest_file=size), tmp_path / "run")


# Below a few hundred bytes the line itself, which goes to a file here, is cut.
@pytest.mark.faults
@pytest.mark.parametrize("size", [1_000, 2_500, 3_000, 5_000, 10_000, 30_000, 100_000, 500_000, 900_000])
def test_files_cannot_grow_at_all_sizes(
    size: int, server: Server, whole: Path, tmp_path: Path, counted: Callable[..., None]
) -> None:
    outcome = server([*TRAIN, "output_dir=run"], tmp_path, largest_file=size)
    check_refused(outcome, tmp_path / "run")
    again = server([*TRAIN, "output_dir=run"], tmp_path)
    assert again.status == 0, again.err
    assert same_run(tmp_path / "run", whole)
    counted("file size limit")


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a small file system in memory, where that is allowed."""
    place, mounted = tmp_path / "mounted", []

    def make(options: str) -> Path:
        place.mkdir(exist_ok=True)
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True)
        if done.returncode:
            pytest.skip("no file system can be mounted here")
        mounted.append(place)
        return place

    yield make
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.faults
@pytest.mark.parametrize("size", ["16k", "64k", "500k", "1100k", "1500k", "2200k"])
def test_full_file_system(size: str, server: Server, tmp_path: Path, mount, counted: Callable[..., None]) -> None:
    place = mount(f"size={size}")
    check_refused(server([*TRAIN, f"output_dir={place / 'run'}"], tmp_path), place / "run")
    counted("full file system")


@pytest.mark.faults
def test_read_only(server: Server, whole: Path, tmp_path: Path, mount, counted: Callable[..., None]) -> None:
    place = mount("size=1M,ro")
    for words in (
        [*TRAIN, f"output_dir={place / 'run'}"],
        ["evaluate", f"ckpt={whole / 'checkpoints/last.ckpt'}", f"output_dir={place / 'run'}"],
        ["sweep", *TRAIN[1:], "seed=0,1", f"hydra.sweep.dir={place / 'run'}"],
        ["data", "dataset=procedural", f"sheet={place / 'sheet.png'}"],
    ):
        check_refused(server(words, tmp_path), place / "run")
        counted("read-only folder")


def test_the_folder_vanishes(server: Server, whole: Path, tmp_path: Path) -> None:
    for at in spread(operations(whole), 5)[2:3]:
        vanish(server, tmp_path, at)


@pytest.mark.faults
def test_the_folder_vanishes_at_any_operation(
    server: Server, whole: Path, tmp_path: Path, counted: Callable[..., None]
) -> None:
    for at in spread(operations(whole), 8)[1:-1]:
        vanish(server, tmp_path, at)
        counted("output folder vanishes")


def vanish(server: Server, folder: Path, at: int) -> None:
    name = f"run_{at}"
    outcome = server([*TRAIN, f"output_dir={name}"], folder, watch=str(folder / name), action="vanish", at=at)
    check_refused(outcome, folder / f"{name}.gone")
    assert not (folder / name).exists() or not any((folder / name).rglob("*.json"))


def test_no_folder_for_temporary_files(server: Server, whole: Path, tmp_path: Path) -> None:
    """Nothing needs one, and checkpoints do not go through it."""
    outcome = server([*TRAIN, "output_dir=run"], tmp_path, env={"TMPDIR": str(tmp_path / "none")})
    assert outcome.status == 0, outcome.err
    assert same_run(tmp_path / "run", whole)


@pytest.mark.faults
def test_full_folder_for_temporary_files(
    server: Server, whole: Path, tmp_path: Path, mount, counted: Callable[..., None]
) -> None:
    place = mount("size=4k")
    (place / "filled").write_bytes(bytes(4096))
    outcome = server([*TRAIN, "output_dir=run"], tmp_path, env={"TMPDIR": str(place)})
    assert outcome.status == 0, outcome.err
    assert same_run(tmp_path / "run", whole)
    counted("no folder for temporary files")


def test_a_report_is_shown_where_nothing_can_be_written(server: Server, whole: Path, tmp_path: Path) -> None:
    (tmp_path / "runs" / "sweep.csv").mkdir(parents=True)  # where the table would be written
    (tmp_path / "runs" / "one").symlink_to(whole)
    shutil.copytree(whole, tmp_path / "runs" / "two")
    outcome = server(["report", "runs=runs"], tmp_path)
    assert outcome.status == 0, outcome.err
    assert "pixel AUROC" in outcome.out and "not written" in outcome.out
