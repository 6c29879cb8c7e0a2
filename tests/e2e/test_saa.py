"""SAA from the command line: without weights, with its own models on random weights, its messages."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomaly_vlm.cli import main
from anomaly_vlm.detectors import grounding
from anomaly_vlm.detectors.sam import SamSegmenter
from anomaly_vlm.detectors.transformers_port import TransformersDetector
from tests.detectors.tiny import write_model, write_sam

pytestmark = pytest.mark.e2e

QUICK = [
    "method=saa",
    "image_size=64",
    "eval_limit=6",
    "pictures.per_category=1",
    "callbacks.progress=none",
    "trainer=cpu",
    "dataset.test.size=64",
]


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saa") / "run"
    assert main(["train", *QUICK, f"output_dir={folder}"]) == 0
    return folder


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides that choose random Grounding DINO and SAM."""
    detector, sam = (write(tmp_path_factory.mktemp("models")) for write in (write_model, write_sam))
    return [
        "detector=transformers",
        f"detector.weights={detector}",
        "detector.short_side=64",
        "detector.device=cpu",
        "segmenter=sam",
        f"segmenter.weights={sam}",
        "segmenter.device=cpu",
    ]


def record(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def test_without_weights_results_say_so(run: Path) -> None:
    made = record(run)
    assert made["method"] == "saa+ (components, contrast)" and made["choices"]["segmenter"] == "contrast"
    assert made["backbone"] == "nano ConvNeXt, procedural data"
    assert len(list((run / "pictures").rglob("*.jpg"))) > 0


def test_a_checkpoint_predicts_pictures_of_any_size(run: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for i, size in enumerate(((40, 64), (72, 48))):
        pixels = np.random.default_rng(i).integers(0, 255, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{i}.png")
    ckpt = f"ckpt={run / 'checkpoints' / 'last.ckpt'}"
    assert main(["predict", ckpt, f"images={images}", "category=gear", f"output_dir={tmp_path / 'out'}"]) == 0
    assert len((tmp_path / "out" / "scores.csv").read_text().splitlines()) == 3
    assert len(list((tmp_path / "out" / "pictures").glob("*.jpg"))) == 2


def test_its_own_models_are_asked_once(
    run: Path, models: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("ANOMALY_VLM_DETECTIONS", str(tmp_path / "detections"))
    ckpt = f"ckpt={run / 'checkpoints' / 'last.ckpt'}"
    assert (
        main(
            [
                "evaluate",
                ckpt,
                "eval_limit=6",
                *models,
                "pixels.mask_size=32",
                "method.language=general",
                f"output_dir={tmp_path / 'one'}",
            ]
        )
        == 0
    )
    assert "detections: 24 questions on 6 images by transformers" in capsys.readouterr().out
    assert record(tmp_path / "one")["method"] == "saa+"
    kept = list((tmp_path / "detections" / "masks").rglob("*.safetensors"))
    assert 3 <= len(kept) <= 6, "one entry for each image that has boxes"
    monkeypatch.setattr(TransformersDetector, "load", lambda self: pytest.fail("the detector was read again"))
    monkeypatch.setattr(SamSegmenter, "load", lambda self: pytest.fail("SAM was read again"))
    words = ["method.without=[confidence]", "method.language=general", f"output_dir={tmp_path / 'two'}"]
    assert main(["evaluate", ckpt, "eval_limit=6", *models, *words]) == 0
    one, two = (record(tmp_path / name)["results"] for name in ("one", "two"))
    assert one != two


def test_what_is_missing_is_one_line(
    refused: Callable[[list[str]], str], models: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grounding, "hub_answers", lambda: False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    told = refused(["train", *QUICK, *models[:4], "segmenter=sam"])
    assert "facebook/sam-vit-huge" in told and "segmenter.weights=FOLDER" in told
    assert "SAA is made of boxes" in refused(["train", *QUICK, "detector=none"])
    assert "runs on a TrunkBackbone or ConvNextBackbone" in refused(["train", *QUICK, "backbone=nano"])
    assert "unknown segmenter 'nonsense'" in refused(["train", "method=saa", "segmenter=nonsense"])
