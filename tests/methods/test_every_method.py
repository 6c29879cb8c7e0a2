"""Every method that `conf/method/` names: composed, trained a step, evaluated, saved, loaded, called from Python."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from anomaly_vlm import load_checkpoint
from anomaly_vlm.cli import main
from anomaly_vlm.options import option_defaults
from anomaly_vlm.runs.groups import choices
from anomaly_vlm.runs.instantiate import method_class
from tests.support.conf import CONF

SMALL = [
    "train_limit=4",
    "eval_limit=12",
    "epochs=1",
    "pictures.per_category=0",
    "callbacks.progress=none",
    "trainer=cpu",
    "cache.tokens=off",
]
PICTURES = ["dataset.train.size=48", "dataset.test.size=48"]
TINY = ["backbone=tiny_random", "image_size=64"]
WORDS = {  # what a method needs to be small, besides SMALL
    "saa": ["image_size=64", "dataset.test.categories=[gear]", "backbone=tiny_convnext"],
    "vl4ad": ["backbone=tiny_convnext", "eval_limit=2", "train_limit=2"],
    "promptad": [*TINY, "shots=1", "dataset.test.categories=[gear]"],
    "finegrainedad": [*TINY, "shots=1", "dataset.test.categories=[gear]"],
    "winclip": [*TINY, "shots=1"],
    "anomalydino": [*TINY, "method.angles=[0,45]", "dataset.test.categories=[gear]"],
    "subspacead": [*TINY, "method.rotations=2", "dataset.test.categories=[gear]"],
    "musc": [*TINY, "dataset.test.categories=[gear]"],
    "filo": [*TINY, "method.mmci.kernels=[[1,1],[3,3]]"],
}


def trains_on(name: str) -> str:
    return str(yaml.safe_load((CONF / "method" / f"{name}.yaml").read_text()).get("train_on", "dataset"))


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", choices("method"))
def test_a_method_from_its_configuration_to_python(name: str, tmp_path: Path) -> None:
    """Trains, evaluates the checkpoint to the same numbers, and scores the same image the same way twice."""
    words = [f"method={name}", *SMALL, *([] if name == "vl4ad" else PICTURES), *WORDS.get(name, TINY)]
    if trains_on(name) != "dataset":
        words.remove("dataset.train.size=48")
    assert main(["train", *words, "output_dir=run"]) == 0
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    anew = [word for word in words if word.startswith(("eval_limit=", "dataset.test.categories="))]
    assert main(["evaluate", f"ckpt={checkpoint}", *anew, "output_dir=again"]) == 0
    first, again = (json.loads((tmp_path / folder / "metrics.json").read_text()) for folder in ("run", "again"))
    assert first["results"] == again["results"] and first["results"]

    image = torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0))
    method = load_checkpoint(checkpoint)
    count = 5 if method.is_transductive else 1  # a set of images that score each other
    images = image if count == 1 else torch.stack([image.roll(i, dims=2) for i in range(count)])
    other = load_checkpoint(checkpoint)
    prediction, twice = (load(images, category="gear") for load in (method, other))
    assert prediction.map.shape == (count, 64, 96) and torch.isfinite(prediction.map).all()
    assert torch.equal(prediction.score, twice.score) and torch.equal(prediction.map, twice.map)
    with torch.autocast("cpu", torch.bfloat16):
        lowered = other(images, category="gear")
    for values in (lowered.score, lowered.map):  # eight bits would tie scores that differ
        assert values.dtype == torch.float32
        assert name == "saa" or not torch.equal(values, values.bfloat16().float())
    one_score_everywhere(name, checkpoint, method, tmp_path)


def one_score_everywhere(name: str, checkpoint: Path, method: Any, tmp_path: Path) -> None:
    """`evaluate`, `predict` and a call from Python give an image the same score."""
    random = np.random.default_rng(0)
    for i in range(5):  # MuSc compares an image with others
        place = tmp_path / "parts" / ("good" if i < 3 else "bad") / f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (40 + 8 * i, 64, 3), dtype=np.uint8)).save(place)
    folder = ["dataset=folder", "dataset.test.root=parts", "dataset.test.reader.category=gear"]
    if name != "vl4ad":  # whose evaluation asks for road scenes
        assert main(["evaluate", f"ckpt={checkpoint}", *folder, "output_dir=evaluated"]) == 0
    size = 1 if name in ("saa", "vl4ad") else 2  # those take images of any size one by one
    words = ["images=parts", "category=gear", f"eval_batch_size={size}", "output_dir=predicted"]
    threads = torch.get_num_threads()
    torch.set_num_threads(2)  # then all batches but the first are predicted side by side
    assert main(["predict", f"ckpt={checkpoint}", *words]) == 0
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)
    predicted = scores(tmp_path / "predicted" / "scores.csv")
    evaluated = predicted if name == "vl4ad" else scores(tmp_path / "evaluated" / "images.csv")
    called = method(list(predicted), category="gear").score.tolist()
    assert len(predicted) == 5 and evaluated == pytest.approx(predicted, rel=1e-5, abs=1e-6)
    assert dict(zip(predicted, called, strict=True)) == pytest.approx(predicted, rel=1e-4, abs=1e-5)


def scores(table: Path) -> dict[str, float]:
    with table.open(newline="", encoding="utf-8") as file:
        return {row["path"]: float(row["score"]) for row in csv.DictReader(file)}


@pytest.mark.slow
@pytest.mark.parametrize("name", choices("method"))
def test_mixed_precision_is_close_to_float32(name: str, tmp_path: Path) -> None:
    words = [f"method={name}", *SMALL, *([] if name == "vl4ad" else PICTURES), *WORDS.get(name, TINY)]
    if trains_on(name) != "dataset":
        words.remove("dataset.train.size=48")
    scores = {}
    for precision in ("32-true", "bf16-mixed", "16-mixed"):
        assert main(["train", *words, f"trainer.precision={precision}", f"output_dir={precision}"]) == 0
        rows = list(csv.DictReader((tmp_path / precision / "images.csv").read_text(encoding="utf-8").splitlines()))
        scores[precision] = torch.tensor([float(row["score"]) for row in rows])
    exact = scores.pop("32-true")
    for found in scores.values():
        # AdaCLIP divides by 0.01: rounding in the tower comes out a hundred times larger in its logits.
        torch.testing.assert_close(found, exact, rtol=0.05, atol=0.2 if name == "adaclip" else 0.05)


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_zero_shot_in_mixed_precision(precision: str, tmp_path: Path) -> None:
    words = ["method=winclip", *SMALL, "dataset.test.size=48", *TINY, f"trainer.precision={precision}"]
    assert main(["evaluate", *words, "output_dir=run"]) == 0


def test_other_precisions_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "method=winclip", *SMALL, *TINY, "trainer.precision=64-true", "output_dir=run"]) == 2
    assert "trainer.precision" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("name", choices("method"))
def test_the_yaml_repeats_no_default(name: str) -> None:
    """Defaults stand in the constructor alone; a YAML says what differs from them."""
    text = (CONF / "method" / f"{name}.yaml").read_text(encoding="utf-8")
    node = yaml.safe_load(text).get("method")
    if not node or "_target_" not in node:
        pytest.skip("extends another method's YAML")
    defaults = option_defaults(method_class(node))
    repeated = [key for key, value in node.items() if key in defaults and defaults[key] == value]
    repeated = [key for key in repeated if f"method.{key}" not in text]  # another key follows it
    assert not repeated
