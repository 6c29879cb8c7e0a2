"""Image trunks of timm: stages, weights of each kind, messages."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from anomaly_vlm.backbone import FrozenTower, TrunkBackbone, load_trunk, timm_weights
from anomaly_vlm.errors import UserError

NAME = "test_resnet"  # timm's own, of test size


@pytest.fixture(scope="module")
def backbone() -> TrunkBackbone:
    return load_trunk(NAME, random_seed=0, image_size=64)


def test_stages_at_strides_4_8_16(backbone: TrunkBackbone) -> None:
    maps = backbone.encode_image(torch.zeros(2, 3, 64, 96)).maps
    assert [tuple(m.shape[-2:]) for m in maps] == [(16, 24), (8, 12), (4, 6)]
    assert isinstance(backbone, FrozenTower) and not any(p.requires_grad for p in backbone.parameters())
    assert not backbone.train().training, "batch norm keeps its statistics"
    assert backbone.is_random and backbone.describe() == "test_resnet, random weights (seed 0)"


def test_a_stage_is_the_model_s_own(backbone: TrunkBackbone) -> None:
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    net = backbone.visual
    x = net.maxpool(net.act1(net.bn1(net.conv1(images))))
    for layer, seen in zip((net.layer1, net.layer2, net.layer3), backbone.encode_image(images).maps, strict=True):
        x = layer(x)
        torch.testing.assert_close(seen, x)


def test_weights_of_a_file(backbone: TrunkBackbone, tmp_path: Path) -> None:
    save_file(backbone.visual.state_dict(), tmp_path / "own.safetensors")
    again = load_trunk(NAME, weights=str(tmp_path / "own.safetensors"), image_size=64)
    assert again.fingerprint() == backbone.fingerprint() != load_trunk(NAME, random_seed=1).fingerprint()
    assert not again.is_random and again.weights == "file own.safetensors"
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(UserError, match=r"does not fit the architecture: missing conv1"):
        load_trunk(NAME, weights=str(tmp_path / "foreign.safetensors"))


def test_mistakes_are_rejected(monkeypatch: pytest.MonkeyPatch, backbone: TrunkBackbone) -> None:
    with pytest.raises(UserError, match=r"unknown timm architecture 'wide_resnet50'.*did you mean wide_resnet50_2"):
        load_trunk("wide_resnet50", random_seed=0)
    with pytest.raises(UserError, match=r"names no weights: set backbone\.pretrained"):
        load_trunk(NAME)
    with pytest.raises(UserError, match=r"backbone\.layers is \[1\]"):
        load_trunk(NAME, random_seed=0, layers=[1])  # type: ignore[arg-type]
    with pytest.raises(UserError, match="give one"):
        load_trunk(NAME, random_seed=0, weights="x")
    with pytest.raises(UserError, match="unknown pretrained tag of wide_resnet50_2 'racm': choose one of racm_in1k"):
        load_trunk("wide_resnet50_2", pretrained="racm")
    with pytest.raises(UserError, match=r"image_size 70: .* multiple of its stride 16, such as 64"):
        backbone.checked_size(70)
    with pytest.raises(UserError, match="not at 4, 8 and 16: choose a ResNet"):
        TrunkBackbone(timm.create_model("test_vit"), name="test_vit", weights="", mean=[0] * 3, std=[1] * 3)
    monkeypatch.setattr(timm_weights, "hub_answers", lambda: False)
    monkeypatch.setattr(timm_weights, "hub_has", lambda repository, files: False)
    with pytest.raises(UserError, match=r"'wide_resnet50_2\.racm_in1k' are not in the local cache.*backbone\.weights="):
        load_trunk("wide_resnet50_2", pretrained="racm_in1k")
