"""Training the nano CLIP: views, crops, losses, a whole small run that is interrupted and resumes."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch

from anomaly_vlm.backbone import load_backbone
from anomaly_vlm.errors import UserError
from anomaly_vlm.nano import teacher, text
from anomaly_vlm.nano import train as training
from anomaly_vlm.nano.crops import Crops, FreshViews, on_grid, open_crops, statistics, teach
from anomaly_vlm.nano.image import ImageStage, away
from anomaly_vlm.nano.loop import Budgeted
from anomaly_vlm.nano.model import STEM, architecture, new_model, stem_of
from anomaly_vlm.nano.pool import Pool, open_pool
from anomaly_vlm.nano.views import draw_views
from anomaly_vlm.nano.words import COLOURS, GENERIC_NOUN, NOUNS, PLACES, STATES, Caption
from tests.support.nano import break_off

COUNT = 8  # crops


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return open_pool(tmp_path_factory.mktemp("pool"), seed=0, each=1, tell=lambda _: None)


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    """An untrained teacher: the weights come with an extra."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return timm.create_model(teacher.NAME).requires_grad_(False).eval()


def made_crops(place: Path, pool: Pool, model: Any, network: torch.nn.Module, count: int = COUNT) -> Crops:
    return open_crops(place, made_views(pool, model, network), count=count, tell=lambda _: None)


def made_views(pool: Pool, model: Any, network: torch.nn.Module) -> FreshViews:
    return FreshViews(pool, model, network, seed=0, side=64)


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory, pool: Pool, network: torch.nn.Module) -> Crops:
    return made_crops(tmp_path_factory.mktemp("crops"), pool, new_model(0, network).eval(), network)


# ---- pictures --------------------------------------------------------------------------------------------------------


def test_the_pool_holds_twins(pool: Pool):
    assert len(pool) == len(NOUNS)
    for i in (0, 20):
        away = abs(pool.flawless[i].astype(int) - pool.damaged[i]).mean(axis=2)
        assert pool.mask[i].any() and away[pool.mask[i] == 1].mean() > 5 * away[pool.mask[i] == 0].mean()


def test_views_depend_on_seed_and_step_alone(pool: Pool):
    first, again = (draw_views(pool, seed=1, step=7, count=4, side=32) for _ in range(2))
    other = draw_views(pool, seed=1, step=8, count=4, side=32)
    assert torch.equal(first.image, again.image) and torch.equal(first.place, again.place)
    assert not torch.equal(first.image, other.image)


def test_what_is_told_of_a_view(pool: Pool):
    views = draw_views(pool, seed=0, step=3, count=40, side=64)
    assert views.image.shape == (40, 3, 64, 64) and views.image.min() >= 0 and views.image.max() <= 1
    damaged = views.state > 0
    assert 8 < damaged.sum() < 32 and views.state.max() < len(STATES)
    assert ((views.place >= 0) == damaged).all() and views.place.max() < len(PLACES)
    assert views.colour.max() < len(COLOURS) and (views.around[views.noun == GENERIC_NOUN] == -1).all()


# ---- teacher and crops -----------------------------------------------------------------------------------------------


def test_the_stem_is_the_first_half_of_the_teacher(network: torch.nn.Module):
    model: Any = new_model(0, network).eval()
    image = torch.rand(2, 3, 64, 64)
    mean, std = (torch.tensor(v)[:, None, None] for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    with torch.no_grad():
        features = stem_of(model).features((image - mean) / std)
        taught = teach(network, features)
        whole: Any = network
        logits = whole((image * 255 - 127) / 128)
    sure, named = logits.softmax(dim=1).max(dim=1)
    torch.testing.assert_close(taught.sure, sure, rtol=1e-3, atol=1e-6)
    assert torch.equal(taught.named, named)


def test_the_published_names_are_all_known(network: torch.nn.Module):
    """timm's names from the published ones, both ways of counting blocks."""
    published = {}
    places = [(s, b) for s, blocks in enumerate(network.blocks) for b in range(len(blocks))]  # type: ignore[arg-type]
    inner = {"conv_dw": "_depthwise_conv", "conv_pw": "_expand_conv", "conv_pwl": "_project_conv"}
    for key, value in network.state_dict().items():
        part, *rest = key.split(".")
        if part == "blocks":
            stage, block, name, kind = int(rest[0]), int(rest[1]), rest[2], rest[3]
            if stage == 0:
                name = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}[name]
            else:
                name = inner.get(name) or {"bn1": "_bn0", "bn2": "_bn1", "bn3": "_bn2"}[name]
            published[f"_blocks.{places.index((stage, block))}.{name}.{kind}"] = value
        else:
            outer = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1"}
            name = {**outer, "classifier": "_fc"}[part]
            published[f"{name}.{rest[0]}"] = value
    named = teacher.as_timm(published, network)
    own = network.state_dict()
    assert named.keys() == own.keys() and all(torch.equal(named[key], own[key]) for key in own)


def test_without_the_extra_the_teacher_is_missed_in_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(teacher, "PACKAGE", "no_such_package")
    with pytest.raises(UserError, match="install the extra 'nano'"):
        teacher.load_teacher()


def test_crops_are_made_once(tmp_path: Path, pool: Pool, network: torch.nn.Module, crops: Crops):
    model = new_model(0, network).eval()
    made = made_crops(tmp_path, pool, model, network)
    assert len(made) == COUNT and made.stem.shape[1:] == (112, 4, 4) and made.dense.shape[1:] == (320, 2, 2)
    assert np.array_equal(made.stem, crops.stem) and np.array_equal(made.told["place"], crops.told["place"])
    before = (tmp_path / "stem.npy").stat().st_mtime_ns
    made_crops(tmp_path, pool, model, network)
    assert (tmp_path / "stem.npy").stat().st_mtime_ns == before


def test_statistics_and_grid(crops: Crops):
    facts = statistics(crops)
    assert facts.stem[0].shape == (112,) and facts.pooled[1].shape == (1280,)
    torch.testing.assert_close(
        facts.stem[0], torch.from_numpy(crops.stem.astype(np.float32)).mean((0, 2, 3)), rtol=1e-3, atol=1e-4
    )
    even = torch.ones(1, 3, 2, 2)
    assert torch.equal(on_grid(even, (4, 4)), torch.ones(1, 16, 3))
    mean, std = torch.zeros(3), torch.ones(3)
    aim = torch.randn(5, 3)
    assert away(2 * aim, aim, (mean, std)).item() == pytest.approx(0, abs=1e-6)
    assert away(-aim, aim, (mean, std)).item() == pytest.approx(2, abs=1e-6)


# ---- losses ----------------------------------------------------------------------------------------------------------


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


def test_gradients_leave_the_stem_alone(crops: Crops, network: torch.nn.Module):
    model: Any = new_model(0, network)
    stage = ImageStage(model, crops, text.Directions(128, 0), seed=0)
    values = stage.losses(stage.draw(0, 4), torch.Generator())
    assert set(values) == {"global", "dense", "caption", "text"}
    stage.total(values).backward()
    assert [name for name, p in stage.trained.items() if p.grad is None] == []
    stem = stem_of(model)
    assert all(p.grad is None for part in (stem.normalise, stem.conv_stem, stem.blocks) for p in part.parameters())
    assert model.token_embedding.weight.grad is None
    plain = ImageStage(new_model(0, network), crops, text.Directions(128, 0), seed=0, distil=[])
    assert set(plain.losses(plain.draw(0, 4), torch.Generator())) == {"caption", "text"}
    assert not list(plain.heads.parameters())


def test_the_dense_loss_can_be_left_out(crops: Crops, network: torch.nn.Module):
    stage = ImageStage(new_model(0, network), crops, text.Directions(128, 0), seed=0, distil=["global"])
    assert set(stage.losses(stage.draw(0, 4), torch.Generator())) == {"global", "caption", "text"}
    with pytest.raises(UserError, match="unknown image"):
        ImageStage(new_model(0, network), crops, text.Directions(128, 0), seed=0, distil=["patches"])


def test_a_tuned_stem_learns_slowly_from_views_drawn_anew(crops: Crops, pool: Pool, network: torch.nn.Module):
    model: Any = new_model(0, network)
    fresh = made_views(pool, model, network)
    stage = ImageStage(model, crops, text.Directions(128, 0), seed=0, fresh=fresh)
    step, again, other = (stage.draw(number, 4) for number in (0, 0, 1))
    assert step.seen.images is not None and other.seen.images is not None and again.seen.images is not None
    assert torch.equal(step.seen.images, again.seen.images) and not torch.equal(step.seen.images, other.seen.images)

    stem = stem_of(model)
    torch.testing.assert_close(stem.features(step.seen.images), step.seen.stem)
    before = {name: value.clone() for name, value in stem.state_dict().items()}
    training = Budgeted(stage, lambda number: stage.draw(number, 4), lr=0.01, seconds=1e-6)
    training.spend(1e-6)  # one step
    assert [group["lr"] for group in training.optimizer.param_groups] == pytest.approx([0.0005, 0.00005])
    changed = {name for name, value in stem.state_dict().items() if not torch.equal(value, before[name])}
    assert {"conv_stem.weight", "bn1.weight", "blocks.4.2.conv_pwl.weight", "project.weight"} <= changed
    assert not any("running" in name or name.startswith("normalise") for name in changed)
    kept = stage.averaged().state_dict()["visual.conv1.conv_stem.weight"]
    assert not torch.equal(kept, before["conv_stem.weight"])
    taught = fresh.look(5, 2)
    assert torch.equal(
        taught.stem, made_views(pool, new_model(0, network), network).look(5, 2).stem
    )  # by the teacher's own


def test_a_tower_of_another_width_and_depth(crops: Crops, network: torch.nn.Module):
    model: Any = new_model(0, network, width=192, layers=2)
    stage = ImageStage(model, crops, text.Directions(128, 0), seed=0)
    stage.total(stage.losses(stage.draw(0, 4), torch.Generator())).backward()
    assert (stage.backbone.width, stage.backbone.num_layers) == (192, 2)
    assert all(p.grad is not None for p in stage.trained.values())
    features = torch.randn(2, 112, 4, 4)
    std = stage.facts.stem[1]  # the projection starts as an isometry, so that nothing of the stem is lost
    away = ((features[0] - features[1]) / std[:, None, None]).norm(dim=0)
    made = stem_of(model).project(features)
    torch.testing.assert_close((made[0] - made[1]).norm(dim=0), away, rtol=1e-3, atol=1e-3)
    for wrong in ({"width": 100}, {"layers": 0}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            new_model(0, **wrong)


def test_sentences_follow_seed_and_step(crops: Crops, network: torch.nn.Module):
    stage = ImageStage(new_model(0, network), crops, text.Directions(128, 0), seed=0)
    first, again, other = (stage.draw(number, 6) for number in (5, 5, 6))
    assert first.said == again.said and first.said != other.said
    assert first.same.diagonal().all() and len({row.numpy().tobytes() for row in first.seen.stem}) == 6


# ---- a whole run -----------------------------------------------------------------------------------------------------

SMALL: dict[str, Any] = {
    "seed": 0,
    "twins": 1,
    "crops": 6,
    "width": 128,
    "layers": 8,
    "text": {"steps": 3, "batch": 8, "lr": 0.001},
    "image": {"steps": 5, "batch": 4, "lr": 0.001, "distil": ["global", "dense"], "tune_stem": False},
    "every": 2,
    "validate_every": 100,
    "val_count": 42,
}


@pytest.fixture
def untaught(monkeypatch: pytest.MonkeyPatch, network: torch.nn.Module):
    """An untrained teacher, a gate that is open (three steps teach no language), and no validation."""
    monkeypatch.setattr(training, "score_set", lambda *_, **__: None)
    monkeypatch.setattr(training, "quick_values", lambda *_: {"image": 50.0})
    monkeypatch.setattr(training, "load_teacher", lambda: network)
    monkeypatch.setattr(text, "gate", lambda *_, **__: {"noun_accuracy": 0.0, "passed": 1.0})


@pytest.mark.slow
def test_an_interrupted_run_ends_like_an_unbroken_one(tmp_path: Path, untaught, monkeypatch: pytest.MonkeyPatch):
    cfg = {**SMALL, "pool": str(tmp_path / "pool")}
    whole = training.train_nano(cfg, tmp_path / "whole", lambda _: None)

    with monkeypatch.context() as patch:
        break_off(patch, at=2)
        with pytest.raises(KeyboardInterrupt):
            training.train_nano(cfg, tmp_path / "broken", lambda _: None)
    again = training.train_nano(cfg, tmp_path / "broken", lambda _: None)
    assert again.read_bytes() == whole.read_bytes()


@pytest.mark.slow
def test_a_run_of_another_tower_with_a_tuned_stem(tmp_path: Path, untaught):
    image = {**SMALL["image"], "steps": 2, "distil": ["global"], "tune_stem": True}
    cfg = {**SMALL, "width": 64, "layers": 2, "image": image, "pool": str(tmp_path / "pool")}
    path = training.train_nano(cfg, tmp_path / "run", lambda _: None)
    with (tmp_path / "run" / "curve.csv").open() as file:
        row = next(csv.DictReader(file))
    assert row["global"] and not row["dense"]
    backbone = load_backbone("small", weights=str(path), architecture=architecture(width=64, layers=2), stem=STEM)
    assert backbone.width == 64 and backbone.num_layers == 2


def test_a_text_tower_that_says_nothing_is_refused(
    tmp_path: Path, network: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(training, "load_teacher", lambda: network)
    with pytest.raises(UserError, match="did not pass its gate"):
        training.train_nano({**SMALL, "pool": str(tmp_path / "pool")}, tmp_path / "run", lambda _: None)
