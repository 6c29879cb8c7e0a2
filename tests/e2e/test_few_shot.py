"""Few-shot runs through the command line: picks, seeds, training-free methods, prediction from a memory."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from anomaly_vlm.cli import main
from tests.e2e.conftest import results
from tests.e2e.test_resume_and_ddp import program

QUICK = [
    "method=winclip",
    "backbone=tiny_random",
    "backbone.architecture.vision_cfg.layers=2",
    "backbone.layers=[1,2]",
    "image_size=48",
    "dataset.test.size=48",
    "dataset.test.categories=[gear,tile]",
    "eval_limit=16",
    "pictures.per_category=1",
    "callbacks.progress=none",
    "trainer=cpu",
    "cache.tokens=off",
    "seeds=null",
]
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.filterwarnings("ignore:.*the (pixel|image) values.*undefined.*"),
]


@pytest.fixture(scope="module")
def one_shot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with one reference a category, for tests that only read it."""
    folder = tmp_path_factory.mktemp("one_shot") / "run"
    assert main(["train", *QUICK, "shots=1", f"output_dir={folder}"]) == 0
    return folder


@pytest.fixture(scope="module")
def two_shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with two references."""
    folder = tmp_path_factory.mktemp("two_shots") / "run"
    assert main(["train", *QUICK, "shots=2", f"output_dir={folder}"]) == 0
    return folder


@pytest.fixture(scope="module")
def finished_seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `run`, finished over two seeds."""
    folder = tmp_path_factory.mktemp("seeds")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", *QUICK, "shots=1", "seeds=[0,1]", "output_dir=run"]) == 0
    return folder


@pytest.fixture
def seeds(finished_seeds: Path, tmp_path: Path) -> Path:
    """A copy of that folder as the working directory, to change."""
    shutil.copytree(finished_seeds / "run", tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def part(tmp_path: Path) -> None:
    """One picture of one's own in `parts`."""
    Path("parts").mkdir()
    Image.new("RGB", (60, 50), (90, 60, 30)).save("parts/one.png")


def test_zero_shot_train_does_no_steps(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert main(["train", *QUICK, "output_dir=run"]) == 0
    said = capsys.readouterr().out
    assert "not trained, tested on procedural" in said and "epoch" not in said
    assert results(Path("run"))["mean/image_auroc"] >= 0
    assert not Path("run/references.json").exists()


def test_evaluate_needs_no_checkpoint_and_agrees_with_train(two_shots: Path):
    assert main(["evaluate", *QUICK, "shots=2", "output_dir=again"]) == 0
    assert results(two_shots) == results(Path("again"))
    picks = json.loads((two_shots / "references.json").read_text())
    assert {name: len(rows) for name, rows in picks["references"].items()} == {"gear": 2, "tile": 2}
    assert picks == json.loads(Path("again/references.json").read_text())


def test_a_run_over_seeds_goes_on_where_it_stopped(seeds: Path, capsys: pytest.CaptureFixture):
    summary = json.loads((seeds / "seeds.json").read_text())
    each = [results(seeds / f"seed_{seed}")["mean/pixel_auroc"] for seed in (0, 1)]
    assert summary["mean"]["mean/pixel_auroc"] == pytest.approx(sum(each) / 2)
    picks = [json.loads((seeds / f"seed_{seed}/references.json").read_text())["references"] for seed in (0, 1)]
    assert picks[0] != picks[1]
    (seeds / "seed_1/metrics.json").unlink()
    assert main(["train", "resume=run"]) == 0
    said = capsys.readouterr().out
    assert "seed 0: finished before, kept" in said and "2 seeds: mean ± standard deviation" in said
    assert json.loads((seeds / "seeds.json").read_text()) == summary


def test_seeds_of_other_options_are_refused_and_more_seeds_are_added(
    seeds: Path, refused, capfd: pytest.CaptureFixture
):
    """The folder of a study holds one configuration; what it has of other options is never reported under these."""
    before = (seeds / "config.yaml").read_text(), (seeds / "seeds.json").read_text()
    told = refused(["train", *QUICK, "shots=2", "seeds=[0,1]", "output_dir=run"])
    assert "'run/seed_0' holds another run (shots=1, now 2" in told
    assert ((seeds / "config.yaml").read_text(), (seeds / "seeds.json").read_text()) == before
    assert main(["train", *QUICK, "shots=1", "seeds=[0,1,2]", "output_dir=run"]) == 0
    assert "seed 1: finished before, kept" in capfd.readouterr().out
    assert json.loads((seeds / "seeds.json").read_text())["seeds"] == [0, 1, 2]


def test_evaluate_without_a_checkpoint_runs_over_seeds(finished_seeds: Path):
    assert main(["evaluate", *QUICK, "shots=1", "seeds=[0,1]", "output_dir=again"]) == 0
    assert (finished_seeds / "run/seeds.json").read_text() == Path("again/seeds.json").read_text()


@pytest.mark.slow
def test_two_processes_share_the_folders_of_the_seeds(tmp_path: Path):
    words = [*QUICK, "method=promptad", "shots=1", "seeds=[0,1]", "epochs=1", "output_dir=run", "trainer=ddp_cpu"]
    for again in (words, ["resume=run", "epochs=2"]):
        done = subprocess.run(program("train", *again), capture_output=True, text=True, timeout=240, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert not list(Path("run/seed_0").glob("seed_*"))
        assert json.loads(Path("run/seeds.json").read_text())["seeds"] == [0, 1]
    assert "resuming from" in done.stdout


def test_a_sweep_over_methods_ends_in_one_table():
    words = [word for word in QUICK if not word.startswith("method=")]
    assert (
        main(
            [
                "sweep",
                "experiment=few_shot/compare",
                *words,
                "method=winclip,promptad",
                "shots=1",
                "epochs=1",
                "hydra.launcher.own_process=false",
            ]
        )
        == 0
    )
    (table,) = Path("outputs/sweeps").rglob("sweep.csv")
    assert [row["method"] for row in csv.DictReader(table.read_text().splitlines())] == ["winclip", "promptad"]


@pytest.mark.slow
def test_each_seed_is_a_run_of_its_own_in_wandb(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    words = ["train", *QUICK, "logger=wandb", "shots=1", "seeds=[0,1]", "output_dir=run"]
    assert main(words) == 0
    assert [len(list(Path(f"run/seed_{seed}/wandb").glob("offline-run-*"))) for seed in (0, 1)] == [1, 1]


def test_a_list_of_picks_is_used_as_it_is_and_its_checkpoint_needs_it_no_more(
    one_shot: Path, monkeypatch: pytest.MonkeyPatch
):
    """The list that a run was given may be out of reach when its checkpoint is evaluated, from another folder say."""
    shutil.copy(one_shot / "references.json", "picks.json")
    assert main(["train", *QUICK, "shots=1", "seed=5", "shots_list=picks.json", "output_dir=second"]) == 0
    first, second = (json.loads(Path(name).read_text()) for name in ("picks.json", "second/references.json"))
    assert first["references"] == second["references"] and second["seed"] == 5
    assert results(one_shot) == results(Path("second"))
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert main(["evaluate", "ckpt=../second/checkpoints/last.ckpt", "eval_limit=16", "output_dir=again"]) == 0
    assert results(Path("again")) == results(Path("../second"))


def test_a_checkpoint_knows_its_references(two_shots: Path):
    """Other picks of another seed neither leave the test set nor matter to what the memory says."""
    ckpt = two_shots / "checkpoints" / "last.ckpt"
    assert main(["evaluate", f"ckpt={ckpt}", "eval_limit=16", "seed=9", "output_dir=again"]) == 0
    assert results(Path("again")) == results(two_shots)


@pytest.mark.usefixtures("part")
def test_predict_compares_with_the_memory_of_a_run_and_needs_no_list(one_shot: Path):
    words = ["predict", f"ckpt={one_shot / 'checkpoints/last.ckpt'}", "images=parts", "shots_list=gone.json"]
    assert main([*words, "category=gear", "callbacks.progress=none", "output_dir=out"]) == 0
    assert len(Path("out/scores.csv").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["method=anomalyclip", "shots=1"], "anomalyclip uses no reference images: set shots=0"),
        (["shots=40"], "category gear has 32 normal images to pick from"),
        (["shots=-1"], "shots is -1"),
        (["seeds=[0,0]"], "seeds is [0, 0]: give different whole numbers"),
        (["seeds=[]"], "seeds is []"),
        (["seeds=3"], "seeds is 3: give different whole numbers"),
        (["shots_list=picks.json"], "shots_list 'picks.json' is not used with shots=0"),
        (["shots=1", "shots_list=none.json"], "shots_list 'none.json' does not exist"),
        (["method=adaclip", "pixels.mask_size=64"], "adaclip maps at image_size"),
    ],
)
def test_mistakes_are_rejected(words, told, refused):
    assert told in refused(["train", *QUICK, "train_limit=4", *words])


@pytest.mark.usefixtures("part")
def test_what_a_memory_needs_is_reported(one_shot: Path, refused):
    assert "give ckpt=FILE" in refused(["predict", *QUICK, "shots=1", "images=parts"])
    ckpt = f"ckpt={one_shot / 'checkpoints/last.ckpt'}"
    assert "seeds are of no use" in refused(["evaluate", ckpt, "seeds=[0,1]"])
    words = ["predict", ckpt, "images=parts", "callbacks.progress=none", "output_dir=out"]
    assert 'add one of "category=gear", "category=tile"' in refused(words)
