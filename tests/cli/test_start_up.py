"""Start-up: a prediction reads neither Lightning nor what only training, evaluation or augmentation need."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomaly_vlm.cli import main, set_up_process

NOT_NEEDED = ("kornia", "lightning", "matplotlib", "pandas", "scipy", "sklearn", "torchmetrics")
PROGRAM = """
import sys
import open_clip  # what the towers are made of reads some of them by itself
before = set(sys.modules)
from anomaly_vlm.cli import main
status = main()  # as the console script does
sys.stdout.write("".join(f"loaded {name}\\n" for name in sorted(set(sys.modules) - before) if "." not in name))
sys.exit(status)
"""


def loaded_by(*words: str) -> set[str]:
    """Packages that a command has imported beyond those of open_clip."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, check=True)
    return {line.removeprefix("loaded ") for line in done.stdout.splitlines() if line.startswith("loaded ")}


def test_predict_with_a_shipped_checkpoint(tmp_path: Path) -> None:
    Image.fromarray(np.full((60, 80, 3), 90, np.uint8)).save(tmp_path / "part.png")
    loaded = loaded_by("predict", f"images={tmp_path / 'part.png'}", f"output_dir={tmp_path / 'out'}")
    assert (tmp_path / "out" / "scores.csv").is_file() and "hydra" in loaded
    assert not loaded & set(NOT_NEEDED)


def test_waiting_threads_sleep_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "")  # restored afterwards
    monkeypatch.delenv("OMP_WAIT_POLICY")
    assert main(["--version"]) == 0 and "OMP_WAIT_POLICY" not in os.environ  # a program that calls it has its own
    set_up_process(["train"])
    assert os.environ["OMP_WAIT_POLICY"] == "passive"
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    set_up_process(["train"])
    assert os.environ["OMP_WAIT_POLICY"] == "active"
