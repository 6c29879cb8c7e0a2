"""A long run needs no more memory at its end than after its first images, and leaves no handle open."""

from __future__ import annotations

import os
import subprocess
import sys
import time
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


def memory_over(command: list[str], folder: Path, rows: Path | None) -> tuple[list[tuple[float, int]], int]:
    """Runs a command of the suite.

    Returns:
        (share of the images done or time passed, resident bytes), several a second; and the handles open near the end.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    words = [sys.executable, "-m", "anomaly_vlm.cli", *command, "callbacks.progress=none"]
    found, handles = [], 0
    with subprocess.Popen(words, cwd=folder, env=environment, stdout=subprocess.DEVNULL) as process:
        place = Path(f"/proc/{process.pid}")
        while process.poll() is None:
            time.sleep(0.2)
            try:
                resident = int((place / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
                handles = len(list((place / "fd").iterdir())) or handles
            except (OSError, IndexError):
                continue
            done = rows.read_bytes().count(b"\n") / IMAGES if rows is not None and rows.is_file() else 0.0
            found.append((done, resident))
    assert process.returncode == 0
    return found, handles


pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="reads Linux's /proc")


@pytest.mark.faults
def test_prediction_needs_no_more_memory_in_the_end(parts: Path, tmp_path: Path) -> None:
    command = ["predict", *WINCLIP, f"images={parts}", "pictures=false", f"output_dir={tmp_path / 'run'}"]
    found, handles = memory_over(command, tmp_path, tmp_path / "run" / "scores.csv")
    warm = max(resident for done, resident in found if WARM / 2 < done <= WARM)
    assert max(resident for done, resident in found if done > WARM) <= GROWTH * warm
    assert handles < 64


@pytest.mark.faults
def test_evaluation_holds_what_its_exact_metrics_need(parts: Path, tmp_path: Path) -> None:
    peaks = []
    for limit in (IMAGES // 10, IMAGES):
        data = ["dataset=folder", f"dataset.test.root={parts}", "pictures.per_category=0", f"eval_limit={limit}"]
        found, handles = memory_over(
            ["evaluate", *WINCLIP, *data, f"output_dir={tmp_path / str(limit)}"], tmp_path, None
        )
        peaks.append(max(resident for _, resident in found))
        assert handles < 64
    scores = 32 * 32 * (4 + 1) * IMAGES  # a float32 and a mask byte for each pixel
    assert peaks[1] <= GROWTH * peaks[0] + 2 * scores  # sorting them takes as much again


AGAIN = """
import os, sys
from anomaly_vlm.cli import dispatch
for _ in range(20):
    assert dispatch("evaluate", *sys.argv[1:]) == 0
    with open("/proc/self/statm") as file:
        resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    print("resident", resident, len(os.listdir("/proc/self/fd")), flush=True)
"""


@pytest.mark.faults
def test_evaluations_in_one_process_leave_nothing_behind(tmp_path: Path) -> None:
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
