"""Every method on a GPU in every precision: it trains and scores, without a warning, near what the CPU gives in float32."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from anomaly_vlm.cli import main
from anomaly_vlm.runs.groups import choices
from tests.gpu.conftest import COLUMNS, report_text
from tests.methods.test_every_method import PICTURES, SMALL, TINY, WORDS, trains_on

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


def words(method: str, accelerator: str, precision: str) -> list[str]:
    """A small run of a method."""
    found = [word for word in SMALL if not word.startswith("trainer=")]
    found += [*([] if method == "vl4ad" else PICTURES), *WORDS.get(method, TINY)]
    if trains_on(method) != "dataset":
        found.remove("dataset.train.size=48")
    plain = ["pictures.curves=false", "compare_untrained=false", "seed=0"]
    return [f"method={method}", *found, *plain, f"trainer.accelerator={accelerator}", f"trainer.precision={precision}"]


def scores(folder: Path, arguments: list[str]) -> dict[str, float]:
    """Image scores by path; the run has ended well and all its results are finite or undefined."""
    assert main(["train", *arguments, f"output_dir={folder}"]) == 0
    results = json.loads((folder / "metrics.json").read_text())["results"]
    assert results and all(value is None or math.isfinite(value) for value in results.values())
    with (folder / "images.csv").open(newline="") as file:
        found = {row["path"]: float(row["score"]) for row in csv.DictReader(file)}
    assert all(math.isfinite(score) for score in found.values())
    return found


def largest_change(one: dict[str, float], other: dict[str, float]) -> float:
    """Of any image's score, as a share of the range of all scores."""
    assert one.keys() == other.keys()
    values = list(one.values())
    spread = max(values) - min(values) or 1.0
    return max(abs(one[path] - other[path]) for path in one) / spread


@pytest.fixture(scope="module")
def on_the_cpu(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, float]]:
    """The scores of a method in float32 on the CPU, computed once."""
    kept: dict[str, dict[str, float]] = {}

    def of(method: str) -> dict[str, float]:
        if method not in kept:
            kept[method] = scores(tmp_path_factory.mktemp("cpu") / method, words(method, "cpu", "32-true"))
        return kept[method]

    return of


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("method", choices("method"))
def test_on_a_gpu(
    method: str,
    precision: str,
    on_the_cpu: Callable[[str], dict[str, float]],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    torch.cuda.reset_peak_memory_stats()
    found = scores(tmp_path / "run", words(method, "gpu", precision))
    record_property("memory", round(torch.cuda.max_memory_allocated() / 1e6))
    record_property("change", f"{largest_change(on_the_cpu(method), found):.2g}")


def test_the_same_run_on_the_cpu(tmp_path: Path) -> None:
    """What the tests above do, where there is no GPU: two runs are the same, and bfloat16 is not far from float32."""
    whole = scores(tmp_path / "whole", words("linear_heads", "cpu", "32-true"))
    assert largest_change(whole, scores(tmp_path / "again", words("linear_heads", "cpu", "32-true"))) == 0
    change = largest_change(whole, scores(tmp_path / "half", words("linear_heads", "cpu", "bf16-mixed")))
    assert 0 < change < 0.5


def test_the_report_names_machine_and_rows() -> None:
    text = report_text([("adaclip", "16-mixed", "passed", "1.2", "300", "0.01")])
    assert text.startswith("# Methods on ") and f"| {' | '.join(COLUMNS)} |" in text
    assert "| adaclip | 16-mixed | passed | 1.2 | 300 | 0.01 |" in text
