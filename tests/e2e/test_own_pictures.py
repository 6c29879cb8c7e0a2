"""Predictions on disk: pictures, files that cannot be read, ways to name images, and an evaluation with thresholds."""

from __future__ import annotations

import csv
import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anomaly_vlm.cli import main
from anomaly_vlm.cli.predict import SOME_UNREADABLE
from anomaly_vlm.data.types import Batch
from anomaly_vlm.methods.base.prediction import Prediction
from anomaly_vlm.runs import predict as prediction
from anomaly_vlm.runs.stopping import Stopped
from tests.e2e.test_own_parts import TINY, part, rows

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six good parts; in `new` two good ones and two defective ones of the same names in two sub-folders."""
    folder = tmp_path_factory.mktemp("parts")
    for i in range(6):
        part(folder / "good" / f"{i}.png", i)
    for i in range(2):
        part(folder / "new" / "OK" / f"{i}.png", 100 + i)
        part(folder / "new" / "NOK" / f"{i}.png", 200 + i, defect=True)
    return folder


@pytest.fixture(scope="module")
def ckpt(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fitted") / "run"
    words = ["method=winclip", *TINY, "category=Gear", "cache.tokens=memory", f"good={parts / 'good'}"]
    assert main(["fit", *words, f"output_dir={folder}"]) == 0
    return folder / "checkpoints" / "last.ckpt"


def test_pictures_are_traceable_and_in_their_own_shape(ckpt: Path, parts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["predict", f"ckpt={ckpt}", f"images={parts / 'new'}", f"output_dir={out}"]) == 0
    names = [row["picture"] for row in rows(out / "scores.csv")]
    assert sorted(names) == [f"pictures/{sub}/{i}.jpg" for sub in ("NOK", "OK") for i in (0, 1)]
    with Image.open(out / names[0]) as panel:
        assert panel.width > 3 * 300  # three tiles of 3 : 2
    assert {str(p.relative_to(out)) for p in out.rglob("pictures/**/*.jpg")} == set(names)


def test_some_pictures_or_none(ckpt: Path, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anomaly_vlm.runs.writer.WORST", 1)
    words = [f"ckpt={ckpt}", f"images={parts / 'new'}", f"output_dir={tmp_path / 'out'}"]
    assert main(["predict", *words, "pictures=worst"]) == 0
    found = rows(tmp_path / "out" / "scores.csv")
    worst = max(found, key=lambda row: float(row["score"]))
    assert [row["picture"] for row in found if row["picture"]] == [worst["picture"]]
    (tmp_path / "out/pictures/own.jpg").write_bytes(b"the user's")
    assert main(["predict", *words, "pictures=false"]) == 0
    assert not any(row["picture"] for row in rows(tmp_path / "out" / "scores.csv"))
    left = [path.name for path in (tmp_path / "out").rglob("*.jpg")]
    assert left == ["own.jpg"]  # pictures of the run before are gone, and nothing else


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the images that are scored; a run is stopped at one that is called as the first entry."""
    found: list[str] = []
    original = prediction.predictions

    def predictions(*arguments: Any) -> Iterator[tuple[Batch, Prediction]]:
        for pair in original(*arguments):
            names = [Path(path).stem for path in pair[0].path]
            if found and found[0] in names:
                raise Stopped(signal.SIGTERM)
            found.extend(names)
            yield pair

    monkeypatch.setattr(prediction, "predictions", predictions)
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("pictures", ["all", pytest.param("worst", marks=pytest.mark.faults)])
def test_a_stopped_prediction_goes_on(
    pictures: str, ckpt: Path, tmp_path: Path, scored: list[str], capsys: pytest.CaptureFixture
) -> None:
    for i in range(5):
        part(tmp_path / "new" / f"{'abcde'[i]}.png", i, defect=i > 1)
    words = ["predict", f"ckpt={ckpt}", f"images={tmp_path / 'new'}", f"pictures={pictures}", "eval_batch_size=2"]
    assert main([*words, f"output_dir={tmp_path / 'whole'}"]) == 0
    scored[:] = ["e"]
    out = tmp_path / "out"
    assert main([*words, f"output_dir={out}"]) == 143
    assert scored == ["e", "a", "b", "c", "d"]
    (tmp_path / "new" / "c.png").touch()  # may have changed since: its batch of two is scored again
    with (out / "predicted.jsonl").open("a") as file:
        file.write('{"index": 4, "path"')  # a line that a kill has torn
    capsys.readouterr()
    scored.clear()
    assert main([*words, f"output_dir={out}"]) == 0
    if pictures == "all":
        assert scored == ["c", "d", "e"]
        assert "resumes: 2 of 5 images are scored already" in capsys.readouterr().out
    assert contents(out) == contents(tmp_path / "whole")
    assert any(name.endswith("regions.csv") for name in contents(out))
    scored.clear()
    assert main([*words, f"output_dir={out}"]) == 0  # a finished one starts anew
    assert len(scored) == 5


def test_another_prediction_keeps_nothing(
    ckpt: Path, parts: Path, tmp_path: Path, scored: list[str], capsys: pytest.CaptureFixture
) -> None:
    words = ["predict", f"ckpt={ckpt}", f"images={parts / 'good'}", f"output_dir={tmp_path / 'out'}"]
    scored[:] = ["4"]
    assert main([*words, "eval_batch_size=4"]) == 143
    assert len(contents(tmp_path / "out")) > 4
    scored.clear()
    assert main([*words, "eval_batch_size=3", "pictures=false"]) == 0
    assert len(scored) == 6
    assert "another one: all images are scored" in capsys.readouterr().out
    assert not list((tmp_path / "out").rglob("*.jpg"))


def test_one_bad_file_does_not_stop_the_others(
    ckpt: Path, parts: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    new = tmp_path / "new"
    shutil.copytree(parts / "new", new)
    (new / "empty.png").write_bytes(b"")
    whole = (new / "OK" / "0.png").read_bytes()
    (new / "cut.png").write_bytes(whole[: len(whole) // 2])
    words = [f"ckpt={ckpt}", f"images={new}", f"output_dir={tmp_path / 'out'}", "pictures=false"]
    assert main(["predict", *words]) == SOME_UNREADABLE
    assert len(rows(tmp_path / "out" / "scores.csv")) == 4
    assert sorted(Path(row["path"]).name for row in rows(tmp_path / "out" / "unreadable.csv")) == [
        "cut.png",
        "empty.png",
    ]
    assert "cut.png' cannot be read" in caplog.text
    (new / "empty.png").unlink()
    (new / "cut.png").unlink()
    assert main(["predict", *words]) == 0 and not (tmp_path / "out" / "unreadable.csv").exists()


def test_what_is_left_out_is_said_once(
    ckpt: Path, parts: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    new = tmp_path / "new"
    shutil.copytree(parts / "new", new)
    part(new / "masks" / "0.png", 0, defect=False)
    assert main(["predict", f"ckpt={ckpt}", f"images={new}", f"output_dir={tmp_path / 'out'}", "pictures=false"]) == 0
    assert len(rows(tmp_path / "out" / "scores.csv")) == 4
    assert caplog.text.count("folders of masks are not scored: masks") == 1


def test_no_readable_file_is_one_line(ckpt: Path, tmp_path: Path, refused: Callable[[list[str]], str]) -> None:
    (tmp_path / "x.png").write_bytes(b"no image")
    said = refused(["predict", f"ckpt={ckpt}", f"images={tmp_path / 'x.png'}"])
    assert "none of the 1 images can be read" in said
    assert "pictures" in refused(["predict", f"ckpt={ckpt}", f"images={tmp_path / 'x.png'}", "pictures=some"])


def test_an_evaluation_counts_decisions(ckpt: Path, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = [f"ckpt={ckpt}", "dataset=folder", f"dataset.test.root={parts / 'new'}"]
    options = ["dataset.test.reader.normal=ok", "dataset.test.reader.category=Gear", f"output_dir={tmp_path / 'out'}"]
    assert main(["evaluate", *words, *options]) == 0
    said = capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "metrics.json").read_text())
    counts = json.dumps(record)
    assert '"false_alarms"' in counts and "Gear at " in said and "found 2 of 2" in said
    found = rows(tmp_path / "out" / "images.csv")
    assert {row["decision"] for row in found if row["label"] == "1"} == {"NOT OK"}
    pictures = [row["picture"] for row in found if row["picture"]]
    assert pictures and all((tmp_path / "out" / name).is_file() for name in pictures)
    # and the same scores as `predict`
    assert main(["predict", words[0], f"images={parts / 'new'}", f"output_dir={tmp_path / 'p'}", "pictures=false"]) == 0
    predicted = {row["path"]: row["score"] for row in rows(tmp_path / "p" / "scores.csv")}
    assert {row["path"]: row["score"] for row in found} == predicted


def test_a_formula_in_a_name_is_no_formula(ckpt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((40, 60), np.uint8)).save("=1+1.png")
    assert main(["predict", f"ckpt={ckpt}", "images==1+1.png", "output_dir=out"]) == 0
    with Path("out/scores.csv").open(newline="") as file:
        assert list(csv.reader(file))[1][0] == "'=1+1.png"
