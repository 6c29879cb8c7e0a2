"""The token cache in whole runs: the same numbers with it and without, nothing stale, nothing computed twice."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from anomaly_vlm.backbone import ClipBackbone
from anomaly_vlm.caching import entries
from anomaly_vlm.caching.entries import read_entry
from anomaly_vlm.caching.tokens import list_caches
from anomaly_vlm.cli import main
from anomaly_vlm.data import dataset
from anomaly_vlm.data.transforms import read_resized
from anomaly_vlm.data.types import Preprocess, Sample
from tests.e2e.conftest import QUICK, results

pytestmark = pytest.mark.e2e


@pytest.fixture
def tiles(tmp_path: Path) -> Path:
    """Magnetic tiles of the real layout: three free, three with a blowhole."""
    for kind, count in (("Free", 3), ("Blowhole", 3)):
        folder = tmp_path / "tiles" / f"MT_{kind}" / "Imgs"
        folder.mkdir(parents=True)
        for i in range(count):
            pixels = np.random.default_rng([kind == "Free", i]).integers(0, 255, (30, 20), dtype=np.uint8)
            mask = np.zeros((30, 20), np.uint8)
            if kind == "Blowhole":
                mask[8:18, 5:15] = 255
                pixels[mask > 0] //= 4
            Image.fromarray(pixels).save(folder / f"exp1_num_{i}.jpg", quality=95)
            Image.fromarray(mask).save(folder / f"exp1_num_{i}.png")
    return tmp_path / "tiles"


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collects the sizes of the batches that pass the image tower."""
    sizes: list[int] = []
    encode = ClipBackbone.encode_image

    def counting(self: ClipBackbone, images: torch.Tensor, **kwargs):
        sizes.append(len(images))
        return encode(self, images, **kwargs)

    monkeypatch.setattr(ClipBackbone, "encode_image", counting)
    return sizes


def words(tiles: Path, method: str, out: Path, *more: str) -> list[str]:
    kept = [w for w in QUICK if not w.startswith(("method=", "method.hsf", "train_limit", "eval_limit"))]
    sides = ["source@dataset.train=magnetic_tile", "source@dataset.test=magnetic_tile"]
    roots = [f"dataset.train.root={tiles}", f"dataset.test.root={tiles}"]
    return ["train", f"method={method}", *kept, *sides, *roots, "batch_size=4", "compare_untrained=false",
            "pictures.per_category=0", "epochs=3", f"output_dir={out}", *more]  # fmt: skip


def learned(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def check_same_run(run: Path, reference: Path) -> None:
    """The same weights and the same table, up to the rounding of batches of other sizes in the tower."""
    expected = learned(reference)
    for key, value in learned(run).items():
        torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=1e-6, msg=f"{run.name}: {key}")
    for key, value in results(reference).items():
        assert (value is None) or results(run)[key] == pytest.approx(value, abs=1e-4), f"{run.name}: {key}"


@pytest.mark.parametrize("method", ["anomalyclip", pytest.param("faprompt", marks=pytest.mark.slow)])
def test_the_same_numbers_with_and_without(method: str, tiles: Path, tmp_path: Path, encoded: list[int]) -> None:
    assert main(words(tiles, method, tmp_path / "off", "cache.tokens=off")) == 0
    assert sum(encoded) == 1 + 6 * 3 + 6  # the step that is tried first, three epochs, the evaluation
    encoded.clear()
    assert main(words(tiles, method, tmp_path / "disk")) == 0
    assert sum(encoded) == 6  # every image once
    encoded.clear()
    assert main(words(tiles, method, tmp_path / "again")) == 0
    assert sum(encoded) == 0  # another run reads what the first one wrote
    assert main(words(tiles, method, tmp_path / "memory", "cache.tokens=memory")) == 0
    assert sum(encoded) == 6
    for run in ("disk", "again", "memory"):
        check_same_run(tmp_path / run, tmp_path / "off")


def test_changed_images_and_weights_are_computed_anew(tiles: Path, tmp_path: Path, encoded: list[int]) -> None:
    assert main(words(tiles, "anomalyclip", tmp_path / "first")) == 0
    changed = tiles / "MT_Free" / "Imgs" / "exp1_num_0.jpg"
    with Image.open(changed) as image:
        image.rotate(180).save(changed)
    encoded.clear()
    assert main(words(tiles, "anomalyclip", tmp_path / "second")) == 0
    assert sum(encoded) == 1
    encoded.clear()
    assert main(words(tiles, "anomalyclip", tmp_path / "third", "backbone.random_seed=1")) == 0
    assert sum(encoded) == 6
    assert len(list_caches(tmp_path / "cache")) == 2


def test_augmented_images_pass_the_cache_by(
    tiles: Path, tmp_path: Path, encoded: list[int], capsys: pytest.CaptureFixture
) -> None:
    assert main(words(tiles, "anomalyclip", tmp_path / "run", "augment.mosaic=1.0")) == 0
    assert "token cache: off for training images" in capsys.readouterr().out
    assert sum(encoded) == 1 + 6 * 3 + 6


def test_listing_and_clearing(tiles: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(words(tiles, "anomalyclip", tmp_path / "run", "epochs=1")) == 0
    capsys.readouterr()
    assert main(["cache"]) == 0
    assert "tiny_random" in (out := capsys.readouterr().out) and "vv_from" in out
    (info,) = list_caches(tmp_path / "cache")
    assert main(["cache", "clear=nonsense"]) == 2
    assert main(["cache", f"clear={info.place.name}"]) == 0
    assert list_caches(tmp_path / "cache") == []
    assert main(["cache"]) == 0
    assert "no token caches" in capsys.readouterr().out


def test_heat_maps_of_images_that_come_from_the_cache(tiles: Path, tmp_path: Path, encoded: list[int]) -> None:
    """Their pixels were not read for the evaluation; the pictures are those of the run without a cache."""
    for run, more in (("off", "cache.tokens=off"), ("kept", "cache.tokens=disk")):
        assert main(words(tiles, "anomalyclip", tmp_path / run, "epochs=1", "pictures.per_category=2", more)) == 0
    pictures = sorted(path.relative_to(tmp_path / "off") for path in (tmp_path / "off" / "pictures").rglob("*.jpg"))
    assert pictures == sorted(
        path.relative_to(tmp_path / "kept") for path in (tmp_path / "kept" / "pictures").rglob("*.jpg")
    )
    assert pictures
    for name in pictures:
        with Image.open(tmp_path / "off" / name) as off, Image.open(tmp_path / "kept" / name) as kept:
            difference = np.abs(np.asarray(off, dtype=int) - np.asarray(kept, dtype=int))
        assert difference.mean() < 0.5, name  # a last digit of a colour, as JPEG spreads it
    images, ckpt = tiles / "MT_Blowhole" / "Imgs", tmp_path / "kept" / "checkpoints" / "last.ckpt"
    for run in ("first", "second"):
        encoded.clear()
        assert main(["predict", f"ckpt={ckpt}", f"images={images}", f"output_dir={tmp_path / run}"]) == 0
    assert encoded == []
    pictures = list((tmp_path / "second" / "pictures").glob("*.jpg"))
    assert len(pictures) == len(list(images.glob("*.jpg")))  # the masks beside them are not scored


# ---- faults ----------------------------------------------------------------------------------------------------------

DYING = """
import os, signal, sys
from pathlib import Path
from safetensors.torch import save
from anomaly_vlm.caching import entries as cache
from anomaly_vlm.cli import main

left, whole = int(sys.argv[1]), cache.save_file

def dying(tensors, path, metadata):
    global left
    if left == 0:
        content = save(tensors, metadata)
        Path(path).write_bytes(content[: len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    whole(tensors, path, metadata)

cache.save_file = dying
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
def test_killed_while_it_writes_an_entry(tiles: Path, tmp_path: Path, encoded: list[int]) -> None:
    """A training dies (kill -9) with its third entry half written: the next one takes the two whole ones, no more."""
    command = [sys.executable, "-c", DYING, "2", *words(tiles, "faprompt", tmp_path / "killed")]
    assert subprocess.run(command, capture_output=True, timeout=120).returncode == -signal.SIGKILL
    assert len(list((tmp_path / "cache").rglob("*.unfinished"))) == 1
    assert [info.entries for info in list_caches(tmp_path / "cache")] == [2]
    assert main(words(tiles, "faprompt", tmp_path / "next")) == 0
    assert sum(encoded) == 6 - 2
    assert main(words(tiles, "faprompt", tmp_path / "off", "cache.tokens=off")) == 0
    check_same_run(tmp_path / "next", tmp_path / "off")


OTHER = """
import sys, time
from pathlib import Path
import anomaly_vlm.runs.fit
from anomaly_vlm.caching import entries as cache
from anomaly_vlm.cli import main
from tests.e2e.test_token_cache import lingering

cache.save_file = lingering(cache.save_file)
ready, go = Path(sys.argv[1]), Path(sys.argv[2])
ready.touch()
while not go.exists():
    time.sleep(0.01)
sys.exit(main(sys.argv[3:]))
"""


def lingering(write: Callable[..., None]) -> Callable[..., None]:
    """Stays a while before the entry is moved to its place, so that two processes are at work on the same ones."""

    def slow(*args: Any, **kwargs: Any) -> None:
        write(*args, **kwargs)
        time.sleep(0.2)

    return slow


@pytest.mark.slow
def test_two_trainings_build_one_cache_at_once(tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ready, go = tmp_path / "ready", tmp_path / "go"
    arguments = [str(ready), str(go), *words(tiles, "anomalyclip", tmp_path / "other")]
    other = subprocess.Popen(
        [sys.executable, "-c", OTHER, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    try:
        assert main(words(tiles, "anomalyclip", tmp_path / "off", "cache.tokens=off")) == 0
        while not ready.exists() and other.poll() is None:
            time.sleep(0.01)
        go.touch()
        monkeypatch.setattr(entries, "save_file", lingering(entries.save_file))
        assert main(words(tiles, "anomalyclip", tmp_path / "this")) == 0
        output, _ = other.communicate(timeout=120)
    finally:
        other.kill()
        other.wait()
    assert other.returncode == 0 and "token cache" not in output, output
    for run in ("this", "other"):
        check_same_run(tmp_path / run, tmp_path / "off")
    files = list((tmp_path / "cache").rglob("*/*/*"))
    assert len(files) == 6 and all(read_entry(file) is not None for file in files)


def test_a_disk_that_fills_up_during_a_run(
    tiles: Path, tmp_path: Path, encoded: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Two entries find room; the run continues with them, and computes the others in every epoch."""
    whole, written = entries.save_file, []

    def filling(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        if len(written) == 2:
            path.write_bytes(b"half an entry")
            raise OSError(28, "No space left on device")
        written.append(path)
        whole(tensors, path, metadata)

    monkeypatch.setattr(entries, "save_file", filling)
    assert main(words(tiles, "anomalyclip", tmp_path / "full", "cache.memory_gb=0")) == 0
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING and "cache" in record.message]
    assert len(warnings) == 1 and "No space left" in warnings[0].message
    assert not list((tmp_path / "cache").rglob("*.unfinished"))
    assert (
        sum(encoded) == 6 + 3 * 4
    )  # all in the first epoch; in two more and in the evaluation those that found no room
    assert main(words(tiles, "anomalyclip", tmp_path / "off", "cache.tokens=off")) == 0
    check_same_run(tmp_path / "full", tmp_path / "off")


@pytest.mark.slow
def test_the_processes_of_a_run_share_one_cache(tiles: Path, tmp_path: Path) -> None:
    for run, mode in (("off", "off"), ("disk", "disk")):
        command = words(tiles, "anomalyclip", tmp_path / run, f"cache.tokens={mode}", "trainer=ddp_cpu", "batch_size=2")
        done = subprocess.run(
            [sys.executable, "-m", "anomaly_vlm.cli", *command], capture_output=True, text=True, timeout=180
        )
        assert done.returncode == 0, done.stderr
    check_same_run(tmp_path / "disk", tmp_path / "off")
    assert [info.entries for info in list_caches(tmp_path / "cache")] == [6]


@pytest.mark.slow
def test_resized_images_are_read_by_the_next_run(tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []

    def counting(sample: Sample, preprocess: Preprocess) -> Any:
        decoded.append(sample.path)
        return read_resized(sample, preprocess)

    monkeypatch.setattr(dataset, "read_resized", counting)
    for run, more, count in (("first", (), 6), ("again", (), 0), ("drafts", ("pixels.decode=draft",), 6)):
        line = ["evaluate", "method=winclip", "backbone=tiny_random", "dataset=magnetic_tile", "image_size=32"]
        line += [f"dataset.test.root={tiles}", "pictures.per_category=0", "cache.tokens=off", "cache.pixels=true"]
        decoded.clear()
        assert main([*line, f"output_dir={tmp_path / run}", *more]) == 0
        assert len(decoded) == count, run
    assert results(tmp_path / "again") == results(tmp_path / "first")
