"""Training the nano CLIP: views, losses, a whole small run that is interrupted and goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from anomaly_vlm.errors import UserError
from anomaly_vlm.nano import text
from anomaly_vlm.nano import train as training
from anomaly_vlm.nano.image import ImageStage
from anomaly_vlm.nano.model import as_backbone, new_model
from anomaly_vlm.nano.pool import Pool, open_pool
from anomaly_vlm.nano.views import draw_views
from anomaly_vlm.nano.words import GENERIC_NOUN, NOUNS, STATES, Caption
from tests.support.nano import break_off


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return open_pool(tmp_path_factory.mktemp("pool"), seed=0, each=1, tell=lambda _: None)


def test_the_pool_holds_twins(pool: Pool):
    assert len(pool) == len(NOUNS)
    for i in (0, 20):
        away = abs(pool.flawless[i].astype(int) - pool.damaged[i]).mean(axis=2)
        assert pool.mask[i].any() and away[pool.mask[i] == 1].mean() > 5 * away[pool.mask[i] == 0].mean()


def test_views_depend_on_seed_and_step_alone(pool: Pool):
    options: dict[str, Any] = {"pairs": 4, "side": 32, "patch": 8}
    first, again = (draw_views(pool, seed=1, step=7, **options) for _ in range(2))
    other = draw_views(pool, seed=1, step=8, **options)
    assert torch.equal(first.image, again.image) and torch.equal(first.cover, again.cover)
    assert not torch.equal(first.image, other.image)


def test_twins_differ_where_the_cover_says(pool: Pool):
    views = draw_views(pool, seed=0, step=3, pairs=12, side=64, patch=8)
    assert views.image.shape == (24, 3, 64, 64) and views.cover.shape == (24, 64)
    assert views.label[:12].sum() == 0 and views.label[12:].sum() >= 8
    assert (views.cover[:12] == 0).all()
    away = (views.image[12:] - views.image[:12]).abs().mean(1)
    patches = torch.nn.functional.avg_pool2d(away[:, None], 8).flatten(1)
    damaged, whole = views.cover[12:] > 0.3, views.cover[12:] == 0
    assert patches[damaged].mean() > 2 * patches[whole].mean()
    mixed = ~views.pure
    assert (views.noun[:12][mixed] == GENERIC_NOUN).all()


def test_text_directions_are_orthonormal():
    directions = text.Directions(128, 0)
    basis = torch.cat([directions.state[None], directions.nouns, directions.kinds])
    torch.testing.assert_close(basis @ basis.T, torch.eye(len(basis)), rtol=0, atol=1e-5)
    assert len(directions.kinds) == len(STATES) - 1


def test_a_sentence_along_its_directions_has_next_to_no_loss():
    directions = text.Directions(128, 0)
    said = [Caption("", 3, 0), Caption("", 5, 2)]
    rows = [
        -0.5 * directions.state + 0.86 * directions.nouns[3],
        0.5 * directions.state + 0.6 * directions.nouns[5] + 0.6 * directions.kinds[1],
    ]
    right = text.losses(torch.stack(rows), said, directions)
    wrong = text.losses(torch.stack(rows[::-1]), said, directions)
    assert right < 0.2 < wrong


def test_gradients_reach_the_image_tower_alone(pool: Pool):
    model = new_model(0)
    bank = text.caption_bank(model, seed=0, each=1)
    assert bank.shape == (len(NOUNS) + 1, len(STATES), 1, 128)
    stage = ImageStage(as_backbone(model), bank, text.Directions(128, 0))
    views = draw_views(pool, seed=0, step=0, pairs=3, side=32, patch=8)
    seen: set[str] = set()
    for draw in range(30):  # ordinary steps, steps of the V-V path, steps of windows
        seen |= set(stage.losses(views, torch.Generator().manual_seed(draw)))
    assert seen == {"patches", "dice", "state", "rank", "caption", "material", "windows"}
    values = stage.losses(views, torch.Generator().manual_seed(0))
    assert set(values) == seen - {"windows"}
    stage.total(values).backward()
    assert all(p.grad is not None for p in stage.parameters)
    assert all(p.grad is None for p in model.transformer.parameters())
    assert model.visual.positional_embedding.grad is None


SMALL: dict[str, Any] = {
    "seed": 0,
    "twins": 1,
    "text": {"steps": 3, "batch": 8, "lr": 0.001},
    "captions_each": 1,
    "stages": [
        {"side": 32, "images": 24, "batch": 4, "lr": 0.0005},
        {"side": 48, "images": 8, "batch": 4, "lr": 0.0005},
    ],
    "every": 2,
    "validate_every": 100,
    "val_count": 84,
}


@pytest.fixture
def gate_is_open(monkeypatch: pytest.MonkeyPatch):
    """Three steps teach no language: the gate has its own tests."""
    monkeypatch.setattr(text, "gate", lambda *_, **__: {"noun_accuracy": 0.0, "passed": 1.0})


@pytest.mark.slow
def test_an_interrupted_run_ends_like_an_unbroken_one(tmp_path: Path, gate_is_open, monkeypatch: pytest.MonkeyPatch):
    cfg = {**SMALL, "pool": str(tmp_path / "pool")}
    whole = training.train_nano(cfg, tmp_path / "whole", lambda _: None)

    with monkeypatch.context() as patch:
        break_off(patch, at=3)
        with pytest.raises(KeyboardInterrupt):
            training.train_nano(cfg, tmp_path / "broken", lambda _: None)
    again = training.train_nano(cfg, tmp_path / "broken", lambda _: None)
    assert again.read_bytes() == whole.read_bytes()


def test_a_text_tower_that_says_nothing_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="did not pass its gate"):
        training.train_nano({**SMALL, "pool": str(tmp_path / "pool")}, tmp_path / "run", lambda _: None)
