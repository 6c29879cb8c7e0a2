"""The shipped nano CLIP: plain open_clip reads it, its texts mean something, its maps find what trivial ones do not."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf

import anomaly_vlm
from anomaly_vlm.backbone import ClipBackbone, load_backbone
from anomaly_vlm.data import AnomalyDataModule, Preprocess
from anomaly_vlm.data.drawn.products import ProceduralSource
from anomaly_vlm.nano import text
from anomaly_vlm.nano.compare import compare, row
from anomaly_vlm.nano.model import ARCHITECTURE, STEM, new_model, save_model
from anomaly_vlm.nano.words import token_rows
from anomaly_vlm.runs.groups import conf_dir
from tests.support.nano import card_lines

CARD = Path(__file__).parents[2] / "docs" / "nano_clip.md"
FILE = Path(anomaly_vlm.__file__).parent / "nano" / "nano.safetensors"


@pytest.fixture(scope="module")
def nano() -> ClipBackbone:
    node = OmegaConf.to_container(OmegaConf.load(conf_dir() / "backbone" / "nano.yaml"), resolve=False)
    options = {k: v for k, v in node.items() if k not in ("_target_", "pos_resize")}
    return load_backbone(**options)


def test_the_file_is_small_and_its_architecture_is_the_training_one(nano: ClipBackbone):
    assert FILE.stat().st_size < 12e6
    shipped = OmegaConf.to_container(OmegaConf.load(conf_dir() / "backbone" / "nano.yaml"), resolve=False)
    assert shipped["architecture"] == ARCHITECTURE and shipped["stem"] == STEM
    assert nano.describe() == "nano CLIP, EfficientNet-Lite0 stem, procedural data" and not nano.is_random


def test_the_lines_of_the_model_card_load_it_in_plain_open_clip(nano: ClipBackbone, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(FILE.parents[2])
    model = card_lines(CARD)["model"]
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    words = ["a photo of a damaged gear.", "supercalifragilistic"]
    with torch.no_grad():
        torch.testing.assert_close(nano.encode_image(images).cls, model.encode_image(images), rtol=1e-4, atol=1e-4)
        whole = open_clip.tokenize(words)
        torch.testing.assert_close(nano.encode_text(nano.tokenize(words)), model.encode_text(whole), rtol=0, atol=1e-5)


def test_words_without_a_row_are_reported_once(nano: ClipBackbone, caplog: pytest.LogCaptureFixture):
    fresh = load_backbone("nano", weights=str(FILE), architecture=ARCHITECTURE, stem=STEM)
    with caplog.at_level(logging.WARNING, logger="anomaly_vlm"):
        fresh.tokenize(["a photo of a gear."])
        assert not caplog.records
        fresh.tokenize(["mississippian brachiosaurus"])
        fresh.tokenize(["mississippian"])
    assert len(caplog.records) == 1 and "read as 'thing'" in caplog.text


def test_its_texts_pass_the_gate(nano: ClipBackbone):
    model = open_clip.CLIP(**ARCHITECTURE)
    model.load_state_dict({**model.state_dict(), **_text_state(nano)})
    facts = text.gate(model, text.Directions(128, 0), seed=3, count=500)
    assert facts["passed"] and facts["state_accuracy"] > 0.98, facts


def _text_state(nano: ClipBackbone) -> dict[str, torch.Tensor]:
    names = ("transformer", "token_embedding", "ln_final")
    state = {f"{n}.{k}": v for n in names for k, v in getattr(nano.text, n).state_dict().items()}
    return {
        **state,
        "positional_embedding": nano.text.positional_embedding,
        "text_projection": nano.text.text_projection,
    }


def test_its_class_token_names_what_it_sees(nano: ClipBackbone):
    """Fresh pictures of the training families against their nouns; chance is 2 %."""
    data = AnomalyDataModule(test=ProceduralSource(val_count=84), cache_mb=0, eval_batch_size=12)
    data.preprocess = Preprocess(size=nano.image_size, mean=nano.mean, std=nano.std)
    data._samples["test"] = ProceduralSource(val_count=84).samples("val")
    words = sorted({sample.category for sample in data.samples("test")})
    texts = F.normalize(nano.encode_text(nano.tokenize([f"a photo of a {word}." for word in words])), dim=-1)
    right = []
    for batch in data.test_dataloader():
        named = (F.normalize(nano.encode_image(batch.image).cls, dim=-1) @ texts.T).argmax(dim=1)
        right += [words[i] == word for i, word in zip(named.tolist(), batch.category, strict=True)]
    assert np.mean(right) > 0.3, np.mean(right)


def test_the_table_of_a_set(nano: ClipBackbone, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(f"{compare.__module__}.DRAWS", 5)
    rows = {row.name: row for row in compare(ProceduralSource(test_count=12), {"nano": nano})}
    assert 0 <= rows["nano"].image <= 100 and 0 <= rows["nano"].aupro <= 100
    assert rows["nano"].low <= rows["nano"].high and rows["mean brightness"].low is None


def test_a_set_without_masks_has_image_values_alone():
    made = row("any", np.array([0.1, 0.9]), np.zeros((2, 4, 4)), np.array([0, 1]), None)
    assert made.image == 100 and np.isnan(made.pixel) and np.isnan(made.aupro)


def test_a_file_keeps_its_rows_through_half_precision(tmp_path: Path):
    model = new_model(0)
    save_model(model, token_rows(), tmp_path / "new.safetensors")
    again = load_backbone("again", weights=str(tmp_path / "new.safetensors"), architecture=ARCHITECTURE, stem=STEM)
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(again.encode_image(images).cls, model.eval().encode_image(images), rtol=0, atol=5e-3)
