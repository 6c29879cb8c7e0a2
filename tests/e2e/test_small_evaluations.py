"""Evaluations on small folders: masks that vanish are counted, further metrics are computed where they are asked for."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

from anomaly_vlm.cli import main
from tests.data.trees import mask, picture

pytestmark = pytest.mark.e2e
WORDS = ["method=winclip", "backbone=tiny_random", "dataset=folder", "dataset.train=null", "pictures.per_category=0"]


@pytest.mark.parametrize(
    "option, key, title",
    [
        ("metrics.aupimo=true", "pixel_aupimo", "AUPIMO"),
        ("metrics.aupimo=[1e-3, 1e-2]", "pixel_aupimo", "AUPIMO"),
        ("metrics.seg_f1_sigmas=3", "pixel_seg_f1", "SegF1"),
        ("metrics.mean_f1=true", "pixel_mean_f1", "mean F1"),
        ("metrics.calibration_bins=15", "image_calibration_error", "calibration error"),
        ("metrics.aupro_limits=[0.3, 0.05]", "pixel_aupro_limit0.05", "AUPRO at 0.05"),
    ],
)
def test_metrics_that_are_asked_for(
    option: str,
    key: str,
    title: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    picture(tmp_path / "parts/good/0.png", size=(60, 60))
    picture(tmp_path / "parts/dent/0.png", size=(60, 60))
    mask(tmp_path / "parts/ground_truth/dent/0.png", size=(60, 60), box=(5, 5, 30, 30))
    words = [*WORDS, f"dataset.test.root={tmp_path / 'parts'}", f"output_dir={tmp_path / 'out'}"]
    assert main(["evaluate", *words, option]) == 0
    assert json.loads((tmp_path / "out/metrics.json").read_text())["results"][f"mean/{key}"] >= 0
    assert title in capsys.readouterr().out


def test_what_a_method_costs_is_measured_where_it_is_asked_for(tmp_path: Path) -> None:
    picture(tmp_path / "parts/good/0.png", size=(60, 60))
    picture(tmp_path / "parts/dent/0.png", size=(60, 60))
    words = [*WORDS, f"dataset.test.root={tmp_path / 'parts'}", f"output_dir={tmp_path / 'out'}"]
    assert main(["evaluate", *words, "measure_cost=true"]) == 0
    cost = json.loads((tmp_path / "out/metrics.json").read_text())["cost"]
    assert cost["gflops"] > 0 and cost["ms_per_image"] > 0 and cost["training_seconds"] is None


def test_binned_metrics_bound_the_exact_ones(tmp_path: Path) -> None:
    for name in ("good/0.png", "good/1.png", "dent/0.png"):
        picture(tmp_path / "parts" / name, size=(60, 60))
    mask(tmp_path / "parts/ground_truth/dent/0.png", size=(60, 60), box=(5, 5, 30, 30))
    found = {}
    for mode in ("exact", "binned"):
        words = [*WORDS, f"dataset.test.root={tmp_path / 'parts'}", f"output_dir={tmp_path / mode}"]
        assert main(["evaluate", *words, f"metrics.mode={mode}"]) == 0
        found[mode] = json.loads((tmp_path / mode / "metrics.json").read_text())["results"]
    for name in ("pixel_auroc", "pixel_ap", "pixel_aupro"):
        low, high = (found["binned"][f"mean/{name}/{bound}"] for bound in ("lower", "upper"))
        assert low <= found["exact"][f"mean/{name}"] <= high
    with (tmp_path / "binned" / "results.csv").open(newline="") as file:
        assert [row["category"] for row in csv.DictReader(file)] == ["object", "mean", "pooled"]


@pytest.mark.parametrize(
    "option",
    [
        "metrics.aupimo=[3]",
        "metrics.calibration_bins=0",
        "metrics.seg_f1_sigmas=nan",
        "metrics.aupro_limits=[2]",
        "metrics.mode=rough",
    ],
)
def test_wrong_options_are_rejected_before_any_work(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(tmp_path / "parts/good/0.png")
    picture(tmp_path / "parts/dent/0.png")
    words = [*WORDS, f"dataset.test.root={tmp_path / 'parts'}", f"output_dir={tmp_path / 'out'}"]
    assert main(["evaluate", *words, option]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("anomaly-vlm:")]
    assert line.startswith(f"anomaly-vlm: metrics: {option.partition('=')[0].removeprefix('metrics.')}"), line


def test_masks_that_vanish_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for i, side in enumerate((200, 3, 2)):
        picture(tmp_path / f"parts/good/{i}.png", size=(900, 900))
        picture(tmp_path / f"parts/dent/{i}.png", size=(900, 900))
        mask(tmp_path / f"parts/ground_truth/dent/{i}.png", size=(900, 900), box=(5, 5, 5 + side, 5 + side))
    words = [
        "method=winclip",
        "backbone=tiny_random",
        "dataset=folder",
        "dataset.train=null",
        "pictures.per_category=0",
    ]
    assert main(["evaluate", *words, f"dataset.test.root={tmp_path / 'parts'}", f"output_dir={tmp_path / 'out'}"]) == 0
    (told,) = [message for message in caplog.messages if "masks" in message]
    assert told.startswith("2 of 3 masks are empty at 96 px") and "dent/1.png" in told and "dent/2.png" in told


def test_references_leave_the_test_set_however_their_paths_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    for i in range(4):
        picture(Path(f"parts/good/{i}.png"), size=(60, 60), value=10 * i)
        picture(Path(f"parts/dent/{i}.png"), size=(60, 60), value=100 + i)
    words = [*WORDS, "train_on=nothing", "shots=2"]
    assert main(["train", *words, "dataset.test.root=parts", "output_dir=run"]) == 0
    shutil.copytree("parts", "elsewhere")
    ckpt = "ckpt=run/checkpoints/last.ckpt"
    for i, root in enumerate(
        ("parts", "./parts", str(tmp_path / "parts"), "../" + tmp_path.name + "/parts", "elsewhere")
    ):
        assert main(["evaluate", ckpt, f"dataset.test.root={root}", f"output_dir=again{i}"]) == 0
        rows = Path(f"again{i}/images.csv").read_text().splitlines()
        assert len(rows) == 1 + 8 - 2, root
    assert caplog.text.count("2 of 8 test images are in the checkpoint's memory and left out") == 5
