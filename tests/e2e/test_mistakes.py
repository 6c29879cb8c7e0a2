"""Wrong input: status 2 and one line on standard error that says what was found, what was expected and how to mend it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anomaly_vlm.cli import main
from tests.e2e.conftest import LIMIT, QUICK, results

pytestmark = pytest.mark.e2e
Refused = Callable[[list[str]], str]


def picture(path: Path, size: tuple[int, int] = (16, 16), seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """A user's folder: two good images, one with a defect and its mask."""
    root = tmp_path / "parts"
    for i in range(2):
        picture(root / "good" / f"{i}.png", seed=i)
    picture(root / "scratch" / "7.png")
    mask = np.zeros((16, 16), np.uint8)
    mask[4:8, 4:8] = 255
    (root / "ground_truth" / "scratch").mkdir(parents=True)
    Image.fromarray(mask).save(root / "ground_truth" / "scratch" / "7_mask.png")
    return root


def on(root: Path) -> list[str]:
    return [*QUICK, "source@dataset.test=folder", f"dataset.test.root={root}"]


def test_names(refused: Refused, tmp_path: Path) -> None:
    assert "unknown method 'adaclp': choose one of adaclip" in refused(["train", "method=adaclp"])
    assert "unknown data set 'vissa': choose one of visa" in refused(["train", "method=adaclip", "dataset=vissa"])
    assert "did you mean vit_l14_336" in refused(["train", "method=adaclip", "backbone=vit_l14_363"])
    assert "nearest are epochs" in refused(["train", "method=adaclip", "epoch=3"])
    assert "unknown key of backbone 'wieghts'" in refused(["train", *QUICK, "backbone.wieghts=a.pt"])
    assert "backbone.name is ['a', 'b']: give a text" in refused(["train", *QUICK, "backbone.name=[a,b]"])
    told = refused(["train", *QUICK, "backbone=vit_b16", "backbone.pretrained=null"])
    assert "backbone.random_seed=0 for untrained ones" in told
    assert "image_size 60" in refused(["train", *QUICK, "image_size=60"])
    assert "image_size is -64" in refused(["train", *QUICK, "image_size=-64"])
    assert "layers [1, 9]" in refused(["train", *QUICK, "method.layers=[1,9]"])
    assert "unknown method.hsf.mode 'kmeans'" in refused(["train", *QUICK, "method.hsf.mode=kmeans"])
    assert "unknown kind of loss.dice 'dize'" in refused(["train", *QUICK, "loss.dice.kind=dize"])
    assert "loss term of AdaCLIP 'extra'" in refused(["train", *QUICK, "+loss.extra.kind=dice"])
    assert "unknown option of AdaCLIP 'speed'" in refused(["train", *QUICK, "+method.speed=9"])


def test_data(refused: Refused, parts: Path, tmp_path: Path) -> None:
    assert "dataset.test.root=FOLDER (make: DATA=FOLDER)" in refused(["train", *QUICK, "dataset=mvtec_ad"])
    assert f"no folder '{tmp_path / 'none'}'" in refused(["train", *on(tmp_path / "none")])
    (tmp_path / "empty").mkdir()
    assert "no images" in refused(["train", *on(tmp_path / "empty")])
    assert "unknown category of parts 'gear'" in refused(["train", *on(parts), "dataset.test.categories=[gear]"])

    picture(parts / "scratch" / "8.png")
    assert "8.png" in refused(["train", *on(parts)])  # no mask, though the set has masks
    (parts / "scratch" / "8.png").unlink()

    picture(parts / "good" / "1.png", size=(16, 16))
    mask = parts / "ground_truth" / "scratch" / "7_mask.png"
    Image.open(mask).resize((8, 16)).save(mask)
    assert "is 8x16 but its image is 16x16" in refused(["train", *on(parts)])
    Image.open(mask).resize((16, 16)).save(mask)

    (parts / "good" / "0.png").write_bytes(b"no picture")
    message = refused(["train", *on(parts)])
    assert "good/0.png" in message and "cannot be read" in message


def test_a_truncated_image(refused: Refused, parts: Path) -> None:
    file = parts / "good" / "0.jpg"
    picture(file, size=(200, 200))
    (parts / "good" / "0.png").unlink()
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert "good/0.jpg" in refused(["train", *on(parts)])


def test_a_file_that_breaks_after_the_check_ends_the_run_with_one_line(
    refused: Refused, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from anomaly_vlm.data import AnomalyDataModule

    checked = AnomalyDataModule.check

    def check_then_break(self: AnomalyDataModule) -> None:
        checked(self)
        (parts / "good" / "1.png").write_bytes(b"broken since")

    monkeypatch.setattr(AnomalyDataModule, "check", check_then_break)
    words = [*on(parts), "compare_untrained=false", f"output_dir={tmp_path / 'run'}"]
    assert "good/1.png" in refused(["train", *words])
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()  # what was trained is kept


def test_checkpoints(refused: Refused, trained: Path, tmp_path: Path) -> None:
    ckpt = trained / "checkpoints" / "last.ckpt"
    assert "made by method=adaclip, this run says method=faprompt" in refused(
        ["evaluate", f"ckpt={ckpt}", "method=faprompt"]
    )
    assert "made by backbone=tiny_random" in refused(["evaluate", f"ckpt={ckpt}", "backbone=vit_b16"])
    other = refused(["evaluate", f"ckpt={ckpt}", "backbone.random_seed=5"])
    assert "other backbone weights" in other and "fingerprint" in other
    assert "surplus" in refused(["evaluate", f"ckpt={ckpt}", "method.prompts.depth=2"])
    assert "does not exist" in refused(["evaluate", f"ckpt={tmp_path / 'none.ckpt'}"])
    (tmp_path / "junk.ckpt").write_bytes(b"junk")
    assert "does not load" in refused(["evaluate", f"ckpt={tmp_path / 'junk.ckpt'}"])
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    assert "no checkpoint of this suite" in refused(["evaluate", f"ckpt={tmp_path / 'foreign.ckpt'}"])
    assert "missing clip_model." in refused(["evaluate", f"ckpt=published:{tmp_path / 'foreign.ckpt'}", *QUICK])
    assert "no config.yaml" in refused(["train", f"resume={tmp_path}"])


def test_a_checkpoint_cannot_run_code(refused: Refused, trained: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    torch.save({"anomaly_vlm": Evil(), "state_dict": {}}, tmp_path / "evil.ckpt")
    assert "does not load" in refused(["evaluate", f"ckpt={tmp_path / 'evil.ckpt'}"])
    content = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)
    content["anomaly_vlm"]["config"]["optimizer"] = {"_target_": "os.mkdir", "path": str(tmp_path / "ran")}
    torch.save(content, tmp_path / "sly.ckpt")
    assert "asks to run 'os.mkdir'" in refused(["evaluate", f"ckpt={tmp_path / 'sly.ckpt'}"])
    assert not (tmp_path / "ran").exists()


def test_prediction(refused: Refused, trained: Path, tmp_path: Path) -> None:
    ckpt = f"ckpt={trained / 'checkpoints' / 'last.ckpt'}"
    assert "no images given" in refused(["predict", ckpt])
    assert "no such file or folder" in refused(["predict", ckpt, f"images={tmp_path / 'none'}"])
    (tmp_path / "empty").mkdir()
    assert "no images in" in refused(["predict", ckpt, f"images={tmp_path / 'empty'}"])
    picture(tmp_path / "photos" / "1.png")
    photos = f"images={tmp_path / 'photos'}"
    learns = refused(["predict", photos, *QUICK])
    assert "scores with what it has learned, and no checkpoint is given" in learns
    assert "unknown shipped checkpoint 'mine'" in refused(["predict", "ckpt=package:mine", photos])


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc").is_dir(), reason="root writes everywhere without /proc")
def test_an_output_folder_that_cannot_be_written(refused: Refused, tmp_path: Path) -> None:
    target = "/proc/anomaly_vlm" if Path("/proc").is_dir() else str(tmp_path / "locked" / "run")
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "is not writable" in refused(["train", *QUICK, f"output_dir={target}"])
    (tmp_path / "file").write_text("")
    assert "is not writable" in refused(["train", *QUICK, f"output_dir={tmp_path / 'file' / 'run'}"])


def test_image_labels_cannot_feed_a_pixel_loss(refused: Refused, tmp_path: Path) -> None:
    for name in ("no", "yes"):
        picture(tmp_path / "mri" / name / "1.jpg")
    words = [
        *QUICK,
        "source@dataset.train=brain_mri",
        f"dataset.train.root={tmp_path / 'mri'}",
        "compare_untrained=false",
    ]
    assert "image labels only" in refused(["train", *words])


def test_a_method_that_learns_nothing(refused: Refused) -> None:
    words = ["method.prompts.type=''", "method.projection=clip"]
    assert "nothing to learn: use 'evaluate'" in refused(["train", *QUICK, *words])


def test_the_real_program_answers_at_once() -> None:
    """The console script itself: no traceback, nothing imported that takes long."""
    script = shutil.which("anomaly-vlm", path=str(Path(sys.executable).parent)) or pytest.fail(
        "anomaly-vlm is not installed"
    )
    done = subprocess.run([script, "train", "method=adaclip", "epochss=1"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1 and "nearest are epochs" in done.stderr
    code = "import sys, anomaly_vlm.cli as c; c.main(['train', '--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there(trained: Path, tmp_path: Path, refused, capfd: pytest.CaptureFixture):
    """Training says so at once; a checkpoint from another machine is evaluated and used on what is here."""
    assert "no GPU is here" in refused(["train", *QUICK, "trainer=gpu"])
    stored = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)
    trainer = stored["anomaly_vlm"]["config"]["trainer"]
    trainer |= {"accelerator": "gpu", "devices": -1, "strategy": "ddp", "precision": "bf16-mixed"}
    torch.save(stored, tmp_path / "gpu.ckpt")
    ckpt = f"ckpt={tmp_path / 'gpu.ckpt'}"
    assert main(["evaluate", ckpt, LIMIT, f"output_dir={tmp_path / 'again'}"]) == 0
    assert "continues on the CPU" in capfd.readouterr().out
    assert results(tmp_path / "again") == results(trained)
    (tmp_path / "parts").mkdir()
    Image.new("RGB", (60, 50)).save(tmp_path / "parts" / "one.png")
    assert main(["predict", ckpt, f"images={tmp_path / 'parts'}", f"output_dir={tmp_path / 'out'}"]) == 0
    assert "no GPU is here" in refused(["evaluate", ckpt, "trainer=gpu"])


def test_a_trainer_that_does_not_fit(refused):
    assert "the trainer does not fit this machine" in refused(["train", *QUICK, "trainer.devices=0"])


def test_an_unknown_head_is_rejected_with_the_choices(refused: Callable[[list[str]], str]) -> None:
    """The learning rate follows the head in the configuration, and must not hide the mistake."""
    line = refused(["train", "method=linear_heads", "method.head=mlp", "backbone=tiny_random"])
    assert "unknown method.head 'mlp': choose one of linear2, prototypes" in line
