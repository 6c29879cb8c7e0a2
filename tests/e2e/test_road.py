"""VL4AD from the command line: train, evaluate with other texts, predict on pictures of any size, the ablation's table."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomaly_vlm.cli import main
from tests.e2e.conftest import results

pytestmark = pytest.mark.e2e
SCENES = [
    f"dataset.{side}.{key}={value}"
    for side in ("train", "test")
    for key, value in (("height", 48), ("width", 80), ("train_count", 8), ("test_count", 3))
]
QUICK = [
    "method=vl4ad", *SCENES, "epochs=1", "batch_size=4", "method.decoder.queries=6", "method.decoder.hidden=32",
    "method.decoder.pixel_layers=1", "method.decoder.decoder_layers=2", "method.decoder.points=64",
    "callbacks.progress=none", "trainer=cpu", "pictures.per_category=1",
]  # fmt: skip


FEW = ["callbacks.progress=none", "trainer=cpu", "train_limit=4", "eval_limit=2"]


@pytest.fixture(scope="module")
def road_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One finished run, which the tests only read."""
    folder = tmp_path_factory.mktemp("road") / "run"
    assert main(["train", *QUICK, f"output_dir={folder}"]) == 0
    return folder


def test_the_road_table(road_run: Path) -> None:
    record = json.loads((road_run / "metrics.json").read_text())
    assert "trained on procedural_road (drawn, 48 x 80; 8 images)" in record["data"]
    assert {"pixel_ap", "pixel_fpr95", "pixel_auroc", "siou", "ppv", "component_f1"} <= {
        key.split("/")[1] for key in record["results"]
    }
    with (road_run / "results.csv").open(newline="") as file:
        rows = [row["category"] for row in csv.DictReader(file)]
    assert rows[:4] == ["max", "rba", "max_inside", "margin"]
    (picture,) = (road_run / "pictures").rglob("*.jpg")
    with Image.open(picture) as panel:
        assert panel.width / 4 > panel.height  # wide tiles: the scenes' own shape
    assert (road_run / "scenes.png").is_file()


def test_evaluation_repeats_and_takes_other_texts(
    road_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    ckpt = f"ckpt={road_run / 'checkpoints' / 'last.ckpt'}"
    few = "dataset.test.test_count=3"  # not inherited
    assert main(["evaluate", ckpt, few, f"output_dir={tmp_path / 'same'}"]) == 0
    assert "known-class accuracy" in capsys.readouterr().out
    same = results(tmp_path / "same")
    assert same == pytest.approx(results(road_run), abs=1e-6, nan_ok=True)
    words = ["method.ood_prompts=[caravan,[box,crate]]", "method.merge=cityscapes_groups"]
    assert main(["evaluate", ckpt, few, *words, f"output_dir={tmp_path / 'other'}"]) == 0
    assert results(tmp_path / "other")["max/pixel_ap"] != same["max/pixel_ap"]


def test_predict_pictures_of_any_size(road_run: Path, tmp_path: Path) -> None:
    for i, size in enumerate(((70, 50), (96, 33))):
        pixels = np.random.default_rng(i).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
        (tmp_path / "frames").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / f"frames/{i}.jpg")
    words = [
        f"ckpt={road_run / 'checkpoints' / 'last.ckpt'}",
        f"images={tmp_path / 'frames'}",
        f"output_dir={tmp_path / 'out'}",
    ]
    assert main(["predict", *words, "method.passes.window=[32,64]"]) == 0
    with (tmp_path / "out" / "scores.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 2
    assert len(list((tmp_path / "out" / "pictures").glob("*.jpg"))) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["method=vl4ad", "backbone=tiny_random"], "VL4AD runs on a ConvNextBackbone, not on backbone tiny_random"),
        (["method=adaclip", "backbone=tiny_convnext"], "AdaCLIP runs on a ClipBackbone, not on backbone tiny_convnext"),
        (["method=vl4ad", "dataset=procedural"], "VL4AD learns from class labels"),
        (["method=vl4ad", "method.merge={a: [cars]}"], "unknown class in method.merge.a 'cars'"),
        (["method=vl4ad", "pixels.fit=wide"], "unknown pixels.fit 'wide'"),
        (["method=vl4ad", "pixels.frame=[96]"], r"pixels.frame is \[96\]"),
        (["method=vl4ad", "augment.crop={size: [0, 9]}"], r"augment.crop.size is \[0, 9\]"),
        (
            [
                "method=vl4ad",
                "train_limit=4",
                "eval_batch_size=4",
                "dataset.test.height=40",
                "method.passes.window=[8,8]",
            ],
            "window is",
        ),
    ],
)
def test_mistakes(words: list[str], message: str, refused: Callable[[list[str]], str]) -> None:

    assert re.search(
        message, refused(["train", *words, "callbacks.progress=none", "trainer=cpu", "train_limit=4", "eval_limit=2"])
    )


@pytest.mark.slow
def test_the_ablation_ends_in_one_table(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = [word for word in QUICK if not word.startswith("method=")]
    assert (
        main(
            [
                "sweep",
                "experiment=vl4ad/ablation",
                *words,
                f"hydra.sweep.dir={tmp_path}",
                "hydra.launcher.own_process=false",
            ]
        )
        == 0
    )
    with (tmp_path / "sweep.csv").open(newline="") as file:
        rows = {row["row"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["1_linear", "2_text", "3_ensembling", "4_merging", "5_ood_prompts"]
    assert all(row["component_f1"] and row["pixel_ap"] for row in rows.values())
    assert len({row["pixel_auroc"] for row in rows.values()}) == 5
