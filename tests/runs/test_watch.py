"""Watching a folder: what counts as arrived, which rows are written, and continuing earlier tables."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest
from PIL import Image

from anomaly_vlm import load_method
from anomaly_vlm.cli import main
from anomaly_vlm.errors import UserError
from anomaly_vlm.metrics.thresholds import from_good_parts
from anomaly_vlm.runs.watch import Arrivals, watch


def picture(path: Path, shade: int = 90) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (24, 16), (shade, 60, 30)).save(path)
    return path


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_file_counts_once_it_stays_the_same(tmp_path: Path) -> None:
    arrivals = Arrivals(tmp_path)
    first = picture(tmp_path / "a" / "1.png")
    (tmp_path / "notes.txt").write_text("no image")
    assert arrivals.look() == []
    first.write_bytes(first.read_bytes() + b"more")  # still being copied
    assert arrivals.look() == []
    assert arrivals.look() == [first] and arrivals.look() == []
    os.utime(first, ns=(1, 1))  # another file under the same name
    assert arrivals.look() == [] and arrivals.look() == [first]
    first.unlink()
    assert arrivals.look() == []
    with pytest.raises(UserError, match="no such folder"):
        Arrivals(tmp_path / "gone").look()


def test_masks_beside_their_images_do_not_arrive(tmp_path: Path) -> None:
    arrivals = Arrivals(tmp_path)
    first = picture(tmp_path / "1.png")
    for name in ("1_mask.png", "masks/1.png"):
        picture(tmp_path / name)
    assert arrivals.look() == [] and arrivals.look() == [first]


def test_rows_are_appended_and_a_later_watch_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    method = load_method("winclip", "tiny_random", overrides=["image_size=64"])
    score = float(method(picture(tmp_path / "in" / "1.png"), category="lid").score)
    method.decision_thresholds = {"lid": from_good_parts([score - 1e-3], [-1.0], [-2.0])}
    (tmp_path / "in" / "broken.png").write_bytes(b"no image at all")
    out = tmp_path / "out"
    out.mkdir()
    assert watch(method, tmp_path / "in", out, category="lid", every=0.01, looks=3) == 1
    (row,) = rows(out / "scores.csv")
    assert row["decision"] == "NOT OK" and float(row["score"]) == pytest.approx(score) and row["percentile"] == "100"
    (region,) = rows(out / "regions.csv")  # the whole image: every map value is above -1
    assert [int(region[key]) for key in ("left", "top", "right", "bottom", "area")] == [0, 0, 24, 16, 384]
    (bad,) = rows(out / "unreadable.csv")
    assert "broken.png" in bad["path"] and "cannot be read" in bad["reason"]
    assert f"NOT OK {score:.3g}" in capsys.readouterr().out
    picture(tmp_path / "in" / "2.png", 200)
    assert watch(method, tmp_path / "in", out, category="lid", every=0.01, looks=2) == 1
    assert [Path(row["path"]).name for row in rows(out / "scores.csv")] == ["1.png", "2.png"]
    (out / "scores.csv").write_text("path,score\n")
    with pytest.raises(UserError, match="was not written by 'watch'"):
        watch(method, tmp_path / "in", out, category="lid", looks=1)


def test_mistakes_are_said_before_anything_is_loaded(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    for words, said in {
        (): "no folder given: add images=FOLDER",
        (f"images={tmp_path / 'nowhere'}",): "no such folder",
        (f"images={tmp_path}", "every=0"): "every is '0': give a number above 0",
        (f"images={tmp_path}", "looks=2.5"): "looks is '2.5': give a whole number",
        (f"images={tmp_path}", "seed=1"): "'seed=1' is no key of watch",
    }.items():
        assert main(["watch", *words]) == 2
        err = capfd.readouterr().err
        assert said in err and err.count("\n") == 1
