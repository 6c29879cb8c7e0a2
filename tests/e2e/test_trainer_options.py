"""Callbacks by name, optimisers and schedules as groups, quick trials, and what the record says of all of them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.profilers import AdvancedProfiler
from PIL import Image

from anomaly_vlm.cli import main
from anomaly_vlm.data.overlap import contents, to_tensor
from anomaly_vlm.runs.averaging import AHEAD
from anomaly_vlm.runs.compose import compose
from anomaly_vlm.runs.groups import choices
from anomaly_vlm.runs.shared_images import note_selection_images
from anomaly_vlm.runs.trainer import build_trainer
from tests.data.made import squares
from tests.e2e.test_logging import TINY

pytestmark = pytest.mark.e2e
BARE = [*TINY, "pictures.per_category=0", "pictures.curves=false"]
VALIDATED = ["source@dataset.val=procedural", "dataset.val.size=64", "selection_metric=pixel_auroc"]


def trained(folder: Path, *words: str) -> dict[str, Any]:
    assert main(["train", *BARE, *words, f"output_dir={folder}"]) == 0
    return json.loads((folder / "metrics.json").read_text())


def brain_images(root: Path) -> Path:
    """The folder of a normal and an anomalous image without masks."""
    for name, grey in (("no", 90), ("yes", 120)):
        (root / name).mkdir(parents=True)
        Image.new("L", (24, 20), grey).save(root / name / f"{name}.jpg")
    return root


def state(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def test_early_stopping_ends_the_training_and_chooses_nothing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["callbacks=early_stopping", *VALIDATED, "callbacks.early_stopping.min_delta=1", "epochs=9"]
    record = trained(tmp_path / "run", *words, "callbacks.early_stopping.patience=1")
    assert record["epochs"] == 2 and record["selection"] == "last"
    assert (
        record["checkpoint"] == "checkpoints/last.ckpt"
        and not (tmp_path / "run" / "checkpoints" / "best.ckpt").exists()
    )
    assert "stopped after 2 of 9 epochs" in record["note"] and "stopped after 2 of 9 epochs" in capsys.readouterr().out


def test_a_validation_set_must_be_there(tmp_path: Path, refused: Callable[[list[str]], str]) -> None:
    words = ["train", *BARE, "callbacks=early_stopping", f"output_dir={tmp_path / 'run'}"]
    assert "watches a validation set: add source@dataset.val=NAME" in refused(words)
    assert "choose selection=last or best_val" in refused([*words, *VALIDATED, "selection=best_test"])


def test_a_validation_set_without_masks_is_noticed_before_the_training(
    tmp_path: Path, refused: Callable[[list[str]], str]
) -> None:
    root = brain_images(tmp_path / "mri")
    words = ["source@dataset.val=brain_mri", f"dataset.val.root={root}", "selection=best_val"]
    said = refused(["train", *BARE, *words, f"output_dir={tmp_path / 'run'}"])
    assert said.startswith("selection_metric: pixel_f1_max is no number, as the validation set has no pixel masks")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_validation_set_that_chooses_nothing_is_evaluated_after_every_epoch(tmp_path: Path) -> None:
    record = trained(tmp_path / "run", *VALIDATED, "epochs=2", "logger=csv")
    assert record["selection"] == "last" and "selection_images" not in state(tmp_path / "run")["anomaly_vlm"]
    with next((tmp_path / "run").rglob("metrics.csv")).open(encoding="utf-8") as file:
        values = [row["val/pixel_auroc"] for row in csv.DictReader(file) if row["val/pixel_auroc"]]
    assert len(values) == 2 and all(0 <= float(value) <= 1 for value in values)


def test_validation_images_that_are_test_images_are_noticed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = brain_images(tmp_path / "mri")
    sides = [f"dataset.{side}.root={root}" for side in ("val", "test")]
    words = [word for word in BARE if not word.startswith("dataset.test")]
    words += ["source@dataset.val=brain_mri", "source@dataset.test=brain_mri", *sides, "epochs=1"]
    words += ["selection=best_val", "selection_metric=image_auroc", f"output_dir={tmp_path / 'run'}"]
    assert main(["train", *words]) == 0
    record = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert record["test_images_selected_on"] == 2 and "test_images_trained_on" not in record
    assert "the epoch was chosen by 2 of the TEST IMAGES" in record["note"]
    assert "warning: the epoch was chosen by 2 of 2 test images, such as" in (said := capsys.readouterr().out)
    assert "the epoch was chosen by 2 of the TEST IMAGES" in said.partition("warning")[2]  # in the table's head
    Image.new("L", (24, 20), 30).save(root / "no" / "new.jpg")
    ckpt = f"ckpt={tmp_path / 'run' / 'checkpoints' / 'best.ckpt'}"
    assert main(["evaluate", ckpt, f"output_dir={tmp_path / 'again'}"]) == 0
    record = json.loads((tmp_path / "again" / "metrics.json").read_text())
    assert record["test_images_selected_on"] == 2 and "2 of the TEST IMAGES" in record["note"]


def test_validation_images_that_are_trained_on_are_noticed(capsys: pytest.CaptureFixture) -> None:
    samples = squares(6)
    data = SimpleNamespace(selection_side="val", samples=lambda side: samples[:2] if side == "test" else samples[2:])
    method = SimpleNamespace(run_record={"train_images": to_tensor(contents(samples[3:5]))})
    note_selection_images(run := SimpleNamespace(data=data, method=method, facts={}))
    assert run.facts == {"validation_images_trained_on": 2}
    assert "warning: 2 of 4 validation images are trained on" in capsys.readouterr().out
    assert torch.equal(method.run_record["selection_images"], to_tensor(contents(samples[2:])))


def test_several_callbacks_at_once(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["callbacks=[ema,lr_monitor,model_summary]", "callbacks.progress=none", "scheduler=step", "epochs=2"]
    trained(tmp_path / "run", *words, "scheduler.step_size=1", "callbacks.ema.decay=0.5")
    assert "Total params" in capsys.readouterr().out
    with (tmp_path / "run" / "logs" / "version_0" / "metrics.csv").open(newline="") as file:
        rates = [float(row["lr-Adam"]) for row in csv.DictReader(file) if row.get("lr-Adam")]
    assert rates == pytest.approx([0.01, 0.001])  # batches of 8 of 8 images


def test_the_average_is_what_is_evaluated_and_kept(tmp_path: Path) -> None:
    words = ["callbacks=ema", "callbacks.ema.decay=0.75", "batch_size=4"]
    trained(tmp_path / "plain", "epochs=1", "batch_size=4")
    trained(tmp_path / "ema", "epochs=1", *words)
    plain, averaged = state(tmp_path / "plain"), state(tmp_path / "ema")
    for name, weight in averaged[AHEAD].items():
        assert torch.equal(weight, plain["state_dict"][name])  # the steps are the same
        assert not torch.equal(weight, averaged["state_dict"][name])
    out = ["eval_limit=13", f"output_dir={tmp_path / 'again'}"]
    assert main(["evaluate", f"ckpt={tmp_path / 'ema' / 'checkpoints' / 'last.ckpt'}", *out]) == 0
    first, second = (json.loads((tmp_path / name / "metrics.json").read_text())["results"] for name in ("ema", "again"))
    assert first == second


def test_a_training_that_is_resumed_after_its_last_epoch_is_evaluated_with_the_average(tmp_path: Path) -> None:
    words = ["callbacks=ema", "callbacks.ema.decay=0.75", "batch_size=4", "epochs=1"]
    whole, before = trained(tmp_path / "run", *words)["results"], state(tmp_path / "run")
    (tmp_path / "run" / "metrics.json").unlink()
    assert main(["train", f"resume={tmp_path / 'run'}"]) == 0
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["results"] == whole
    after = state(tmp_path / "run")
    for part in ("state_dict", AHEAD):
        assert all(torch.equal(after[part][name], weight) for name, weight in before[part].items())


@pytest.mark.slow
def test_the_average_continues_with_the_training(tmp_path: Path) -> None:
    words = ["callbacks=ema", "callbacks.ema.decay=0.75", "batch_size=4"]
    trained(tmp_path / "ema", "epochs=1", *words)
    trained(tmp_path / "whole", "epochs=2", *words)
    assert main(["train", f"resume={tmp_path / 'ema'}", "epochs=2"]) == 0
    whole, resumed = state(tmp_path / "whole"), state(tmp_path / "ema")
    for part in ("state_dict", AHEAD):
        assert all(torch.equal(resumed[part][name], weight) for name, weight in whole[part].items())


def test_optimisers_and_schedules_are_groups() -> None:
    cfg = compose(
        ["method=adaclip", "optimizer=sgd", "optimizer.lr=0.1", "optimizer.nesterov=true", "scheduler=cosine"]
    )
    assert cfg.optimizer == {
        "_target_": "torch.optim.SGD",
        "_partial_": True,
        "lr": 0.1,
        "momentum": 0.9,
        "nesterov": True,
    }
    assert cfg.scheduler.T_max == cfg.epochs == 3
    own = compose(["method=promptad", "shots=1"])
    assert own.optimizer.momentum == 0.9 and own.scheduler.eta_min == 1e-5
    assert compose(["method=promptad", "shots=1", "scheduler=constant"]).scheduler.factor == 1
    for name in choices("optimizer"):
        assert compose(["method=adaclip", f"optimizer={name}"]).choices.optimizer == name


def test_a_rate_that_falls_resumes_on_the_curve_of_more_epochs(tmp_path: Path) -> None:
    def rates(folder: Path) -> list[float]:
        scheduler = state(folder)["lr_schedulers"][0]
        return [*scheduler["base_lrs"], *scheduler["_last_lr"]]

    trained(tmp_path / "run", "epochs=2", "rate=cosine", "optimizer.lr=0.01")
    assert rates(tmp_path / "run") == pytest.approx([0.01, 0])
    assert main(["train", f"resume={tmp_path / 'run'}", "epochs=4"]) == 0
    assert rates(tmp_path / "run") == pytest.approx([0.01, 0])
    trained(tmp_path / "more", "epochs=1", "rate=cosine", "optimizer.lr=0.01", "scheduler=step")  # which wins
    assert rates(tmp_path / "more") == [0.01, 0.01]


@pytest.mark.parametrize(
    ("word", "wanted"),
    [
        ("loss=null", "the loss has no terms, so that LinearHeads has nothing to learn by (of: focal, dice)"),
        ("detector=none", "detector: the method takes no detector: leave it out"),
        ("method=aaclip optimizer.lr=0.001 scheduler=cosine", "AACLIP changes its rates itself"),
        ("method=bayes_pfl rate=cosine", "BayesPFL changes its rates itself"),
        ("optimizer.learning_rate=1", "unknown key of optimizer 'learning_rate'"),
        ("callbacks.ema.dekay=0.9", "callbacks.ema"),
        ("scheduler.gamma=0.5", "scheduler is {'gamma': 0.5}"),
        ("trainer.precison=32-true", "unknown key of trainer 'precison'"),
        ("trainer.strategy=fsdp", "shards weights"),
        ("compile=inducter", "unknown compile 'inducter'"),
        ("optimizer=adm", "unknown optimizer 'adm'"),
    ],
)
def test_slips_are_rejected(word: str, wanted: str, tmp_path: Path, refused: Callable[[list[str]], str]) -> None:
    words = [old for old in BARE if not (word.startswith("method=") and old.startswith("method"))]
    assert wanted in refused(["train", *words, *word.split(), f"output_dir={tmp_path / 'run'}"])


def test_another_profiler_takes_the_place_of_the_simple_one(tmp_path: Path) -> None:
    target = "trainer.profiler._target_=lightning.pytorch.profilers.AdvancedProfiler"
    cfg = compose(
        ["method=linear_heads", "debug=profiler", target, f"output_dir={tmp_path}", "trainer.accelerator=cpu"]
    )
    assert type(build_trainer(cfg).profiler) is AdvancedProfiler


@pytest.mark.parametrize("debug", ["fast_dev_run", "overfit", "profiler", "limit"])
def test_quick_trials_say_so(debug: str, tmp_path: Path) -> None:
    words = [word for word in BARE if not word.startswith(("train_limit", "eval_limit", "compare", "trainer.log"))]
    shorter = ["epochs=2"] if debug == "overfit" else []
    assert main(["train", *words, f"debug={debug}", *shorter, f"output_dir={tmp_path}"]) == 0
    record = json.loads((tmp_path / "metrics.json").read_text())
    told = {"fast_dev_run": "trainer: fast_dev_run=True", "overfit": "overfit_batches=2"}
    assert told.get(debug, "a trial on 24 test images only") in record["note"]
    if debug == "profiler":
        assert "run_training_batch" in "".join(path.read_text() for path in tmp_path.glob("*profile*.txt"))


def test_accumulated_and_clipped_steps(tmp_path: Path) -> None:
    words = ["batch_size=2", "epochs=1", "trainer.accumulate_grad_batches=2", "trainer.deterministic=true"]
    trained(tmp_path / "run", *words, "gradient_clip=0.5", "trainer.gradient_clip_algorithm=value")
    assert state(tmp_path / "run")["global_step"] == 2  # 8 images


def test_a_compiled_run_gives_the_same(tmp_path: Path) -> None:
    plain = trained(tmp_path / "plain", "epochs=1", "cache.tokens=off")
    compiled = trained(tmp_path / "compiled", "epochs=1", "cache.tokens=off", "compile=aot_eager")
    assert plain["results"]["mean/pixel_auroc"] == pytest.approx(compiled["results"]["mean/pixel_auroc"], abs=1e-3)
