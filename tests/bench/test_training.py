"""The training benchmark on a tiny backbone: both ways compute the same, and the tables hold what was measured."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from anomaly_vlm.backbone import load_backbone
from anomaly_vlm.bench import training
from anomaly_vlm.bench._measure import Measured, run_here
from anomaly_vlm.bench._published import PublishedDualPath
from anomaly_vlm.bench._training_data import random_batch
from anomaly_vlm.bench.training import CLASSES, Setting, count_flops
from anomaly_vlm.errors import UserError
from anomaly_vlm.losses import build_terms
from anomaly_vlm.methods.anomalyclip.dual_path import DualPathMethod
from tests.support.conf import loss_conf
from tests.support.tiny import tiny_architecture

TINY = tiny_architecture(
    image_size=64, patch_size=16, width=64, head_width=32, text_layers=4, text_width=32, embed_dim=48, quick_gelu=True
)
SETTING = Setting("tiny", 160, "cpu")


def tiny(setting: Setting, name: str) -> DualPathMethod:
    clip = load_backbone("tiny", architecture=TINY, random_seed=0, image_size=160)
    return CLASSES[name](clip, losses=build_terms(loss_conf(name))).train()


@pytest.mark.parametrize("name", CLASSES)
def test_the_published_way_gives_the_same_loss_and_gradients(name: str) -> None:
    ours = tiny(SETTING, name)
    batch = random_batch(ours, 4, served=False)
    loss = ours.total_loss(ours.losses(batch))
    loss.backward()
    published = PublishedDualPath(tiny(SETTING, name))
    other = published.loss(batch)
    other.backward()
    torch.testing.assert_close(other, loss, rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(ours.learnable().values(), published.learned, strict=True):
        assert mine.grad is not None and theirs.grad is not None and mine.grad.abs().max() > 0
        torch.testing.assert_close(theirs.grad, mine.grad, rtol=1e-3, atol=1e-5 * mine.grad.abs().max().item())
    weights = [p for p in published.clip.text.transformer.parameters() if p.grad is not None]
    assert weights, "the text tower collected no gradients"
    assert all(p.grad is None for p in ours.backbone.parameters())


def test_attention_is_counted() -> None:
    q = torch.randn(1, 2, 8, 4)
    attention = torch.nn.functional.scaled_dot_product_attention
    assert count_flops(lambda: attention(q, q, q)) == 2 * (2 * 2 * 8 * 8 * 4)


def test_a_difference_between_the_ways_is_refused() -> None:
    ours = tiny(SETTING, "anomalyclip")
    batch = random_batch(ours, 4, served=False)

    class Fixed(training.Way):
        def batch(self, number: int) -> Any:
            return batch

    def loss(factor: float) -> Any:
        return lambda given: factor * ours.total_loss(ours.losses(given))

    parameters = list(ours.learnable().values())
    mine, theirs = (Fixed(SETTING, parameters, loss(factor), None) for factor in (1.0, 1.01))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="the two ways differ: loss"):
        training.check_equal(mine, theirs)


@pytest.mark.slow
def test_a_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(target: str, arguments: Mapping[str, Any], *, threads: int) -> Measured:
        return run_here(getattr(training, target.rpartition(":")[2])(**arguments))

    monkeypatch.setattr(training, "make_method", tiny)
    monkeypatch.setattr(training, "measure", measured)
    monkeypatch.setattr(training, "IMAGES", 16)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    training.run(tmp_path, quick=True)
    with (tmp_path / "training.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["method"] for row in rows} == set(CLASSES)
    for name in CLASSES:
        found = {row["quantity"]: row for row in rows if row["method"] == name}
        work, epoch = found["GFLOP a step"], found["s an epoch of 16"]
        assert float(work["ratio"]) == pytest.approx(float(work["published"]) / float(work["ours"]))
        assert float(work["ratio"]) > 3 and epoch["limit"] == work["ratio"]
        assert float(epoch["published"]) > float(epoch["ours"]) > 0
        assert epoch["met"] == ("reached" if float(epoch["ratio"]) >= training.AIMS[name] else "missed")
