"""The HTML page of runs: one file, escaped, with counts, plots and pictures of an evaluation and a prediction."""

from __future__ import annotations

import csv
import json
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomaly_vlm.cli import main
from anomaly_vlm.errors import UserError
from anomaly_vlm.reporting.curves import write_curves
from anomaly_vlm.reporting.page import RunPage, histogram, read_run, write_page

EVIL = "<script>alert(1)</script>"


def run_folder(folder: Path) -> Path:
    """What an evaluation leaves: three good and three defective images, one of each decided wrongly."""
    (folder / "pictures").mkdir(parents=True)
    with (folder / "images.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "category", "label", "score", "decision", "picture"])
        for i, (label, score) in enumerate([(0, 0.1), (0, 0.2), (0, 0.7), (1, 0.3), (1, 0.8), (1, 0.9)]):
            decision = "NOT OK" if score > 0.5 else "OK"
            name = f"pictures/{i}.png"
            Image.fromarray(np.full((20, 60, 3), 40 * i, np.uint8)).save(folder / name)
            writer.writerow([f"parts/{EVIL if i == 3 else 'a'}/{i}.png", "gear", label, score, decision, name])
    results = {"gear/image_auroc": 0.888, "mean/image_auroc": 0.888, "mean_count/image_auroc": 6.0}
    record = {"results": results, "method": EVIL}
    record["decisions"] = {"gear": {"threshold": 0.5}}
    (folder / "metrics.json").write_text(json.dumps(record))
    return folder


def test_a_page_of_an_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = run_folder(tmp_path / "run")
    assert main(["report", f"run={run}"]) == 0
    assert "report.html" in capsys.readouterr().out
    page = (run / "report.html").read_text(encoding="utf-8")
    assert EVIL not in page and "&lt;script&gt;alert(1)" in page
    assert "2 of 3 (9 to 99 %)" in page and "1 of 3 (1 to 91 %)" in page and "88.8" in page
    assert "mean_count" not in page and "600.0" not in page
    assert page.count("data:image/jpeg;base64,") == 6
    assert not re.search(r"(src|href)=.(?!data:|#)", page)  # nothing from outside
    captions = [text for text in re.findall(r"<figcaption[^>]*>([^<]*)", page) if "score" in text]
    assert captions[0].startswith("false alarm: ") and captions[1].startswith("missed: ")


def test_several_side_by_side_and_a_prediction(tmp_path: Path) -> None:
    one, other = run_folder(tmp_path / "one"), tmp_path / "other"
    other.mkdir()
    (other / "scores.csv").write_text("path,score,percentile,decision,picture\na/1.png,0.4,90,OK,\n")
    (other / "unreadable.csv").write_text("path,reason\nb.png,empty\n")
    page = write_page([one, other])
    assert "2 runs" in page and "1 files could not be read" in page and page.count("<section") == 2


def test_curves_of_an_evaluation_by_category_by_defect_and_of_several_runs(tmp_path: Path) -> None:
    one, other = run_folder(tmp_path / "one"), run_folder(tmp_path / "other")
    curve = (np.array([0.0, 0.5, 1.0]), np.array([0.0, 1.0, 1.0]))
    curves = {(name, "pixel"): {"pro": curve, "roc": curve} for name in ("gear", "pooled", EVIL)}
    write_curves(one / "curves.csv", curves)
    run = read_run(one)
    pixel_roc, pro, by_defect = run.panels
    assert [line.name for line in pro.lines] == ["gear", EVIL, "all images"] and pro.lines[2].colour == ""
    assert pro.lines[0].points == "10.0,210.0 110.0,10.0 210.0,10.0"
    assert pixel_roc.has_chance and not pro.has_chance
    assert [line.name.split(",")[0] for line in by_defect.lines] == [Path(EVIL).name, "a"]
    page = write_page([one, other])
    assert EVIL not in page and "image ROC of the runs" in page and "region overlap over false positives" in page


def test_a_prediction_without_a_threshold_has_no_column_of_categories(tmp_path: Path) -> None:
    (tmp_path / "scores.csv").write_text("path,score,percentile,decision,picture\na/1.png,0.4,,,\n")
    assert "<th>category</th>" not in write_page([tmp_path])


def test_a_histogram_shows_the_scores_that_are_decided_by(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    rows = list(csv.DictReader((run / "images.csv").read_text().splitlines()))
    with (run / "images.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "single_image_score"])
        writer.writeheader()
        writer.writerows({**row, "single_image_score": 10 * float(row["score"])} for row in rows)
    page = read_run(run)
    assert [float(row["decision_score"]) for row in page.rows] == [1, 2, 7, 3, 8, 9]
    assert {group["highest"] for group in page.groups} == {"9", "3"}


def test_the_roc_and_the_histogram(tmp_path: Path) -> None:
    run = read_run(run_folder(tmp_path / "run"))
    panel, _ = run.panels  # there are no curves of an evaluation: the ROC of the images
    assert run.auroc.startswith("88.9 (") and panel.lines[0].name == f"AUROC {run.auroc}"
    points = [tuple(map(float, point.split(","))) for point in panel.lines[0].points.split()]
    assert points[0] == (10, 210) and points[-1] == (210, 10)
    rates = [((x - 10) / 200, (210 - y) / 200) for x, y in points]
    area = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(rates))
    assert area == pytest.approx(8 / 9, abs=1e-3)  # 8 of 9 pairs in order
    drawn = histogram(run.rows, "gear", 0.5)
    assert len(drawn["bars"]) == 6 and drawn["limit"] == pytest.approx(20 + 440 * 0.5, abs=1)


def test_metrics_are_those_of_the_console_and_no_counts(tmp_path: Path) -> None:
    results = {"gear/image_auroc": 0.5, "gear/num_regions": 81.0, "gear/pixel_f1_max_threshold": 0.01}
    mean = {"mean/image_auroc": 0.5, "mean_count/image_auroc": 1.0, "pooled/image_auroc": 0.5}
    run = RunPage("run", [], {"method": "winclip", "results": {**results, **mean}})
    assert (run.heading, run.row_name, run.metric_columns) == ("winclip", "category", {"image_auroc": "image AUROC"})
    assert run.metrics == [["gear", "50.0"], ["mean", "50.0"]]
    road = RunPage("run", [], {"results": {"energy/pixel_ap": 0.25, "mean/pixel_ap": 0.25, "mean/component_f1": 0.1}})
    assert (road.row_name, road.metrics[0]) == ("score", ["energy", "25.0", "-"])


def test_decisions_have_columns_only_where_there_are_any(tmp_path: Path) -> None:
    (tmp_path / "scores.csv").write_text("path,score,percentile,decision,picture\na/1.png,0.4,,,\n")
    assert "NOT OK" not in write_page([tmp_path]) and "rejected" not in write_page([tmp_path])
    assert "NOT OK" in write_page([tmp_path, run_folder(tmp_path / "run")])


def test_tiny_probabilities_are_shown_over_their_logarithms() -> None:
    scores = [10.0 ** -(i % 7) for i in range(70)]
    rows = [{"score": f"{score}", "decision_score": f"{score}", "label": "0"} for score in scores]
    drawn = histogram(rows, "gear", 1e-3)
    assert drawn["limit"] == pytest.approx(20 + 440 / 2, abs=0.1)  # half way between 1e-6 and 1
    assert len(drawn["bars"]) == 7 and drawn["legend"].endswith("logarithmic scale")
    assert "logarithmic" not in histogram([{**row, "score": f"{i}"} for i, row in enumerate(rows)], "", None)["legend"]


def test_pictures_from_outside_the_folder_are_not_read(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    Image.new("RGB", (5, 5)).save(tmp_path / "secret.png")
    text = (run / "images.csv").read_text().replace("pictures/5.png", "../secret.png")
    (run / "images.csv").write_text(text)
    assert len(read_run(run).pictures) == 5


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no images.csv or scores.csv"):
        read_run(tmp_path)
    assert main(["report", f"run={tmp_path / 'none'}"]) == 2
