"""The benchmark's parts on a tiny set: every contender computes what it says, and limits are judged as they are written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anomaly_vlm.bench import _contenders, _metric_data, metrics
from anomaly_vlm.bench._limits import StreamResult, judge, judge_stream
from anomaly_vlm.bench._measure import Measured, measure, run_here
from anomaly_vlm.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("bench") / "set"
    share = _metric_data.write_set(place, 1, 4, 96)
    assert 0.005 < share < 0.2
    return str(place)


@pytest.fixture(scope="module")
def exact(folder: str) -> dict[str, float]:
    return _contenders.reference(folder, False)()


def test_images_depend_on_seed_and_index_alone() -> None:
    first, again, other = (_metric_data.draw(3, index, 64) for index in (5, 5, 6))
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])
    assert first[0].dtype == np.float32 and first[0].shape == (64, 64) and 0 < first[0].min() < first[0].max() < 1
    assert not _metric_data.draw(3, 8, 64)[1].any()


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [("published", 0.1), ("torchmetrics_exact", 1e-5), ("adeval_arrays", 0.01), ("adeval_accumulator", 0.01)],
)
def test_contenders_are_close_to_the_reference(
    name: str, tolerance: float, folder: str, exact: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    if name.startswith("adeval"):
        pytest.importorskip("adeval")
        monkeypatch.setattr(np, "trapz", getattr(np, "trapezoid", None) or np.trapz, raising=False)
    found = getattr(_contenders, name)(folder)()
    for value in found:
        assert abs(found[value] - exact[value]) < (tolerance if value == "aupro" else min(tolerance, 0.01)), value


def test_published_routine_is_the_legacy_option(folder: str) -> None:
    ours = _contenders.ours(folder, legacy=True)()
    assert _contenders.published(folder)()["aupro"] == pytest.approx(ours["aupro_legacy"], abs=1e-6)


def test_ours_is_the_reference(folder: str, exact: dict[str, float]) -> None:
    for options, reference in (({}, exact), ({"half": True}, _contenders.reference(folder, True)())):
        found = _contenders.ours(folder, **options)()
        assert {name: found[name] for name in reference} == pytest.approx(reference, abs=1e-12)
        assert found["update_ms_regions"] > 0 and found["update_ms_normal"] > 0


def test_streams_forget_their_images() -> None:
    found = _contenders.stream(1, 48, 8, half=False, mode="binned")()
    assert found["num_pixels"] == 8 * 48 * 48 and len(found["peaks_mb"]) == 2


WORK = """
import numpy as np
calls = []
def make(size):
    def work():
        calls.append(np.ones(size).sum())
        return {"calls": len(calls)}
    return work
"""


def test_measuring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some_work.py").write_text(WORK)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = measure("some_work:make", {"size": 4_000_000})
    assert done.runs == 3 and 1 <= done.facts["calls"] <= 3
    assert done.cpu > 0 and done.wall > 0 and 20 < done.memory < 100
    with pytest.raises(UserError, match=r"the benchmark of nothing failed: .*no attribute 'nothing'"):
        measure("anomaly_vlm.bench._metric_data:nothing", {})


def measured(cpu: float, memory: float = 1.0, **facts: float) -> Measured:
    return Measured(cpu, cpu, 1, memory, facts)


def results(values: dict[str, float], scale: float) -> dict[str, Measured]:
    bounds = {f"{name}/{end}": value for name, value in values.items() for end in ("lower", "upper")}
    timed = {**values, "update_ms_regions": 1.0 * scale, "update_ms_normal": 0.6 * scale}
    return {
        "official routine": measured(200.0),
        "torchmetrics exact": measured(50.0),
        "ADEval arrays": measured(1.5),
        "ADEval accumulator": measured(1.5),
        "ours exact": measured(1.0 * scale, 100 * scale, **timed),
        "ours exact, legacy too": measured(1.2 * scale**2),
        "ours float16": measured(0.3 * scale, 10 * scale, **values),
        "ours binned": measured(1.0 * scale, 60 * scale, **values, **bounds),
    }


def test_limits() -> None:
    values = dict.fromkeys(("auroc", "ap", "f1_max", "f1_max_threshold", "fpr95", "aupro"), 0.5)
    references = {False: {**values, "binned_half_width": 2e-12}, True: values}
    met = judge("set", 1000, results(values, 1.0), references, main=True, small=False)
    assert all(limit.met for limit in met)
    assert not any("anomalib" in limit.what for limit in met)
    slow = judge("set", 1000, results(values, 3.0), references, main=True, small=False)
    missed = [limit.what.removeprefix("set: ") for limit in slow if not limit.met]
    assert missed == [
        "exact faster than official routine",
        "exact faster than torchmetrics exact",
        "exact float32, of ADEval's CPU time",
        "exact float16 faster than ADEval",
        "binned, of ADEval's accumulator's CPU time",
        "update of a normal image (median)",
        "memory, exact (5 B a pixel + 150 MB)",
        "memory, float16",
        "memory, binned",
        "exact with legacy values, of exact",
    ]
    off = {False: {**references[False], "ap": 0.5001, "f1_max_threshold": 0.4}, True: values}
    wrong = [
        limit.what for limit in judge("set", 1000, results(values, 1.0), off, main=True, small=True) if not limit.met
    ]
    assert wrong == [
        "set: exact, largest deviation",
        "set: exact, threshold bit for bit",
        "set: binned intervals contain the reference",
    ]
    assert [limit.met for limit in judge_stream(StreamResult("float16", 9, 19.0, 6.0, 1.0))] == [True, False]


def test_child_process(folder: str, exact: dict[str, float]) -> None:
    done = measure("anomaly_vlm.bench._contenders:reference", {"folder": folder, "half": False})
    assert done.facts == exact and done.runs == 3 and done.cpu > 0


def test_a_small_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Everything in this process, which spares a start of Python and torch for every contender."""

    def here(target: str, arguments: dict[str, Any]) -> Measured:
        return run_here(getattr(_contenders, target.rpartition(":")[2])(**arguments))

    monkeypatch.setattr(metrics, "QUICK_SETS", ((4, 64),))
    monkeypatch.setattr(metrics, "measure", here)
    monkeypatch.setattr(np, "trapz", getattr(np, "trapezoid", None) or np.trapz, raising=False)
    metrics.run(tmp_path, quick=True)
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert len(lines) >= 6 and lines[0].startswith("set,contender,cpu_s,cpu_of_exact")
    assert (tmp_path / "metrics.png").read_bytes().startswith(b"\x89PNG")
    assert "limits met" in capsys.readouterr().out
