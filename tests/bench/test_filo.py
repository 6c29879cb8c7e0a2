"""FiLo's benchmark on a tiny backbone: both ways compute the same, and the table holds what was measured."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from anomaly_vlm.backbone import load_backbone
from anomaly_vlm.bench import filo
from anomaly_vlm.bench._published_filo import PublishedFiLo
from anomaly_vlm.bench.training import Setting
from anomaly_vlm.errors import UserError
from anomaly_vlm.losses import build_terms
from anomaly_vlm.methods.filo import FiLo
from tests.bench.test_training import TINY
from tests.support.conf import loss_conf

SETTING = Setting("tiny", 64, "cpu")


def tiny(setting: Setting) -> FiLo:
    clip = load_backbone("tiny", architecture=TINY, random_seed=0, image_size=64)
    return FiLo(clip, losses=build_terms(loss_conf("filo")))


def test_the_published_way_gives_the_same_loss_and_gradients() -> None:
    ours, published = tiny(SETTING).train(), PublishedFiLo(tiny(SETTING).train())
    batch = filo.one_image(ours, SETTING)
    loss = ours.total_loss(ours.losses(batch))
    loss.backward()
    other = published.loss(batch)
    other.backward()
    torch.testing.assert_close(other, loss, rtol=1e-5, atol=1e-6)
    compared = 0
    for mine, theirs in zip(ours.learnable().values(), published.learned, strict=True):
        assert (mine.grad is None) == (theirs.grad is None)
        if mine.grad is not None and theirs.grad is not None:
            torch.testing.assert_close(theirs.grad, mine.grad, rtol=1e-3, atol=1e-4 * mine.grad.abs().max().item())
            compared += 1
    assert compared == len(published.learned) - 2, "all but the adapter's two"


def test_a_difference_between_the_ways_is_refused() -> None:
    method = tiny(SETTING).train()
    batch = filo.one_image(method, SETTING)
    parameters = list(method.learnable().values())
    steps = [
        filo.TrainingStep(parameters, lambda f=factor: f * method.total_loss(method.losses(batch)), SETTING)  # type: ignore[misc]
        for factor in (1.0, 1.01)
    ]
    with pytest.raises(UserError, match="the two ways differ: loss"):
        filo.check_equal(*steps)


def test_a_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filo, "make_method", tiny)
    layer = torch.nn.Linear(64, 64)
    monkeypatch.setattr(filo, "detector_pass", lambda setting: lambda: layer(torch.zeros(8, 64)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    filo.run(tmp_path, quick=True)
    with (tmp_path / "filo.csv").open() as file:
        found = {row["quantity"]: row for row in csv.DictReader(file)}
    shares = [float(row["share"]) for name, row in found.items() if name.startswith("s an image") and row["share"]]
    assert sum(shares) == pytest.approx(1) and len(shares) == 5
    assert float(found["GFLOP an image: detector"]["ours"]) == pytest.approx(2 * 8 * 64 * 64 / 1e9)
    assert float(found["GFLOP an image: MMCI, six kernels apart"]["ratio"]) == pytest.approx(94 / 49)
    assert float(found["training: GFLOP a step"]["ratio"]) > 3
    assert float(found["training: s a step"]["ours"]) > 0
