"""Precisions: bfloat16 autocast on the CPU, float16 as composition here and for real where there is a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from anomaly_vlm.cli import main
from anomaly_vlm.runs.checks import check_values
from anomaly_vlm.runs.compose import compose
from tests.e2e.conftest import QUICK, SMALL_PICTURES, results

pytestmark = pytest.mark.e2e
SHORT = [
    *SMALL_PICTURES,
    "compare_untrained=false",
    "pictures.per_category=0",
    "epochs=1",
    "train_limit=6",
    "eval_limit=12",
]


def without_trainer(method: str) -> list[str]:
    kept = [word for word in QUICK if not word.startswith(("method=", "trainer="))]
    return [f"method={method}", *(word for word in kept if method == "adaclip" or not word.startswith("method."))]


@pytest.mark.parametrize("method", ["adaclip", "anomalyclip", "faprompt"])
def test_bfloat16_autocast(method: str, tmp_path: Path) -> None:
    words = [
        *without_trainer(method),
        *SHORT,
        "trainer=cpu",
        "trainer.precision=bf16-mixed",
        "gradient_clip=1.0",  # which Lightning refuses for a fused optimiser
        "pictures.per_category=1",  # of predictions from cached tokens in bfloat16
        f"output_dir={tmp_path / 'run'}",
    ]
    assert main(["train", *words]) == 0
    assert list((tmp_path / "run" / "pictures").rglob("*.jpg"))
    assert results(tmp_path / "run")["mean/pixel_auroc"] is not None


def test_float16_composes() -> None:
    cfg = compose(["method=adaclip", "trainer=gpu", "trainer.precision=16-mixed"])
    check_values(cfg)
    assert (cfg.trainer.accelerator, cfg.trainer.precision) == ("gpu", "16-mixed")
