"""A long run needs no more memory at its end than after its first images, and leaves no handle open."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

IMAGES = int(os.environ.get("ANOMALY_VLM_SOAK", "5000"))
WARM, GROWTH = 0.1, 1.02  # the first tenth fills pools and caches; afterwards at most 2 % more
WINCLIP = ["method=winclip", "backbone=tiny_random", "image_size=32", "trainer=cpu", "cache.tokens=off"]
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of many small pictures, a quarter of them with a defect, in the layout of `folder`."""
    root = tmp_path_factory.mktemp("parts")
    pixels = np.random.default_rng(0).integers(0, 255, (16, 40, 48, 3), dtype=np.uint8)
    for kind in ("good", "dent"):
        (root / kind).mkdir()
    for i in range(IMAGES):
        Image.fromarray(np.roll(pixels[i % 16], i // 16, axis=0)).save(
            root / ("good" if i % 4 else "dent") / f"{i:05d}.bmp"
        )
    return root


@pytest.fixture(scope="module")
def masked(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pictures with a mask for each that has a defect."""
    root = tmp_path_factory.mktemp("masked")
    (root / "ground_truth" / "dent").mkdir(parents=True)
    for kind in ("good", "dent"):
        (root / kind).symlink_to(parts / kind)
    for picture in (parts / "dent").iterdir():
        mask = np.zeros((40, 48), np.uint8)
        place = int(picture.stem) % 30
        mask[place : place + 8, 10:20] = 255
        Image.fromarray(mask).save(root / "ground_truth" / "dent" / f"{picture.stem}.png")
    return root


OVER = """
import os, sys
from anomaly_vlm.cli import main
from anomaly_vlm.methods.winclip.method import WinCLIP
predict, images = WinCLIP.predict, 0
def watched(self, batch):
    global images
    with open("/proc/self/statm") as file:
        resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    print("resident", images, resident, len(os.listdir("/proc/self/fd")), flush=True)
    images += len(batch)
    return predict(self, batch)
WinCLIP.predict = watched
sys.exit(main(sys.argv[1:]))
"""


def check_flat(command: list[str], folder: Path) -> None:
    """Runs a command that scores all images: after the first of them it needs at most 2 % more, and opens nothing more.

    Memory is read in front of every batch, so that the machine's load decides nothing.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    words = [sys.executable, "-c", OVER, *command, *WINCLIP, "callbacks.progress=none", f"output_dir={folder / 'run'}"]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [tuple(map(int, line.split()[1:])) for line in done.stdout.splitlines() if line.startswith("resident")]
    assert rows[-1][0] >= IMAGES - 8
    early = [row for row in rows if WARM * IMAGES / 2 < row[0] <= WARM * IMAGES]
    late = [row for row in rows if row[0] > WARM * IMAGES]
    assert max(row[1] for row in late) <= GROWTH * max(row[1] for row in early)
    assert max(row[2] for row in late) <= max(row[2] for row in early)


pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="reads Linux's /proc"),
]


def test_prediction_needs_no_more_memory_in_the_end(parts: Path, tmp_path: Path, counted: Callable[..., None]) -> None:
    check_flat(["predict", f"images={parts}", "pictures=worst"], tmp_path)
    counted("thousands of images, prediction", IMAGES)


def test_evaluation_needs_no_more_memory_in_the_end(parts: Path, tmp_path: Path, counted: Callable[..., None]) -> None:
    check_flat(["evaluate", "dataset=folder", f"dataset.test.root={parts}", "pictures.per_category=0"], tmp_path)
    counted("thousands of images, evaluation", IMAGES)


def test_evaluation_with_masks_needs_no_more_memory_where_bins_bound_it(
    masked: Path, tmp_path: Path, counted: Callable[..., None]
) -> None:
    """Exact metrics of pixels keep every pixel's score, as they must."""
    words = ["evaluate", "dataset=folder", f"dataset.test.root={masked}", "pictures.per_category=0"]
    check_flat([*words, "metrics.mode=binned"], tmp_path)
    results = json.loads((tmp_path / "run" / "metrics.json").read_text())["results"]
    assert results["mean/pixel_auroc"] is not None
    counted("thousands of images with masks, binned", IMAGES)


AGAIN = """
import os, sys
from anomaly_vlm.cli import dispatch
for _ in range(20):
    assert dispatch("evaluate", *sys.argv[1:]) == 0
    with open("/proc/self/statm") as file:
        resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    print("resident", resident, len(os.listdir("/proc/self/fd")), flush=True)
"""


def test_evaluations_in_one_process_leave_nothing_behind(tmp_path: Path, counted: Callable[..., None]) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    words = [
        *WINCLIP,
        "eval_limit=24",
        "callbacks.progress=none",
        "pictures.per_category=1",
        f"output_dir={tmp_path / 'run'}",
    ]
    told = subprocess.run(
        [sys.executable, "-c", AGAIN, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    ).stdout
    rows = [line.split()[1:] for line in told.splitlines() if line.startswith("resident")]
    assert len(rows) == 20
    assert int(rows[-1][0]) <= GROWTH * int(rows[4][0])
    assert int(rows[-1][1]) <= int(rows[4][1])
    counted("evaluations in one process", len(rows))
