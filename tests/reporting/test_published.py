"""Published numbers beside measured ones."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from anomaly_vlm.cli import main
from anomaly_vlm.cli.compare import experiments_dir
from anomaly_vlm.reporting.published import PROTOCOL, Study
from anomaly_vlm.reporting.record import write_metrics
from anomaly_vlm.runs.groups import choices

STUDIES = sorted(path.parent.name for path in experiments_dir().glob("*/published.csv"))
RESULTS = {"mean/image_auroc": 0.9, "metal_nut/pixel_f1_max": 0.25, "mean/pixel_f1_max": 0.5}


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def measure(
    folder: str, method: str = "adaclip", dataset: str = "mvtec_ad", results: Any = RESULTS, **facts: Any
) -> None:
    Path(folder).mkdir(parents=True)
    known = {"method": method, "backbone": "nano CLIP", "seed": 0, "shots": 0, "selection": "last", "image_size": 224}
    known |= {"data": f"trained on procedural (840 images), tested on {dataset} (50 of 1,725 images)"}
    known |= {"choices": {"backbone": "nano", "source@dataset.test": dataset}, "images": 50, "images_in_test_set": 1725}
    write_metrics(Path(folder) / "metrics.json", results, {**known, **facts})


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_has_a_protocol_and_means_of_its_methods(name: str) -> None:
    study = Study.read(experiments_dir() / name)
    assert set(study.protocol) == {"methods", "backbone", "notes", *PROTOCOL} or set(study.protocol) == {
        "methods",
        "backbone",
        *PROTOCOL,
    }
    assert set(study.protocol["methods"]) <= set(choices("method"))
    assert {word.strip() for word in study.protocol["backbone"].split(",")} <= set(choices("backbone"))
    for method in study.protocol["methods"]:
        rows = study.of(method)
        assert any(row.category == "mean" for row in rows)
        assert all(0 < row.value <= 1 for row in rows)
        assert any(row.dataset in choices("source") for row in rows)


def test_published_measured_and_their_difference(capsys: pytest.CaptureFixture) -> None:
    for seed, value in ((0, 0.8), (1, 0.9)):
        measure(f"outputs/{seed}", seed=seed, results={**RESULTS, "mean/image_auroc": value})
    measure("outputs/other", method="faprompt")
    assert main(["compare", "study=adaclip", "to=tables"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "published tower: CLIP ViT-L/14-336 (OpenAI)" in said and "the one with the best pixel max-F1 on VisA" in said
    )
    assert "other weights: measured on nano CLIP" in said and "50 of 1,725 test images were evaluated" in said
    assert "seeds: 0, 1; published: one" in said
    with Path("tables/table_mvtec_ad_1.csv").open(newline="") as file:
        rows = {row["category"]: row for row in csv.DictReader(file)}
    assert len(rows) == 16
    mean = rows["mean"]
    found = [mean[f"image AUROC, {what}"] for what in ("published", "measured", "difference")]
    assert found == ["89.2", "85.0", "-4.2"]  # 89.2 as printed in the paper's table 1
    assert rows["metal_nut"]["pixel max-F1, measured"] == "25.0" and rows["wood"]["pixel max-F1, measured"] == ""


def test_few_shot_runs_are_compared_with_their_number_of_shots(capsys: pytest.CaptureFixture) -> None:
    measure("outputs/a", method="winclip", dataset="visa", shots=2, selection=None)
    assert main(["compare", "study=few_shot", "format=csv"]) == 0
    assert "mean,84.6,90.0,+5.4" in capsys.readouterr().out


def test_without_a_run_the_published_means_are_shown(capsys: pytest.CaptureFixture) -> None:
    measure("outputs/a", dataset="procedural")
    assert main(["compare", "study=musc"]) == 0
    out = capsys.readouterr().out
    assert "nothing measured" in out and "97.8" in out and "EXPERIMENT=musc" in out


@pytest.mark.parametrize(
    "words, told",
    [
        ([], "no study given: add study=NAME, one of aaclip"),
        (["study=adaclp"], "did you mean adaclip"),
        (["study=adaclip", "runs=nowhere"], "no such folder"),
        (["study=adaclip", "format=word"], "unknown format 'word'"),
        (["study=adaclip", "ckpt=x"], "is no key of compare"),
    ],
)
def test_mistakes_are_one_line(words: list[str], told: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["compare", *words]) == 2
    err = capsys.readouterr().err
    assert told in err and err.count("\n") == 1
