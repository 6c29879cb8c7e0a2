"""FiLo from the command line: both stages, boxes in pictures, real detectors on random weights, their messages."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anomaly_vlm.cli import main
from anomaly_vlm.detectors import grounding
from anomaly_vlm.detectors.transformers_port import TransformersDetector
from anomaly_vlm.methods.filo import FiLo
from anomaly_vlm.reporting.pictures import BOX
from tests.detectors.tiny import write_model

pytestmark = pytest.mark.e2e

QUICK = [
    "method=filo",
    "backbone=tiny_random",
    "backbone.architecture.vision_cfg.layers=4",
    "backbone.layers=[1,2,3,4]",
    "image_size=64",
    "train_limit=6",
    "eval_limit=8",
    "epochs=2",
    "pictures.per_category=1",
    "callbacks.progress=none",
    "trainer=cpu",
    "dataset.train.size=64",
    "dataset.test.size=64",
]


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("filo") / "run"
    assert main(["train", *QUICK, "compare_untrained=false", f"output_dir={folder}"]) == 0
    return folder


@pytest.fixture(scope="session")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("detector"))


def evaluate(run: Path, *words: str) -> int:
    return main(["evaluate", f"ckpt={run / 'checkpoints' / 'last.ckpt'}", "eval_limit=8", *words])


def test_a_run_is_labelled_and_draws_its_boxes(run: Path) -> None:
    record = json.loads((run / "metrics.json").read_text())
    assert record["method"] == "filo (components)" and record["choices"]["detector"] == "components"
    with (run / "results.csv").open() as file:
        assert {row["method"] for row in csv.DictReader(file)} == {"filo (components)"}
    pictures = list((run / "pictures").rglob("*.jpg"))
    inputs = [np.asarray(Image.open(path).convert("RGB"))[52:298, 12:262] for path in pictures]
    assert any((pixels == BOX).all(axis=2).sum() > 20 for pixels in inputs), "no box on any picture"
    with (run / "logs" / "version_0" / "metrics.csv").open() as file:
        log = list(csv.DictReader(file))
    assert any(row["train/focal_epoch"] for row in log) and any(row["train/image_epoch"] for row in log)


def test_a_stopped_run_goes_on_in_its_stage(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped behind stage 1 and resumed, the weights are those of the run that was not stopped."""

    def stop(self: FiLo) -> None:
        if self.current_epoch == 1:
            raise RuntimeError("stopped")

    monkeypatch.setattr(FiLo, "on_train_epoch_start", stop)
    folder = tmp_path / "again"
    words = ["compare_untrained=false", "checkpoint.every_steps=1", f"output_dir={folder}"]
    assert main(["train", *QUICK, *words]) == 1
    monkeypatch.undo()
    assert main(["train", f"resume={folder}"]) == 0
    whole, resumed = (
        torch.load(path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for path in (run, folder)
    )
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, msg=lambda m, name=name: f"{name}: {m}")


def test_a_real_detector_is_asked_once(
    run: Path, detector: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("ANOMALY_VLM_DETECTIONS", str(tmp_path / "detections"))
    words = ["detector=transformers", f"detector.weights={detector}", "detector.short_side=64"]
    assert evaluate(run, *words, f"output_dir={tmp_path / 'one'}") == 0
    assert "detections: 8 images by transformers" in capsys.readouterr().out
    first = json.loads((tmp_path / "one" / "metrics.json").read_text())
    assert first["method"] == "filo" and len(list((tmp_path / "detections").rglob("*.safetensors"))) == 8
    monkeypatch.setattr(TransformersDetector, "load", lambda self: pytest.fail("the weights were read again"))
    assert evaluate(run, *words, f"output_dir={tmp_path / 'two'}", "method.boxes.box_threshold=0.2") == 0


def test_boxes_from_a_file(run: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for i in range(2):
        pixels = np.random.default_rng(i).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{i}.png")
    boxes = {"format": 1, "size": "pixels", "images": {"0.png": {"boxes": [[8, 8, 40, 40]]}, "1.png": {"boxes": []}}}
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    ckpt = f"ckpt={run / 'checkpoints' / 'last.ckpt'}"
    words = ["detector=file", f"detector.path={tmp_path / 'boxes.json'}", f"output_dir={tmp_path / 'out'}"]
    assert main(["predict", ckpt, f"images={images}", "category=gear", *words]) == 0
    shown = [
        np.asarray(Image.open(path).convert("RGB")) for path in sorted((tmp_path / "out" / "pictures").glob("*.jpg"))
    ]
    tile = shown[0][44:300, 8:264]
    for line in (tile[32, 32:159], tile[32:159, 32]):  # [8, 8, 40, 40] times 4, as JPEG keeps it
        assert np.abs(line.astype(int) - BOX).max() < 40


def test_a_detector_that_is_not_there(
    run: Path, refused: Callable[[list[str]], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grounding, "hub_answers", lambda: False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    told = refused(["evaluate", "method=filo", "detector=transformers", "dataset.test.size=0"])
    assert "IDEA-Research/grounding-dino-tiny" in told and "detector=components" in told  # before any data is read
    assert "detector.path=FILE" in refused(["train", *QUICK, "detector=file"])
    assert "unknown detector 'nonsense'" in refused(["train", "method=filo", "detector=nonsense"])
