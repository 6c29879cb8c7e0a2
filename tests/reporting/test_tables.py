"""Tables in percent, CSV unrounded, many runs as one table."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from anomaly_vlm.reporting.collect import collect_runs, sweep_table
from anomaly_vlm.reporting.console import show
from anomaly_vlm.reporting.record import environment, write_metrics
from anomaly_vlm.reporting.tables import categories, percent, results_table, write_csv

RESULTS = {
    "gear/image_auroc": 0.91234,
    "gear/pixel_auroc": math.nan,
    "tile/image_auroc": 0.5,
    "tile/pixel_auroc": 0.25,
    "mean/image_auroc": 0.70617,
    "mean/pixel_auroc": 0.25,
    "pooled/image_auroc": 0.7,
}
FACTS = {
    "method": "adaclip",
    "backbone": "tiny, random weights (seed 0)",
    "data": "trained on a, tested on b",
    "seed": 3,
}


def rendered(table) -> str:
    console = Console(width=160, file=None)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_percent_and_categories() -> None:
    assert [percent(0.91234), percent(math.nan), percent(None)] == ["91.2", "-", "-"]
    assert categories(RESULTS) == ["gear", "tile"]


def test_results_table_names_its_weights_and_shows_means() -> None:
    text = rendered(results_table(RESULTS, head=["adaclip on tiny, random weights (seed 0)", FACTS["data"]]))
    assert "random weights (seed 0)" in text and "trained on a, tested on b" in text
    cells = [line.strip("│┃ ").replace("│", " ").split()[:2] for line in text.splitlines()]
    assert ["gear", "91.2"] in cells and ["mean", "70.6"] in cells
    assert "200 steps" not in text
    assert "200 steps" in rendered(results_table({**RESULTS, "mean/pixel_aupro_legacy": 0.1}, head=[]))


def test_csv_keeps_every_digit(tmp_path: Path) -> None:
    write_csv(tmp_path / "r.csv", RESULTS, FACTS)
    with (tmp_path / "r.csv").open() as file:
        rows = {row["category"]: row for row in csv.DictReader(file)}
    assert float(rows["gear"]["image_auroc"]) == 0.91234
    assert rows["gear"]["pixel_auroc"] == ""
    assert rows["pooled"]["image_auroc"] == "0.7"
    assert rows["mean"]["backbone"] == FACTS["backbone"]


def test_metrics_json_is_plain_json(tmp_path: Path) -> None:
    write_metrics(tmp_path / "metrics.json", RESULTS, {**FACTS, "environment": environment()})
    text = (tmp_path / "metrics.json").read_text()
    content = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert content["results"]["gear/pixel_auroc"] is None
    assert content["environment"]["versions"]["torch"]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


def make_runs(root: Path) -> None:
    for i, (depth, seed, value) in enumerate([("2", "0", 0.5), ("2", "1", 0.7), ("4", "0", 0.9), ("4", "1", 0.9)]):
        folder = root / str(i)
        folder.mkdir(parents=True)
        facts = {
            **FACTS,
            "seed": int(seed),
            "overrides": [f"method.prompts.depth={depth}", f"seed={seed}", "method=adaclip"],
        }
        write_metrics(folder / "metrics.json", {"mean/image_auroc": value}, facts)
    (root / "10").mkdir()
    (root / "10" / "metrics.json").write_text("[broken")


def test_sweep_table_joins_seeds(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_runs(tmp_path)
    rows = collect_runs(tmp_path)
    assert [row["run"] for row in rows] == ["0", "1", "2", "3"]
    assert "is no record of a run" in caplog.text
    text = rendered(sweep_table(rows, csv_path=tmp_path / "sweep.csv"))
    assert "60.0 ± 14.1" in text and "90.0 ± 0.0" in text
    assert "method.prompts.depth" in text and "│ method=" not in text
    with (tmp_path / "sweep.csv").open() as file:
        written = list(csv.DictReader(file))
    assert [row["image_auroc"] for row in written] == ["0.5", "0.7", "0.9", "0.9"]
    assert [row["method.prompts.depth"] for row in written] == ["2", "2", "4", "4"]


def test_lists_in_overrides_are_shown_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rows = [
        {
            "run": str(i),
            "method": "m",
            "backbone": "b",
            "data": "d",
            "seed": 0,
            "overrides": {"without": part},
            "means": {},
        }
        for i, part in enumerate(("[]", "[mmci]"))
    ]
    show(sweep_table(rows, csv_path=tmp_path / "sweep.csv"))
    assert "[mmci]" in capsys.readouterr().out


def test_runs_that_differ_in_nothing_but_the_seed(tmp_path: Path) -> None:
    for name, value in (("a", 0.5), ("b", 0.7)):
        (tmp_path / name).mkdir()
        write_metrics(tmp_path / name / "metrics.json", {"mean/image_auroc": value}, FACTS)
    lines = rendered(sweep_table(collect_runs(tmp_path), csv_path=tmp_path / "s.csv")).splitlines()
    cells = [line.strip("│┃ ").replace("│", " ").split()[:5] for line in lines]
    assert ["a", "1", "50.0", "-", "-"] in cells and ["all", "2", "60.0", "±", "14.1"] in cells
