"""VL4AD's benchmark on the tiny ConvNeXt and small pictures: its parts, its ways of scoring, what it writes."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from anomaly_vlm.bench import vl4ad
from anomaly_vlm.bench._measure import run_here
from anomaly_vlm.methods.vl4ad import VL4AD
from tests.support.road import small_vl4ad

SMALL = (32, 64)


def tiny(name: str = "") -> VL4AD:
    return small_vl4ad(merge="none", losses={}).eval()


def test_parts_ways_and_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def in_this_process(target: str, arguments: dict[str, Any]) -> SimpleNamespace:
        asked.append(arguments["chunk"])
        facts = vl4ad.scoring_work(**arguments)()
        return SimpleNamespace(wall=0.5, memory=1.0 + len(asked), facts=facts)

    monkeypatch.setattr(vl4ad, "method", tiny)
    monkeypatch.setattr(vl4ad, "measure", in_this_process)
    monkeypatch.setattr(vl4ad, "QUICK_SIZE", SMALL)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    vl4ad.run(tmp_path, quick=True)
    rows = {row["what"]: row for row in csv.DictReader((tmp_path / "vl4ad.csv").read_text().splitlines())}
    assert list(rows) == ["encoder", "decoder", "scoring", "scoring: 16 masks at a time", "scoring: all masks at once"]
    assert all(float(row["seconds"]) > 0 for row in rows.values())
    assert asked == [16, None] and rows["scoring: all masks at once"]["peak_mb"] == "3.0"


def test_both_ways_score_alike() -> None:
    means = [vl4ad.scoring_work(list(SMALL), chunk)()["mean"] for chunk in (16, 64, None)]
    assert means[0] == pytest.approx(means[2], rel=1e-5) and means[1] == pytest.approx(means[2], rel=1e-5)


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="this system cannot reset a process's peak memory"
)
def test_streaming_stays_below_all_masks_at_once() -> None:
    """250 masks of 256 x 512 are 131 MB; streamed, 16 of them and the class sums are 20 MB."""
    size = [256, 512]
    streamed, plain = (run_here(vl4ad.scoring_work(size, chunk)).memory for chunk in (16, None))
    assert plain > 120 and streamed < plain / 2
