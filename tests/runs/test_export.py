"""Methods as ONNX files: the same numbers by onnxruntime, the threshold in the file, and clear words where it cannot be."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from anomaly_vlm import load_method
from anomaly_vlm.errors import UserError
from anomaly_vlm.metrics.thresholds import from_good_parts
from anomaly_vlm.runs.export import TOLERANCE, export_onnx

pytest.importorskip("onnxruntime")
ROOT = Path(__file__).parents[2]
LAYERS = ["backbone.architecture.vision_cfg.layers=2", "backbone.layers=[1,2]", "image_size=48"]
STATIC = ["method.prompts.dynamic=false", "method.hsf=null"]
FEW = ("promptad", "finegrainedad", "anomalydino", "subspacead")


def small(name: str, words: list[str], shots: int) -> Any:
    method = load_method(name, "tiny_random", overrides=[*LAYERS, *words, *([f"shots={shots}"] if shots else [])])
    if shots:
        method.fit_references(torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(3)), category="gear")
    return method


@pytest.mark.parametrize(
    ("name", "words", "shots"),
    [
        ("winclip", [], 0),
        ("winclip", [], 1),
        ("anomalyclip", [], 0),
        ("april_gan", [], 0),
        ("april_gan", [], 1),
        ("linear_heads", [], 0),
        ("promptad", [], 1),
        ("faprompt", [], 0),
        ("finegrainedad", [], 1),
        ("anomalydino", [], 1),
    ],
)
def test_a_graph_computes_what_the_method_does(name: str, words: list[str], shots: int, tmp_path: Path) -> None:
    assert export_onnx(small(name, words, shots), "gear", tmp_path / "m.onnx", images=8) <= TOLERANCE


def test_the_file_runs_without_the_suite(tmp_path: Path) -> None:
    method = small("winclip", [], 1)
    threshold = from_good_parts([0.1, 0.2], [0.1, 0.2], [0.1, 0.1])
    method.decision_thresholds = {"gear": threshold}
    export_onnx(method, "gear", tmp_path / "m.onnx", images=1)
    Image.effect_noise((60, 40), 50).convert("RGB").save(tmp_path / "part.png")
    words = [sys.executable, str(ROOT / "examples" / "run_onnx.py"), "m.onnx", "part.png"]
    said = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.split()
    verdict = method(tmp_path / "part.png", category="gear")
    assert float(said[1]) == pytest.approx(float(verdict.score), abs=TOLERANCE)
    assert " ".join(said[2:4]).startswith(verdict.decision[0])


def test_what_no_graph_holds_is_said(tmp_path: Path) -> None:
    for name, words in {"musc": "compares the images of a set", "filo": "asks a detector"}.items():
        with pytest.raises(UserError, match=words):
            export_onnx(load_method(name, "tiny_random", overrides=LAYERS), "gear", tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())
