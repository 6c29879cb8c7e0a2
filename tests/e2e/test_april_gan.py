"""APRIL-GAN through the command line: a method that trains on a set and compares with references too."""

from __future__ import annotations

import csv
import subprocess
from pathlib import Path

import pytest
import torch
from PIL import Image

from anomaly_vlm.cli import main
from tests.e2e.conftest import SMALL_PICTURES, results
from tests.e2e.test_few_shot import QUICK
from tests.e2e.test_resume_and_ddp import program

pytestmark = [pytest.mark.e2e, pytest.mark.filterwarnings("ignore:.*the (pixel|image) values.*undefined.*")]
ANEW = [word for word in QUICK if word.startswith(("eval_limit=", "dataset.test.categories="))]  # not inherited
WORDS = [
    "method=april_gan",
    *QUICK[1:],
    *SMALL_PICTURES[:1],
    "dataset.train.categories=[coin,cork]",
    "train_limit=8",
    "batch_size=4",
    "epochs=1",
    "compare_untrained=false",
]


def scores(folder: Path) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for row in csv.DictReader((folder / "images.csv").read_text().splitlines()):
        found.setdefault(row["category"], []).append(float(row["score"]))
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zero-shot run in `zero` and a few-shot run in `few`."""
    folder = tmp_path_factory.mktemp("april_gan")
    cache = f"cache.folder={folder / 'cache'}"
    for name, shots in (("zero", 0), ("few", 2)):
        assert main(["train", *WORDS, cache, f"shots={shots}", f"output_dir={folder / name}"]) == 0
    return folder


def test_training_and_references_together(runs: Path) -> None:
    """The layers are those of the zero-shot run: references are compared with, and not learned from."""
    zero, few = (
        torch.load(runs / name / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for name in ("zero", "few")
    )
    assert set(few) - set(zero) == {f"categories.@{name}.block_{i}.bank" for name in ("gear", "tile") for i in (1, 2)}
    assert all(torch.equal(few[key], value) for key, value in zero.items())
    said = (runs / "few" / "metrics.json").read_text()
    assert (
        "trained on procedural (8 of " in said and ", 2 normal images of each category as references, tested on" in said
    )


def test_references_for_a_checkpoint_without_a_memory(runs: Path, capsys: pytest.CaptureFixture) -> None:
    """One training, any number of shots: `shots=2` with the zero-shot run's checkpoint is the few-shot run."""
    words = [f"ckpt={runs / 'zero/checkpoints/last.ckpt'}", "shots=2", *ANEW, "output_dir=again"]
    assert main(["evaluate", *words]) == 0
    assert "trained on procedural (8 of" in (said := capsys.readouterr().out) and "2 normal images" in said
    assert results(Path("again")) == results(runs / "few")
    assert Path("again/references.json").read_text() == (runs / "few/references.json").read_text()
    assert main(["evaluate", f"ckpt={runs / 'few/checkpoints/last.ckpt'}", *ANEW, "output_dir=third"]) == 0
    assert results(Path("third")) == results(runs / "few")


def test_published_weights_with_references(runs: Path, capsys: pytest.CaptureFixture) -> None:
    state = torch.load(runs / "few/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    layers = {k.replace("projection", "fc"): v for k, v in state.items() if k.startswith("projection.")}
    torch.save({"trainable_linearlayer": layers}, "visa_pretrained.pth")
    assert main(["evaluate", *WORDS, "ckpt=published:visa_pretrained.pth", "shots=2", "output_dir=again"]) == 0
    assert (
        "published weights visa_pretrained.pth, 2 normal images of each category as references"
        in capsys.readouterr().out
    )
    assert results(Path("again")) == results(runs / "few")


def test_scores_of_an_evaluation_are_stretched_over_each_category(runs: Path) -> None:
    """The image of a category with the lowest maximum of its map has half its zero-shot score, the one with the highest half
    of it and a half."""
    zero, few = scores(runs / "zero"), scores(runs / "few")
    for name in ("gear", "tile"):
        added = [f - z / 2 for z, f in zip(zero[name], few[name], strict=True)]
        assert min(added) == pytest.approx(0, abs=1e-6) and max(added) == pytest.approx(0.5, abs=1e-6)


@pytest.mark.slow
def test_two_processes_evaluate_to_the_numbers_of_one(runs: Path, tmp_path: Path) -> None:
    """The stretch runs over the images of both."""
    words = [f"ckpt={runs / 'few/checkpoints/last.ckpt'}", "eval_batch_size=3", "pictures.per_category=0", *ANEW]
    done = subprocess.run(
        program("evaluate", *words, "trainer=ddp_cpu", "output_dir=two"),
        capture_output=True, text=True, timeout=180, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    one, two = results(runs / "few"), results(Path("two"))
    assert one.keys() == two.keys()
    for key, value in one.items():
        assert (value is None and two[key] is None) or two[key] == pytest.approx(value, abs=1e-6), key
    for name, rows in scores(runs / "few").items():
        assert scores(Path("two"))[name] == pytest.approx(rows, abs=1e-6)


def test_prediction_and_mistakes(runs: Path, refused) -> None:
    Path("parts").mkdir()
    Image.new("RGB", (60, 50), (90, 60, 30)).save("parts/one.png")
    few, zero = (f"ckpt={runs / name / 'checkpoints/last.ckpt'}" for name in ("few", "zero"))
    words = ["images=parts", "category=gear", "callbacks.progress=none"]
    assert main(["predict", few, *words, "output_dir=out"]) == 0
    (row,) = csv.DictReader(Path("out/scores.csv").read_text().splitlines())
    assert 0 < float(row["score"]) < 1, "alone, the maximum of its map over the bound"
    assert "has no reference images at prediction" in refused(["predict", zero, *words, "shots=2"])
    assert "the checkpoint's memory holds 2 images of each category, this run says shots=4" in refused(
        ["evaluate", few, "shots=4"]
    )
    assert "method.layers is []" in refused(["train", *WORDS, "method.layers=[]"])
