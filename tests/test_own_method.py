"""A method, a configuration and a loss outside the package: `examples/own_method`, as its README says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "examples" / "own_method"
QUICK = [
    "train_limit=6",
    "eval_limit=12",
    "backbone=tiny_random",
    "image_size=64",
    "pictures.per_category=0",
    "trainer=cpu",
]


def call(*words: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": f"{FOLDER}{os.pathsep}{FOLDER.parents[1]}"}
    command = [sys.executable, "-m", "anomaly_vlm.cli", *words]
    return subprocess.run(command, cwd=FOLDER, env=env, capture_output=True, text=True, timeout=300)


def test_it_trains_evaluates_and_predicts(tmp_path: Path) -> None:
    own = ["hydra.searchpath=[file://conf]", "trust=[own_method]", "callbacks.progress=none"]
    run = call("train", "method=text_probe", *own, *QUICK, f"output_dir={tmp_path / 'run'}")
    assert run.returncode == 0, run.stderr
    assert "train/dice" in (tmp_path / "run" / "logs" / "version_0" / "metrics.csv").read_text()
    ckpt = f"ckpt={tmp_path / 'run' / 'checkpoints' / 'last.ckpt'}"
    again = call("evaluate", ckpt, "trust=[own_method]", "eval_limit=12", f"output_dir={tmp_path / 'again'}")
    assert again.returncode == 0, again.stderr
    first, second = (json.loads((tmp_path / name / "metrics.json").read_text())["results"] for name in ("run", "again"))
    assert first == second

    refused = call("evaluate", ckpt, f"output_dir={tmp_path / 'refused'}")
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert "asks to run 'own_method." in refused.stderr and "trust=[own_method]" in refused.stderr
