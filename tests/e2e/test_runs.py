"""Train, evaluate, predict, report, sweep: what a person types, and the files that each leaves."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from anomaly_vlm.backbone import load_vit
from anomaly_vlm.cli import main
from anomaly_vlm.methods.base.published import layout_of
from tests.e2e.conftest import LIMIT, QUICK, SMALL_PICTURES, results

pytestmark = pytest.mark.e2e


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_everything(trained: Path) -> None:
    record = json.loads((trained / "metrics.json").read_text())
    assert "random weights" in record["backbone"] and "trained on procedural" in record["data"]
    assert record["environment"]["versions"]["torch"]
    assert record["untrained"]["image_auroc"] is not None
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["epochs"] == 2 and config["choices"]["method"] == "adaclip"
    table = rows(trained / "results.csv")
    assert [row["category"] for row in table][-2:] == ["mean", "pooled"]
    assert float(table[-2]["image_auroc"]) == pytest.approx(results(trained)["mean/image_auroc"])
    images = rows(trained / "images.csv")
    assert len(images) == 13 and {row["label"] for row in images} == {"0", "1"}
    pictures = list((trained / "pictures").rglob("*.jpg"))
    assert len(pictures) == len({row["category"] for row in images})
    log = rows(trained / "logs" / "version_0" / "metrics.csv")
    assert any(row["train/loss_epoch"] for row in log) and log[-1]["test/image_auroc"]


def test_a_checkpoint_holds_the_learned_part_alone_and_no_code(trained: Path) -> None:
    checkpoint = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)
    assert not any(key.startswith("backbone.") for key in checkpoint["state_dict"])
    assert any(key.startswith("image_prompts.") for key in checkpoint["state_dict"])
    assert checkpoint["anomaly_vlm"]["config"]["backbone"]["name"] == "tiny_random"


def test_evaluate_from_the_checkpoint_alone(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    ckpt = trained / "checkpoints" / "last.ckpt"
    assert main(["evaluate", f"ckpt={ckpt}", f"output_dir={tmp_path / 'again'}", LIMIT, "eval_batch_size=5"]) == 0
    out = capsys.readouterr().out
    assert "random weights" in out and "trained on procedural (12 of" in out
    before, after = results(trained), results(tmp_path / "again")
    assert before.keys() == after.keys()
    for key, value in before.items():  # other batches round otherwise: near ties of a few thousand pixels may swap
        assert (value is None and after[key] is None) or after[key] == pytest.approx(value, abs=1e-5), key


def test_predict_on_unlabelled_images_of_any_kind(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    (folder / "more").mkdir(parents=True)
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(folder / "colour one.jpg")
    Image.fromarray(random.integers(0, 255, (50, 30), dtype=np.uint8)).save(folder / "grey.png")
    Image.fromarray(random.integers(0, 65535, (33, 31), dtype=np.uint16)).save(folder / "more" / "sixteen.png")
    Image.fromarray(random.integers(0, 255, (20, 20, 4), dtype=np.uint8)).save(folder / "more" / "alpha.png")
    out = tmp_path / "out"
    ckpt = trained / "checkpoints" / "last.ckpt"
    assert main(["predict", f"ckpt={ckpt}", f"images={folder}", "category=metal part", f"output_dir={out}"]) == 0
    scores = rows(out / "scores.csv")
    assert sorted(Path(row["path"]).name for row in scores) == [
        "alpha.png",
        "colour one.jpg",
        "grey.png",
        "sixteen.png",
    ]
    assert all(0 <= float(row["score"]) <= 1 for row in scores)
    pictures = sorted((out / "pictures").rglob("*.jpg"))
    assert len(pictures) == 4
    with Image.open(out / "pictures" / "more" / "alpha.jpg") as panel:
        assert panel.width == 3 * 264 + 8  # no truth


@pytest.mark.parametrize("method", ["anomalyclip", "faprompt"])
def test_other_methods_train_through_the_same_door(method: str, tmp_path: Path) -> None:
    words = [word for word in QUICK if not word.startswith(("method=", "method.hsf"))]
    assert main(["train", f"method={method}", *words, "batch_size=4", f"output_dir={tmp_path / method}"]) == 0
    assert results(tmp_path / method)["mean/pixel_auroc"] is not None


def test_image_labels_only_give_image_metrics(trained: Path, tmp_path: Path) -> None:
    for name in ("no", "yes"):
        (tmp_path / "mri" / name).mkdir(parents=True)
        for i in range(2):
            pixels = np.random.default_rng(i).integers(0, 255, (24, 20), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "mri" / name / f"{name} {i}.jpg")
    ckpt = trained / "checkpoints" / "last.ckpt"
    words = ["source@dataset.test=brain_mri", f"dataset.test.root={tmp_path / 'mri'}", f"output_dir={tmp_path / 'out'}"]
    assert main(["evaluate", f"ckpt={ckpt}", *words]) == 0
    found = results(tmp_path / "out")
    assert found["mean/image_auroc"] is not None
    assert all(value is None for key, value in found.items() if key.startswith("mean/pixel_"))


@pytest.mark.filterwarnings("ignore:the pixel values of")
def test_selection_on_a_validation_set(tmp_path: Path) -> None:
    words = [
        "selection=best_val",
        "source@dataset.val=procedural",
        "dataset.val.size=64",
        "selection_metric=pixel_auroc",
    ]
    assert main(["train", *QUICK, *words, f"output_dir={tmp_path / 'run'}"]) == 0
    record = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert record["selection"] == "best_val" and record["checkpoint"] == "checkpoints/best.ckpt"


@pytest.mark.filterwarnings("ignore:the pixel values of")
def test_chosen_weights_are_calibrated(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """AA-CLIP's range of the scores is that of the chosen weights, in the test and in their checkpoint."""
    words = ["method=aaclip", *[word for word in QUICK[1:] if not word.startswith("method.")], *SMALL_PICTURES]
    chosen = ["selection=best_test", "selection_metric=pixel_auroc", "compare_untrained=false"]
    assert main(["train", *words, *chosen, f"output_dir={tmp_path / 'run'}"]) == 0
    best, last = (
        torch.load(tmp_path / "run" / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]["range"]
        for name in ("best", "last")
    )
    assert torch.isfinite(best).all() and torch.isfinite(last).all()
    caplog.clear()
    ckpt = f"ckpt={tmp_path / 'run' / 'checkpoints' / 'best.ckpt'}"
    assert main(["evaluate", ckpt, LIMIT, *SMALL_PICTURES[1:], f"output_dir={tmp_path / 'again'}"]) == 0
    assert "no range of the training images" not in caplog.text
    assert results(tmp_path / "again") == results(tmp_path / "run")


def test_published_checkpoints_load(trained: Path, tmp_path: Path) -> None:
    """A file in the published layout, made from our own learned values, gives our own results."""
    from anomaly_vlm.runs.build import build
    from anomaly_vlm.runs.checkpoints import Checkpoint

    checkpoint = Checkpoint.read(str(trained / "checkpoints" / "last.ckpt"))
    method = build(checkpoint.config, sides=("test",)).method
    checkpoint.load_into(method)
    published = {layout_of(method).key(method, name): p.detach() for name, p in method.learnable().items()}
    torch.save(published, tmp_path / "o.pth")
    assert main(["evaluate", f"ckpt=published:{tmp_path / 'o.pth'}", *QUICK, f"output_dir={tmp_path / 'out'}"]) == 0
    assert results(tmp_path / "out")["mean/image_auroc"] == pytest.approx(
        results(trained)["mean/image_auroc"], abs=1e-6
    )


def test_a_tower_without_texts_runs_like_a_clip(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Train and predict on a ViT read from a local file; the checkpoint brings backbone and file along."""
    sizes = {"depth": 4, "embed_dim": 32, "num_heads": 2}
    tower = load_vit("vit_small_patch14_dinov2", random_seed=0, image_size=56, sizes=sizes)
    torch.save(tower.visual.state_dict(), tmp_path / "tower.pth")
    words = [word for word in QUICK if not word.startswith(("method", "backbone", "image_size"))]
    words += ["method=dinov2", f"backbone.weights={tmp_path / 'tower.pth'}", "backbone.image_size=56"]
    words += ["backbone.layers=[1,2,3,4]", "+backbone.sizes={depth:4,embed_dim:32,num_heads:2}"]
    assert main(["train", *words, *SMALL_PICTURES, f"output_dir={tmp_path / 'run'}"]) == 0
    assert "dinov2 on vit_small_patch14_dinov2, lvd142m from file tower.pth" in capsys.readouterr().out
    record = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert record["method"] == "dinov2" and record["results"]["mean/pixel_auroc"] is not None
    (tmp_path / "parts").mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "parts" / "part.png")
    ckpt = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert main(["predict", f"ckpt={ckpt}", f"images={tmp_path / 'parts'}", f"output_dir={tmp_path / 'out'}"]) == 0
    assert len(rows(next((tmp_path / "out").glob("*.csv")))) == 1
