"""What loggers are told: whole runs, and the files of offline loggers read back."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

from anomaly_vlm.cli import main
from tests.e2e.conftest import SMALL_PICTURES
from tests.support.wandb_file import wandb_files

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of the loggers' own libraries
]
TINY = [
    "method=linear_heads",
    "backbone=tiny_random",
    "image_size=64",
    *SMALL_PICTURES,
    "train_limit=8",
    "eval_limit=13",
    "pictures.per_category=1",
    "compare_untrained=false",
    "callbacks.progress=none",
    "trainer=cpu",
    "trainer.log_every_n_steps=1",
]
SHORT = [*TINY, "batch_size=4", "epochs=2"]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")  # Lightning changes it, and this brings it back


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training that was logged by all of `logger=many`."""
    for package in ("wandb", "tensorboard"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("logged") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("ANOMALY_VLM_CACHE", str(folder.parent / "cache"))
        words = ["logger=many", "tracking.tags=[tiny]", "optimizer.lr=0.005", f"output_dir={folder}"]
        assert main(["train", *SHORT, *words]) == 0
    return folder


def test_wandb_gets_the_whole_configuration(logged: Path) -> None:
    (run,) = wandb_files(logged)
    assert (run.run.display_name, run.run.job_type) == ("linear_heads procedural_to_procedural seed=111", "train")
    assert list(run.run.tags) == ["tiny"] and run.exit_code == 0
    numbers = {"epochs": 2, "optimizer.lr": 0.005, "dataset.test.size": 64, "trainer.max_epochs": 2}
    assert {key: run.config[key] for key in numbers} == numbers
    assert run.config["optimizer.betas"] == [0.5, 0.999] and run.config["choices.backbone"] == "tiny_random"
    assert "optimizer.lr=0.005" in run.config["run.overrides"]
    assert run.config["run.parameters.learnable"] == 776 < run.config["run.parameters.frozen"]
    assert run.config["run.folder"] == str(logged) and "run.git" in run.config


def test_wandb_gets_results_and_media(logged: Path) -> None:
    (run,) = wandb_files(logged)
    results = json.loads((logged / "metrics.json").read_text())["results"]
    assert run.logged["test/image_auroc"] == pytest.approx(results["mean/image_auroc"])
    assert "train/loss_step" in run.logged and "train/loss_epoch" in run.logged
    files = [path.relative_to(logged).as_posix() for path in (logged / "wandb").rglob("media/**/*.*")]
    for part in ("test/table_", "test/curves/pixel_roc_table", "test/curves/pixel_pro_table", "test/plots/histograms",
                 "test/heat_maps/gear"):  # fmt: skip
        assert sum(part in file for file in files) == 1, part
    assert run.logged["test/scores/gear/normal._type"] == "histogram"
    (table,) = (logged / "wandb").rglob("test/table_*.json")
    content = json.loads(table.read_text())
    assert content["columns"][0] == "category" and "mean" in [row[0] for row in content["data"]]


def test_tensorboard_and_csv_get_the_same(logged: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(logged / "tensorboard" / "version_0"), size_guidance={"images": 0})
    events.Reload()
    with (logged / "logs" / "version_0" / "metrics.csv").open(newline="") as file:
        last = list(csv.DictReader(file))[-1]
    values = events.Tags()["scalars"]
    assert {"train/loss_step", "test/image_auroc"} <= set(values) and "hp_metric" not in values
    assert events.Scalars("test/image_auroc")[-1].value == pytest.approx(float(last["test/image_auroc"]))
    images = events.Tags()["images"]
    assert "test/plots/curves" in images and "test/heat_maps/gear/0" in images
    assert "test/scores/gear/normal" in events.Tags()["histograms"]
    stored = yaml.safe_load((logged / "logs" / "version_0" / "hparams.yaml").read_text())
    assert stored["optimizer.lr"] == 0.005 and stored["run.parameters.learnable"] == 776


def test_an_evaluation_attaches_to_the_training(logged: Path, tmp_path: Path) -> None:
    (training,) = wandb_files(logged)
    ckpt = f"ckpt={logged / 'checkpoints' / 'last.ckpt'}"
    words = ["eval_limit=12", "logger=wandb", f"output_dir={tmp_path / 'again'}"]
    assert main(["evaluate", ckpt, *words, "tracking.attach=true"]) == 0
    (attached,) = wandb_files(tmp_path / "again")
    assert attached.run.run_id == training.run.run_id and not attached.run.display_name
    assert "evaluate/procedural/image_auroc" in attached.logged and "test/image_auroc" not in attached.logged
    assert attached.config["evaluate/eval_limit"] == 12 and "eval_limit" not in attached.config


def test_an_evaluation_and_a_prediction_have_runs_of_their_own(logged: Path, tmp_path: Path) -> None:
    ckpt = f"ckpt={logged / 'checkpoints' / 'last.ckpt'}"
    assert main(["evaluate", ckpt, "eval_limit=12", f"output_dir={tmp_path / 'silent'}"]) == 0
    assert not list((tmp_path / "silent").rglob("*.wandb"))  # logged where it is asked for
    Image.new("RGB", (20, 30)).save(tmp_path / "one.png")
    Image.new("RGB", (30, 20)).save(tmp_path / "two.png")
    assert main(["predict", ckpt, f"images={tmp_path}/*.png", "logger=wandb", f"output_dir={tmp_path / 'out'}"]) == 0
    (run,) = wandb_files(tmp_path / "out")
    assert run.run.job_type == "predict" and list(run.run.tags) == ["tiny"] and run.logged["predict/images"] == 2
    assert {"predict/heat_maps/highest/0.path", "predict/table.path"} <= set(run.logged)


def test_a_resumed_training_goes_on_in_its_run(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    folder = tmp_path / "run"
    words = [*TINY, "epochs=1", "logger=wandb", "pictures.per_category=0", "pictures.curves=false"]
    assert main(["train", *words, f"output_dir={folder}"]) == 0
    assert main(["train", f"resume={folder}", "epochs=2"]) == 0
    first, second = wandb_files(folder)
    assert first.run.run_id == second.run.run_id
    assert [row["epoch"] for row in second.history if "train/loss_epoch" in row] == [1]


def test_a_failed_run_is_closed(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    import wandb

    folder = tmp_path / "run"
    words = [*SHORT, "logger=wandb", "optimizer.lr=3e38", "pictures.per_category=0", f"output_dir={folder}"]
    assert main(["train", *words]) != 0
    (run,) = wandb_files(folder)
    assert run.exit_code == 1 and wandb.run is None


@pytest.mark.filterwarnings("ignore")  # of the data base's library
@pytest.mark.slow
def test_mlflow_gets_parameters_values_and_artifacts(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    folder, store = tmp_path / "run", f"logger.mlflow.tracking_uri=sqlite:///{tmp_path / 'mlflow.db'}"
    words = ["logger=mlflow", store, f"logger.mlflow.artifact_location={tmp_path / 'artifacts'}"]
    assert main(["train", *SHORT, *words, f"output_dir={folder}"]) == 0
    ckpt = f"ckpt={folder / 'checkpoints' / 'last.ckpt'}"
    again = [ckpt, *words, "eval_limit=12", "tracking.attach=true", f"output_dir={tmp_path / 'again'}"]
    assert main(["evaluate", *again]) == 0
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("anomaly_vlm").experiment_id])
    assert run.data.params["optimizer.lr"] == "0.01" and run.data.params["evaluate/eval_limit"] == "12"
    assert {"test/image_auroc", "evaluate/procedural/image_auroc"} <= set(run.data.metrics)
    assert run.data.tags["job_type"] == "train"
    assert {one.path for one in client.list_artifacts(run.info.run_id, "test")} >= {
        "test/curves.csv",
        "test/curves.png",
    }


@pytest.mark.slow
def test_an_ablation_from_its_runs_to_its_dashboard(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("wandb_workspaces")
    root = tmp_path / "ablation"
    swept = ["method.head=linear2,prototypes", "seed=0,1,2", f"hydra.sweep.dir={root}"]
    assert main(["sweep", *TINY, "epochs=1", "logger=wandb", *swept]) == 0
    runs = wandb_files(root)
    assert {run.run.run_group for run in runs} == {f"{tmp_path.name}/ablation"}
    wanted = [f"linear_heads head={head} seed={seed}" for head in ("linear2", "prototypes") for seed in range(3)]
    assert sorted(run.run.display_name for run in runs) == wanted
    assert len({(run.config["method.head"], run.config["seed"]) for run in runs}) == 6
    assert all("test/plots/curves.path" in run.logged and "test/table.path" in run.logged for run in runs)
    ckpt = f"ckpt={root / '0' / 'checkpoints' / 'last.ckpt'}"
    again = ["eval_limit=12", "logger=wandb", "tracking.attach=true", f"output_dir={tmp_path / 'again'}"]
    assert main(["evaluate", ckpt, *again]) == 0
    assert wandb_files(tmp_path / "again")[0].run.run_id in {run.run.run_id for run in runs}
    assert main(["dashboard", f"study={root}"]) == 0
    assert "compares method.head, seed" in capsys.readouterr().out
    content = json.loads((root / "dashboard" / "workspace.json").read_text())
    (kept,) = content["spec"]["section"]["runSets"][0]["filters"]["filters"]
    assert kept["value"] == f"{tmp_path.name}/ablation"
