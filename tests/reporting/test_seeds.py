"""The table over seeds, and the numbers beside it."""

from __future__ import annotations

import csv
import io
import json

import pytest
from rich.console import Console

from anomaly_vlm.reporting.seeds import seeds_table


def row(seed: int, value: float, other: float | None) -> dict:
    results = {
        "gear/image_auroc": value,
        "gear/pixel_auroc": other,
        "mean/image_auroc": value,
        "mean/pixel_auroc": other,
    }
    return {
        "run": f"seed_{seed}",
        "method": "m",
        "backbone": "b",
        "data": "d",
        "seed": seed,
        "results": results,
        "selection": "best_test",
    }


def test_mean_and_deviation_of_every_category(tmp_path):
    table = seeds_table(
        [row(0, 0.5, 0.9), row(1, 0.7, None)], csv_path=tmp_path / "s.csv", json_path=tmp_path / "s.json"
    )
    console = Console(file=io.StringIO(), width=160)
    console.print(table)
    text = console.file.getvalue()
    assert "60.0 ± 14.1" in text and "2 seeds" in text
    assert "epoch chosen ON THE TEST SET" in text
    assert "90.0" in text, "one defined value stands alone"
    summary = json.loads((tmp_path / "s.json").read_text())
    assert summary["mean"]["gear/image_auroc"] == pytest.approx(0.6)
    assert summary["deviation"]["gear/image_auroc"] == pytest.approx(0.02**0.5)
    assert "gear/pixel_auroc" not in summary["deviation"]
    rows = list(csv.DictReader((tmp_path / "s.csv").read_text().splitlines()))
    assert len(rows) == 4 and rows[0]["image_auroc"] == "0.5" and rows[2]["pixel_auroc"] == ""


@pytest.mark.parametrize(
    ("extra", "titles"),
    [
        (["pixel_aupimo", "pixel_aupro_limit0.05"], ["image AUROC", "AUPIMO", "AUPRO at 0.05"]),
        (["component_f1", "pixel_ap"], ["AP", "F1*", "FPR95"]),
    ],
)
def test_columns_are_those_of_a_single_run(extra, titles, tmp_path):
    rows = [row(seed, 0.5, 0.9) for seed in (0, 1)]
    for one in rows:
        one["results"] |= {f"{group}/{name}": 0.25 for group in ("gear", "mean") for name in extra}
    table = seeds_table(rows, csv_path=tmp_path / "s.csv", json_path=tmp_path / "s.json")
    shown = {column.header: list(column.cells) for column in table.columns}
    assert set(titles) <= set(shown), shown.keys()
    assert all(
        shown[title] == ["25.0 ± 0.0"] * 2 for title in titles if title in ("AUPIMO", "AUPRO at 0.05", "AP", "F1*")
    )
