"""Grounding DINO with random weights: both backends, their weights, their messages."""

from __future__ import annotations

import re
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from anomaly_vlm.detectors import Picture, Queries
from anomaly_vlm.detectors import grounding as module
from anomaly_vlm.detectors.grounding import GroundingDetector
from anomaly_vlm.detectors.groundingdino_port import GroundingDinoDetector, package_config, replaced_parts
from anomaly_vlm.detectors.key_map import OLDER_SWIN, converted, read_original, sizes
from anomaly_vlm.detectors.pixels import as_tensor, resized
from anomaly_vlm.detectors.transformers_port import TransformersDetector, from_original
from anomaly_vlm.errors import UserError
from tests.detectors.tiny import SIZE, picture, write_model, write_tokenizer

CAPTIONS = ["scratch . crack.", "dent . rust on the metal . hole.", "broken edges."]
ORIGINAL = pytest.mark.skipif(find_spec("groundingdino") is None, reason="the extra 'groundingdino' is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("tiny"))


def pictures(count: int = 3) -> list[Picture]:
    return [Picture(f"{i}.png", picture(i, 96 if i == 1 else 64)) for i in range(count)]


def same(one: Queries, other: Queries, *, probs: float = 2e-4, boxes: float = 1e-5) -> None:
    assert one.probs is not None and other.probs is not None and one.pieces == other.pieces
    torch.testing.assert_close(one.probs, other.probs, rtol=0, atol=probs)
    torch.testing.assert_close(one.boxes, other.boxes, rtol=0, atol=boxes)


def test_mixed_captions_and_sizes_equal_single_runs(folder: Path) -> None:
    detector = TransformersDetector(weights=str(folder), short_side=64, batch_size=4)
    together = detector.queries(pictures(), CAPTIONS)
    for i, answer in enumerate(together):
        same(answer, detector.queries([pictures()[i]], [CAPTIONS[i]])[0], probs=1e-5)
        assert answer.probs is not None and answer.probs.shape == (10, len(answer.pieces))
        assert answer.pieces[0] == "[CLS]" and answer.pieces[-1] == "[SEP]"
    found = detector.detect([picture(0)], CAPTIONS[:1], size=(64, 64), box_threshold=0.9999999, keep_best=True)
    assert len(found[0]) == 1 and found[0].phrases[0]


def test_answers_are_kept(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"weights": str(folder), "short_side": 64, "folder": str(tmp_path), "keep_most": 4}
    first = TransformersDetector(**options).queries(pictures(), CAPTIONS)
    assert all(len(answer) == 4 for answer in first)
    monkeypatch.setattr(TransformersDetector, "load", lambda self: pytest.fail("the weights were read again"))
    for one, other in zip(first, TransformersDetector(**options).queries(pictures(), CAPTIONS), strict=True):
        same(one, other, probs=0, boxes=0)
    with pytest.raises(pytest.fail.Exception):
        TransformersDetector(**{**options, "short_side": 96}).queries(pictures(), CAPTIONS)


def test_a_caption_that_is_too_long(folder: Path) -> None:
    detector = TransformersDetector(weights=str(folder), short_side=64)
    with pytest.raises(UserError, match=r"has 301 tokens, the detector reads 256"):
        detector.check_captions(["scratch.", " ".join(["rust"] * 298) + "."])


# ---- pixels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "short", "expected"),
    [
        ((640, 480), 518, (690, 518)),
        ((480, 640), 518, (518, 690)),
        ((3000, 500), 518, (1332, 222)),
        ((7, 7), 518, (518, 518)),
    ],
)
def test_sizes(size: tuple[int, int], short: int, expected: tuple[int, int]) -> None:
    assert resized(*size, short) == expected


def test_statistics() -> None:
    pixels = as_tensor(picture(0).resize((8, 8)).point(lambda value: 255), 8)
    white = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(pixels, white[:, None, None].expand(3, 8, 8))


# ---- weights that are not there --------------------------------------------------------------------------------------


def test_absent_weights_are_one_line_with_the_ways_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "hub_answers", lambda: False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError) as caught:
        TransformersDetector(weights="IDEA-Research/no-such-model")
    for words in ("cannot be reached", "detector.weights=PATH", "detector=file", "detector=components"):
        assert words in str(caught.value)
    with pytest.raises(UserError, match="no such file or folder"):
        TransformersDetector(weights=str(tmp_path / "absent.pth"))


def test_a_folder_without_tokenizer(folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(folder / name, bare / name)
    with pytest.raises(UserError, match=r"holds no tokenizer.*detector\.tokenizer=FOLDER"):
        TransformersDetector(weights=str(bare))


def test_a_folder_without_weights(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="do not load"):
        TransformersDetector(weights=str(write_tokenizer(tmp_path)), short_side=64).queries(pictures(1), CAPTIONS[:1])


def test_a_file_of_another_model(folder: Path, tmp_path: Path) -> None:
    torch.save({"model": {"conv.weight": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"no key 'transformer\.level_embed'"):
        read_original(tmp_path / "other.pth")


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from anomaly_vlm.detectors import groundingdino_port

    monkeypatch.setattr(groundingdino_port, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"install the extra 'groundingdino', or use detector=transformers"):
        GroundingDinoDetector(weights="any.pth")


# ---- the original code -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `.pth` file of the original code with random weights: Swin-T, 2 + 2 layers, 20 queries; its tokenizer beside it."""
    place = write_tokenizer(tmp_path_factory.mktemp("original"))
    text = {
        "vocab_size": SIZE,
        "hidden_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 64,
    }
    facts: dict[str, Any] = {"swin": {"embed_dim": 96}, "text": text, "d_model": 256, "num_queries": 20}
    facts |= {"encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 256, "decoder_ffn_dim": 256}
    facts |= {"encoder_attention_heads": 8, "num_feature_levels": 4}
    with replaced_parts(text):
        from groundingdino.models import build_model
        from groundingdino.util.slconfig import SLConfig

        torch.manual_seed(0)
        model = build_model(SLConfig(package_config(facts, str(place))))
    for name, parameter in model.named_parameters():
        if "bbox_embed" in name and name.endswith("layers.2.weight"):
            torch.nn.init.normal_(parameter, std=0.05)  # they start at zero
    torch.save({"model": {f"module.{key}": value for key, value in model.state_dict().items()}}, place / "weights.pth")
    return place


def load(kind: type[GroundingDetector], place: Path, **options: Any) -> GroundingDetector:
    return kind(weights=str(place / "weights.pth"), tokenizer=str(place), short_side=128, batch_size=4, **options)


@ORIGINAL
def test_both_backends_say_the_same(original: Path) -> None:
    images = [Picture(f"{i}.png", picture(i, 160 if i < 2 else 128, 128)) for i in range(3)]
    theirs = load(GroundingDinoDetector, original).queries(images, CAPTIONS)
    ours = load(TransformersDetector, original).queries(images, CAPTIONS)
    for one, other in zip(theirs, ours, strict=True):
        same(one, other)


@ORIGINAL
def test_the_original_code_runs_mixed_captions_apart(original: Path) -> None:
    detector = load(GroundingDinoDetector, original)
    images = [Picture(f"{i}.png", picture(i, 128, 128)) for i in range(3)]
    for i, answer in enumerate(detector.queries(images, CAPTIONS)):
        same(answer, detector.queries([images[i]], [CAPTIONS[i]])[0], probs=1e-5)


@ORIGINAL
def test_every_key_is_mapped(original: Path) -> None:
    state = read_original(original / "weights.pth")
    facts = sizes(state)
    assert facts["swin"] == {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7}
    assert (facts["encoder_layers"], facts["decoder_layers"], facts["num_queries"]) == (2, 2, 20)
    own = from_original(state, "weights.pth").state_dict()
    new = converted(state, own, "weights.pth")
    assert {key for key in own if key not in new} == {
        f"model.backbone.conv_encoder.model.swin.layernorm.{kind}" for kind in ("weight", "bias")
    }
    short = {key: value for key, value in state.items() if "ref_point_head" not in key}
    with pytest.raises(UserError, match=r"missing model\.decoder\.reference_points_head"):
        converted(short, own, "weights.pth")
    with pytest.raises(UserError, match="surplus mystery"):
        converted({**state, "mystery": torch.zeros(1)}, own, "weights.pth")


@ORIGINAL
def test_older_names_of_the_swin_part(original: Path) -> None:
    """transformers before 5 names it otherwise; the model's own keys decide."""
    state = read_original(original / "weights.pth")
    own = from_original(state, "weights.pth").state_dict()
    older: dict[str, Tensor] = {}
    for key, value in own.items():
        if "conv_encoder" in key:
            for pattern, name in OLDER_SWIN:
                key = re.sub(pattern, name, key, count=1)
        older[key] = value
    found = converted(state, older, "weights.pth")
    block = "model.backbone.conv_encoder.model.encoder.layers.0.blocks.0"
    for name in ("attention.self.query.weight", "attention.output.dense.bias", "intermediate.dense.weight"):
        assert f"{block}.{name}" in found
    assert f"{block}.attention.self.relative_position_bias_table" in found
