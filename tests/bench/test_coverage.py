"""The coverage benchmark: thresholds of draws of good parts, tried on the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from anomaly_vlm.bench import coverage
from anomaly_vlm.errors import UserError


def test_a_table_of_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(coverage, "WORDS", (*coverage.WORDS, "backbone=tiny_random", "image_size=64"))
    monkeypatch.setattr(coverage, "PARTS", 4)
    coverage.draw_parts(tmp_path, 10)
    coverage.run(tmp_path, quick=True, good=str(tmp_path))
    rows = (tmp_path / "coverage.csv").read_text().splitlines()
    assert rows[0] == "draw,rejected" and len(rows) == 4
    assert all(0 <= float(row.split(",")[1]) <= 1 for row in rows[1:])
    assert "3 draws of 4, 6 others tried" in capsys.readouterr().out
    with pytest.raises(UserError, match="give at least 40"):
        monkeypatch.setattr(coverage, "PARTS", 20)
        coverage.coverage(str(tmp_path), draws=1)
