"""`anomaly-vlm benchmark` from the command line: three studies, their tables, and resuming."""

from __future__ import annotations

import csv
import signal
from pathlib import Path

import pytest

from anomaly_vlm.cli import benchmark, main, sweep
from anomaly_vlm.errors import UserError
from anomaly_vlm.reporting.record import write_metrics
from anomaly_vlm.reporting.tables import COSTS, POOLED, shown_columns
from anomaly_vlm.runs.compose import compose_job
from anomaly_vlm.runs.groups import choices
from anomaly_vlm.runs.stopping import Stopped, resume_command
from anomaly_vlm.runs.sweeps import expand
from tests.e2e.conftest import SMALL_PICTURES

pytestmark = pytest.mark.e2e

WITHOUT_DOWNLOAD = {"saa", "vl4ad", "dinov2", "sam"}  # a detector, roads, towers of their own


def test_every_method_that_needs_no_download_is_in_it() -> None:
    found = set()
    for study in benchmark.STUDIES:
        words = [f"experiment=benchmark/{study}"]
        cfg, settings = compose_job(words)
        assert (cfg.selection, bool(cfg.shots), cfg.seeds[0]) == ("last", study == "few_shot", 0)
        found |= {word for job in expand(words, settings["sweeper"]) for word in job if word.startswith("method=")}
    assert found == {f"method={name}" for name in choices("method") if name not in WITHOUT_DOWNLOAD}


def record(folder: Path, method: str, value: float, texts: str = "as_written", shots: int = 0) -> None:
    folder.mkdir(parents=True)
    names = ("image_auroc", "image_ap", "pixel_auroc", "pixel_ap", "pixel_aupro", "pixel_aupro_limit0.05")
    results = {f"{group}/{name}": value for group in ("gear", "tile", "mean", "pooled") for name in names}
    facts = {
        "method": method,
        "backbone": "nano",
        "data": "tested on b (9 images)",
        "seed": 0,
        "shots": shots,
        "texts": texts,
    }
    facts |= {"overrides": [f"texts={texts}"], "config": method + texts, "cost": {"gflops": 2.0, "ms_per_image": 3.0}}
    write_metrics(folder / "metrics.json", results, facts)


def test_the_report_has_every_study(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for i, method in enumerate(("winclip", "adaclip")):
        record(tmp_path / "zero_shot" / str(i), method, 0.5 + i / 10)
        record(tmp_path / "few_shot" / str(i), method, 0.5 + i / 10, shots=4)
        for j, texts in enumerate(("as_written", "random")):
            record(tmp_path / "texts" / f"{i}{j}", method, 0.5 - j / 10, texts)
    benchmark.write_report(tmp_path)
    out = capsys.readouterr().out
    for title in ("Without references", "With references", "Does the text matter?", "Without references: cost"):
        assert title in out and title in (tmp_path / "tables.html").read_text()
    with (tmp_path / "table_texts_difference.csv").open() as file:
        assert {row["image AUROC"] for row in csv.DictReader(file)} == {"'-10.0 [-10.0, -10.0]"}
    with (tmp_path / "table_zero_shot_cost.csv").open() as file:
        assert [row["GFLOPs an image"] for row in csv.DictReader(file)] == ["2", "2"]


def test_the_columns_of_the_report_are_those_of_records() -> None:
    known = {*shown_columns({"mean/pixel_aupro_limit0.05": 0.0}), *POOLED, *COSTS}
    assert {*benchmark.QUALITY.split(","), *benchmark.COST.split(",")} <= known


def test_mistakes_are_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="limit=many: give a number of pictures"):
        benchmark.run(["limit=many"])
    assert not list(tmp_path.iterdir())


def test_stopped_it_names_the_command_for_all_its_studies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def stopped(words: object) -> int:
        with resume_command("sweep", "resume=outputs/benchmark/zero_shot"):
            raise Stopped(signal.SIGTERM)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "run", stopped)
    assert main(["benchmark", "limit=4"]) == 143
    assert capsys.readouterr().err == "anomaly-vlm: stopped by SIGTERM; resume with: anomaly-vlm benchmark limit=4\n"


@pytest.mark.slow
def test_the_benchmark_from_the_command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    words = [
        "limit=12",
        "backbone=tiny_random",
        "image_size=64",
        "seeds=[0]",
        *SMALL_PICTURES[1:],
        "trainer=cpu",
        "shots=1",
    ]
    words += ["hydra.launcher.own_process=false", "callbacks.progress=none", "method=winclip"]
    monkeypatch.setattr(benchmark, "STUDIES", ("few_shot",))
    assert main(["benchmark", *words]) == 0
    assert "With references: cost" in capsys.readouterr().out
    page = Path(benchmark.FOLDER) / "tables.html"
    before = Path(benchmark.FOLDER, "few_shot", "0", "seed_0", "metrics.json").stat().st_mtime_ns
    page.unlink()
    assert main(["benchmark", *words]) == 0 and page.is_file()
    assert Path(benchmark.FOLDER, "few_shot", "0", "seed_0", "metrics.json").stat().st_mtime_ns == before
