"""The nano ConvNeXt: its file, its words, its pictures, its training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from omegaconf import OmegaConf

import anomaly_vlm
from anomaly_vlm.backbone import ConvNextBackbone, load_backbone
from anomaly_vlm.data.types import UNKNOWN
from anomaly_vlm.errors import UserError
from anomaly_vlm.methods.vl4ad.vocabulary import concept_vectors
from anomaly_vlm.nano import road_text
from anomaly_vlm.nano.convnext import ARCHITECTURE, as_convnext, new_convnext
from anomaly_vlm.nano.road_image import RoadStage, class_shares
from anomaly_vlm.nano.road_views import RoadPool, draw_road_views, open_road_pool
from anomaly_vlm.nano.train_convnext import train_convnext
from anomaly_vlm.runs.groups import conf_dir
from tests.support.nano import break_off, plain_open_clip

FILE = Path(anomaly_vlm.__file__).parent / "nano" / "nano_convnext.safetensors"


@pytest.fixture(scope="module")
def shipped() -> ConvNextBackbone:
    node = OmegaConf.to_container(OmegaConf.load(conf_dir() / "backbone" / "nano_convnext.yaml"))
    assert node["architecture"] == ARCHITECTURE
    return load_backbone(**{key: value for key, value in node.items() if key != "_target_"})


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> RoadPool:
    return open_road_pool(tmp_path_factory.mktemp("pool"), seed=0, scenes=6, textures=1, tell=lambda _: None)


# ---- the file --------------------------------------------------------------------------------------------------------


def test_plain_open_clip_reads_the_file(shipped: ConvNextBackbone):
    model = plain_open_clip(ARCHITECTURE, FILE)
    assert FILE.stat().st_size < 5e6 and not shipped.is_random
    assert shipped.describe() == "nano ConvNeXt, procedural data"
    image = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    words = ["a photo of a car.", "supercalifragilistic"]
    with torch.no_grad():
        pooled = shipped.encode_image(image).dense.mean(dim=(2, 3))
        torch.testing.assert_close(shipped.project(pooled), model.encode_image(image), rtol=0, atol=1e-5)
        own = shipped.encode_text(shipped.tokenize(words))
        torch.testing.assert_close(own, model.encode_text(open_clip.tokenize(words)), rtol=0, atol=1e-5)


def test_its_texts_pass_the_gate(shipped: ConvNextBackbone):
    assert road_text.gate(shipped, seed=0)["passed"] == 1


def test_it_names_what_is_on_the_road(shipped: ConvNextBackbone):
    """Pooled segments of fresh scenes against the 19 class texts; chance is 5 %."""
    texts = torch.stack([concept_vectors(shipped, c, road_text.vocabulary().templates).mean(0) for c in concepts()])
    stage = RoadStage(shipped, torch.zeros(1, 1, 128), torch.nn.functional.normalize(texts, dim=-1))
    assert stage.validate(8)["segments"] > 60
    shipped.requires_grad_(False)


def concepts() -> list[list[str]]:
    return [list(entry) for entry in road_text.vocabulary().concepts]


# ---- pictures and words ----------------------------------------------------------------------------------------------


def test_the_pool_holds_known_classes_alone(pool: RoadPool):
    assert pool.scene.shape == (6, 96, 192, 3) and (pool.label < road_text.CLASSES).all() and UNKNOWN > 19
    assert len(pool.texture) == len(road_text.TEXTURES)


def test_views_are_a_function_of_seed_and_step(pool: RoadPool):
    first, again, other = (draw_road_views(pool, seed=0, step=step, count=8) for step in (3, 3, 4))
    assert torch.equal(first.image, again.image) and torch.equal(first.label, again.label)
    assert not torch.equal(first.image, other.image)
    assert first.image.shape == (8, 3, 96, 192) and first.image.min() >= 0 and first.image.max() <= 1
    assert first.label.max() < road_text.ELSEWHERE


def test_shares_of_a_cell():
    label = torch.zeros(1, 4, 8, dtype=torch.long)
    label[0, :, 4:] = 13
    label[0, 0, 4:] = 0
    shares = class_shares(label)
    assert shares.shape == (1, road_text.ELSEWHERE + 1, 1, 2)
    assert shares[0, 0, 0].tolist() == [1, 0.25] and shares[0, 13, 0].tolist() == [0, 0.75]


def test_words_for_something_else_name_no_class():
    words = road_text.others()
    assert "caravan" in " ".join(words) and len(words) > 50
    known = {word for entry in concepts() for concept in entry for word in concept.split()}
    assert not known & set(words)


# ---- training --------------------------------------------------------------------------------------------------------

SMALL: dict[str, Any] = {
    "seed": 0,
    "drawn": {"scenes": 4, "textures": 1},
    "text": {"steps": 2, "batch": 8, "lr": 0.001},
    "captions_each": 1,
    "image": {"steps": 5, "batch": 2, "lr": 0.001},
    "every": 2,
    "validate_every": 100,
    "val_count": 2,
}


def test_gradients_reach_the_image_tower_alone(pool: RoadPool):
    backbone = as_convnext(new_convnext(0))
    bank = road_text.caption_bank(backbone, seed=0, each=1)
    stage = RoadStage(backbone, bank, bank[:, 0])
    values = stage.losses(draw_road_views(pool, seed=0, step=0, count=4), torch.Generator().manual_seed(0))
    stage.total(values).backward()
    assert all(p.grad is not None for p in stage.parameters)
    assert all(p.grad is None for p in backbone.text.parameters())


def test_an_interrupted_run_ends_like_an_unbroken_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(road_text, "gate", lambda *_, **__: {"class_accuracy": 0.0, "passed": 1.0})
    cfg = {**SMALL, "pool": str(tmp_path / "pool")}
    whole = train_convnext(cfg, tmp_path / "whole", lambda _: None)

    with monkeypatch.context() as patch:
        break_off(patch, at=2)
        with pytest.raises(KeyboardInterrupt):
            train_convnext(cfg, tmp_path / "broken", lambda _: None)
    again = train_convnext(cfg, tmp_path / "broken", lambda _: None)
    assert again.read_bytes() == whole.read_bytes()
    assert np.loadtxt(tmp_path / "whole" / "curve.csv", delimiter=",", dtype=str).shape[0] == 4  # head, steps 2, 4, 5


def test_a_text_tower_that_says_nothing_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="did not pass its gate"):
        train_convnext({**SMALL, "pool": str(tmp_path / "pool")}, tmp_path / "run", lambda _: None)
