"""Checkpoints of version 0.1.0, before options and values were renamed: they evaluate to the numbers of their own runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from anomaly_vlm.cli import main
from anomaly_vlm.methods.base.checkpoints import read_tensors
from anomaly_vlm.runs.checkpoints import Checkpoint
from anomaly_vlm.runs.trust import read_config

FOLDER = Path(__file__).parents[1] / "checkpoints"


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.ckpt")))
def test_an_old_checkpoint_evaluates_to_its_numbers(name: str, tmp_path: Path) -> None:
    words = [f"ckpt={FOLDER / name}.ckpt", "output_dir=out", "pictures.per_category=0", "cache.tokens=off"]
    words.append("eval_limit=24")  # of their runs, and not inherited
    assert main(["evaluate", *words]) == 0
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())["results"]
    expected = json.loads((FOLDER / f"{name}.json").read_text())
    assert expected
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, abs=1e-5), key


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.ckpt")))
def test_an_old_run_folder_is_read_like_its_checkpoint(name: str, tmp_path: Path) -> None:
    stored = read_tensors(FOLDER / f"{name}.ckpt")["anomaly_vlm"]["config"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(stored))
    of_folder, of_checkpoint = (
        read_config(tmp_path / "config.yaml"),
        Checkpoint.read(str(FOLDER / f"{name}.ckpt")).config,
    )
    assert "as_published" in of_folder and "as_published" not in stored  # it was called towers
    for key in ("method", "backbone", "dataset", "loss"):
        assert of_folder[key] == of_checkpoint[key], key
