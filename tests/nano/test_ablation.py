"""The comparison of recipes at one budget: turns, probes, what a tower is asked."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from anomaly_vlm.cli import main
from anomaly_vlm.data.drawn.products import ProceduralSource
from anomaly_vlm.nano.ablation import VARIANTS, train_in_turns
from anomaly_vlm.nano.model import as_backbone, new_model
from anomaly_vlm.nano.probes import Pictures, asked, encode, probe, read
from anomaly_vlm.nano.zero_shot import loader


class Walker:
    """A stage whose step costs `cost` CPU seconds of a clock that the test turns."""

    def __init__(self, cost: float, clock: list[float]) -> None:
        self.cost, self.clock, self.drawn = cost, clock, []
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.parameters = [self.weight]

    def draw(self, number: int, count: int) -> int:
        self.drawn.append(number)
        return count

    def losses(self, views: Any, generator: torch.Generator) -> dict[str, torch.Tensor]:
        self.clock[0] += self.cost
        return {"all": (self.weight - views).square().sum()}

    def total(self, values: dict[str, torch.Tensor]) -> torch.Tensor:
        return values["all"]

    def follow(self, decay: float) -> None:
        pass


def test_variants_take_turns_and_spend_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("anomaly_vlm.nano.loop.time", SimpleNamespace(process_time=lambda: clock[0]))
    stages: Any = {"untrained blocks": Walker(1, clock), "as shipped": Walker(1, clock), "stem tuned": Walker(4, clock)}
    threads = torch.get_num_threads()
    trial: Any = SimpleNamespace(batch=3, lr=0.1)
    steps = train_in_turns(stages, trial, 40, still={"untrained blocks"})
    assert steps == {"untrained blocks": 0, "as shipped": 40, "stem tuned": 10}
    assert stages["as shipped"].drawn == list(range(10_000_000, 10_000_040))  # no batch twice
    assert stages["as shipped"].weight.item() > 0.5 and stages["untrained blocks"].weight.item() == 0
    assert torch.get_num_threads() == threads


def test_probes_find_what_is_there() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(240, 200, 6, generator=generator)
    line, ring = x[..., 0] > 1, x[..., :2].norm(dim=2) > 1.8
    for truth, hidden, low, high in ((line, None, 0.99, 1), (ring, None, 0.3, 0.7), (ring, 16, 0.9, 1)):
        found = probe(x[:200], truth[:200], x[200:], hidden=hidden, seed=0)
        auroc = _auroc(truth[200:].flatten(), found.flatten())
        assert low <= auroc <= high, (hidden, auroc)


def _auroc(truth: torch.Tensor, score: torch.Tensor) -> float:
    return (score[truth][:, None] > score[~truth][None]).float().mean().item()


def test_a_tower_is_asked_about_its_own_patches() -> None:
    torch.manual_seed(0)
    backbone = as_backbone(new_model(0, layers=2))
    source = ProceduralSource(val_count=4, categories=["key"])
    pictures = read(backbone, source, "val")
    assert pictures.stem.shape == (4, 112, 14, 14) and pictures.category == ["key"] * 4
    assert pictures.cells.any(1).tolist() == (pictures.label == 1).tolist() and pictures.label.sum() == 2
    tokens = encode(backbone, pictures)
    with torch.no_grad():
        image = next(iter(loader(backbone, source, side="val"))).image
        whole = backbone.encode_image(image, layers=[1, 2])
    for own, right in zip(tokens, (whole.cls, *whole.patches), strict=True):
        torch.testing.assert_close(own, right, rtol=1e-2, atol=1e-2)  # the stem's output is kept in half precision

    told = pictures.stem.clone()
    told[:, :8] += 20 * pictures.cells.unflatten(1, (14, 14))[:, None]  # damage that anyone could see
    clear = Pictures(told, pictures.label, pictures.cells, pictures.category)
    values = asked(backbone, {"train": clear, "test": clear, "fresh": pictures}, seed=0)
    assert values["linear_pixel_auroc"] > 95 and values["mlp_pixel_auroc"] > 95
    assert 0 <= values["zero_shot_image_auroc"] <= 100 and np.isfinite(list(values.values())).all()


@pytest.mark.parametrize("seconds", ["soon", "0", "inf"])
def test_a_budget_that_is_none_is_rejected(
    seconds: str, capsys: pytest.CaptureFixture[str], tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "nano", f"seconds={seconds}"]) == 2
    assert f"seconds is {seconds}" in capsys.readouterr().err


def test_every_choice_is_one_variant() -> None:
    shipped = VARIANTS["as shipped"]
    assert shipped.distil == ("global", "dense") and not shipped.tower and not shipped.tune_stem
    assert {"dense loss off", "distillation off", "stem tuned", "width 192"} <= set(VARIANTS)
