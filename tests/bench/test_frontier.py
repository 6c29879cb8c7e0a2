"""The frontier's benchmark: its pieces of work run, and their table is written."""

from __future__ import annotations

import csv
import importlib
from pathlib import Path
from typing import Any

import pytest

from anomaly_vlm.bench import frontier
from anomaly_vlm.bench._measure import Measured


def test_every_row_is_measured_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def measure(target: str, arguments: dict[str, Any]) -> Measured:
        asked.append(arguments)
        module, _, name = target.partition(":")
        assert callable(getattr(importlib.import_module(module), name))
        return Measured(cpu=1.0, wall=2.0, runs=1, memory=50.0, facts={"images": 4})

    monkeypatch.setattr(frontier, "measure", measure)
    frontier.run(tmp_path, quick=True)
    rows = list(csv.reader((tmp_path / "frontier.csv").read_text().splitlines()))
    assert [row[0] for row in rows[1:-1]] == [frontier.TOWER, *frontier.METHODS]
    assert rows[1] == [frontier.TOWER, "500.0", "1.00x", "50"] and rows[-1][-1] == "yes"
    assert asked[-1]["name"] == "musc"


@pytest.mark.parametrize("options", [{"name": "anomalydino", "shots": 1, "images": 1}, {"name": "musc", "images": 5}])
def test_the_work_runs(options: dict[str, Any]) -> None:
    assert frontier.method("tiny_random", **options)() == {"images": options["images"]}
    assert frontier.tower("tiny_random")()["images"] == 8
