"""Tables in percent, CSV unrounded, many runs as one table."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
from rich.console import Console

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
