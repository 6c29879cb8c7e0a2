"""`anomaly-vlm nano-report`: the table of what the embedded default is worth."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from anomaly_vlm.cli import main
from anomaly_vlm.nano import compare


@pytest.mark.slow
def test_the_report_says_what_adaclip_learned_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compare, "DRAWS", 5)
    assert main(["nano-report", "ckpt=package:adaclip", "limit=12"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "procedural, 12 images" in told and "AdaCLIP: trained on drawn pictures of 48 families" in told
    with (tmp_path / "outputs" / "nano_report" / "report.csv").open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert {"random weights", "nano zero-shot", "nano + AdaCLIP", "mean brightness"} <= set(rows)
    assert float(rows["nano + AdaCLIP"]["minus_trivial_low"]) <= float(rows["nano + AdaCLIP"]["high"])
    assert rows["mean brightness"]["minus_trivial_low"] == ""
