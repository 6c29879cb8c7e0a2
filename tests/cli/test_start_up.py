"""Start-up: a prediction reads neither Lightning nor what only training, evaluation or augmentation need."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomaly_vlm import cli
from anomaly_vlm.cli import main, set_up_process
from anomaly_vlm.methods.base import WITHOUT_LIGHTNING

NOT_NEEDED = ("kornia", "lightning", "matplotlib", "pandas", "scipy", "sklearn", "torchmetrics")
PROGRAM = """
import sys
import open_clip  # what the towers are made of reads some of them by itself
before = set(sys.modules)
from anomaly_vlm import cli
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


def test_waiting_threads_sleep_where_nothing_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_WAIT_POLICY", WITHOUT_LIGHTNING):
        monkeypatch.setenv(name, "")  # restored afterwards
        monkeypatch.delenv(name)
    assert main(["--version"]) == 0  # a program that calls it has settings of its own
    set_up_process(["train"])
    assert "OMP_WAIT_POLICY" not in os.environ and WITHOUT_LIGHTNING not in os.environ
    set_up_process(["predict"])
    assert os.environ["OMP_WAIT_POLICY"] == "passive" and WITHOUT_LIGHTNING in os.environ
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    set_up_process(["serve"])
    assert os.environ["OMP_WAIT_POLICY"] == "active"


def test_words_are_utf_8_where_the_locale_knows_ascii_alone() -> None:
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    words = [sys.executable, "-m", "anomaly_vlm.cli", "catégorie"]
    done = subprocess.run(words, capture_output=True, check=False, env={**os.environ, **plain})
    assert done.returncode == 2 and "'catégorie'" in done.stderr.decode()


def test_warnings_are_one_line_without_control_characters(caplog: pytest.LogCaptureFixture) -> None:
    own, other = str(Path(cli.__file__).parents[1] / "metrics" / "pixel.py"), "/elsewhere/package.py"
    assert cli.in_one_line("no\x1b[31m number", UserWarning, own, 3) == "warning: no\\x1b[31m number\n"
    assert "package.py:3: UserWarning: old" in cli.in_one_line("old", UserWarning, other, 3, "")
    log = logging.getLogger("anomaly_vlm.tried")
    log.addFilter(cli.with_escapes)
    log.warning("a file %s of %d", "x\ny\x1b[2J", 2)
    assert caplog.messages == ["a file x\\ny\\x1b[2J of 2"]
