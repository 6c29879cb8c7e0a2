"""Few-shot prompts through the command line: a step a category, checkpoints, resume, published folders."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from anomaly_vlm.cli import main
from tests.e2e.conftest import results
from tests.e2e.test_few_shot import QUICK
from tests.e2e.test_resume_and_ddp import kill_at_step, learned

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.filterwarnings("ignore:.*the (pixel|image) values.*undefined.*"),
]
METHODS = ["promptad", "finegrainedad"]
LIMIT = next(word for word in QUICK if word.startswith("eval_limit="))  # an evaluation does not inherit it
BASE = [
    *QUICK[1:],
    "shots=2",
    "seeds=null",
    "compare_untrained=false",
    "pictures.per_category=0",
    "checkpoint.every_steps=3",
]


def words(method: str, *more: str) -> list[str]:
    return [f"method={method}", *BASE, *more]


@pytest.mark.parametrize("method", METHODS)
def test_a_step_a_category_and_a_checkpoint_that_needs_no_references(
    method: str, capsys: pytest.CaptureFixture
) -> None:
    assert main(["train", *words(method, "epochs=3", "output_dir=run")]) == 0
    content = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    assert content["global_step"] == 3 * 2  # epochs x categories
    assert content["lr_schedulers"][0]["last_epoch"] == 3
    assert "2 normal images of each category as references" in capsys.readouterr().out
    assert main(["evaluate", "ckpt=run/checkpoints/last.ckpt", LIMIT, "output_dir=again"]) == 0
    assert results(Path("run")) == results(Path("again"))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["promptad", "finegrainedad"])
def test_killed_and_resumed_equals_unbroken(method: str) -> None:
    """In mid-epoch: the regions come from the prompts as they started, the momentum of each category from the checkpoint."""
    long = words(method, "epochs=30")
    assert main(["train", *long, "output_dir=whole"]) == 0
    kill_at_step(Path("broken"), 3, long)
    assert main(["train", "resume=broken"]) == 0
    whole, broken = learned(Path("whole")), learned(Path("broken"))
    assert whole.keys() == broken.keys()
    for key, value in whole.items():
        torch.testing.assert_close(broken[key], value, msg=lambda m, key=key: f"{key}: {m}")


def test_best_epoch_and_single_task() -> None:
    more = ("selection=best_test", "selection_metric=pixel_auroc", "method.task=seg", "epochs=2", "output_dir=run")
    assert main(["train", *words("promptad", *more)]) == 0
    assert Path("run/checkpoints/best.ckpt").is_file()
    assert not any(".cls." in key for key in learned(Path("run")))


@pytest.mark.parametrize("method", METHODS)
def test_half_precision(method: str) -> None:
    assert main(["train", *words(method, "epochs=1", "trainer.precision=bf16-mixed", "output_dir=run")]) == 0
    assert results(Path("run"))["mean/pixel_auroc"] > 0


def test_maps_and_masks_of_their_own_size() -> None:
    assert main(["train", *words("promptad", "epochs=1", "pixels.mask_size=80", "output_dir=run")]) == 0
    assert results(Path("run"))["mean/pixel_auroc"] > 0


def test_published_folder() -> None:
    unit = torch.nn.functional.normalize
    generator = torch.Generator().manual_seed(0)
    Path("published").mkdir()
    for task in ("SEG", "CLS"):
        for category in ("gear", "tile"):
            shapes = {"feature_gallery1": (36, 96), "feature_gallery2": (36, 96), "text_features": (2, 64)}
            state = {name: unit(torch.randn(*shape, generator=generator), dim=-1) for name, shape in shapes.items()}
            torch.save(state, f"published/{task}-Seed_111-{category}-check_point.pt")
    assert main(["evaluate", *words("promptad"), "ckpt=published:published", "output_dir=out"]) == 0
    assert results(Path("out"))["mean/pixel_auroc"] > 0


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["shots=0"], "promptad learns from reference images: set shots=1 or more"),
        (["train_on=dataset"], "few-shot prompts learn from the references alone"),
        (["init=published:."], "has no .pt, .pth or .safetensors file"),
        (["method.memory.layers=[3]"], "has vision blocks 1 to 2"),
        (["method.texts=absent"], "unknown table of texts 'absent'"),
    ],
)
def test_mistakes_are_rejected(more, told, refused):
    assert told in refused(["train", *words("promptad", "epochs=1", *more)])
