"""`HybridStem`: timm's features, a tower that is driven like any other, embeddings that are kept."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from anomaly_vlm.backbone import ClipBackbone, HybridStem, Prompts, load_backbone
from anomaly_vlm.errors import UserError
from tests.support.tiny import tiny_architecture

TINY = tiny_architecture(image_size=64, patch_size=16, layers=3)
STEM = {"name": "tf_efficientnet_lite0", "stages": 5}


@pytest.fixture(scope="module")
def hybrid() -> ClipBackbone:
    return load_backbone("hybrid", architecture=TINY, stem=STEM, random_seed=0)


def _shared(stem: HybridStem, network: nn.Module) -> dict[str, torch.Tensor]:
    names = network.state_dict().keys()
    return {key: value for key, value in stem.state_dict().items() if key in names}


@pytest.mark.parametrize(("stages", "place", "stride"), [(5, 3, 16), (3, 2, 8)])
def test_its_features_are_timms(stages: int, place: int, stride: int) -> None:
    torch.manual_seed(0)
    stem = HybridStem("tf_efficientnet_lite0", stages=stages, width=8).eval()
    network = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=[place]).eval()
    network.load_state_dict({**network.state_dict(), **_shared(stem, network)})
    images = torch.randn(
        2, 3, 64, 96
    ).double()  # memory order changes the rounding of float32, not that of the comparison
    stem, network = stem.double(), network.double()
    with torch.no_grad():
        wanted = network(images)[0]
        torch.testing.assert_close(stem.features(images), wanted, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(stem(images), stem.project(wanted), rtol=1e-9, atol=1e-9)
    assert stem.kernel_size == (stride, stride) and stem.out_channels == 8
    assert wanted.shape == (2, stem.channels, 64 // stride, 96 // stride)


def _batch_norms(stem: HybridStem, images: torch.Tensor) -> int:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        stem(images)
    return sum(event.count for event in found.key_averages() if event.key == "aten::batch_norm")


def test_a_frozen_stem_is_folded() -> None:
    torch.manual_seed(0)
    stem = HybridStem("tf_efficientnet_lite0", stages=5, width=8).eval().double().requires_grad_(False)
    for name, buffer in stem.named_buffers():
        if buffer.is_floating_point():
            nn.init.uniform_(buffer, 0.5, 1.5) if "var" in name else nn.init.uniform_(buffer, -0.1, 0.1)
    images = torch.randn(2, 3, 64, 96).double()
    network = nn.Sequential(stem.normalise, stem.conv_stem, stem.bn1, stem.blocks, stem.project)
    keys = list(stem.state_dict())
    torch.testing.assert_close(stem(images), network(images), rtol=1e-9, atol=1e-9)
    assert _batch_norms(stem, images) == 0 and list(stem.state_dict()) == keys

    stem.bn1.weight.mul_(1.5)  # a change in place, new weights and another type are all noticed
    torch.testing.assert_close(stem(images), network(images), rtol=1e-9, atol=1e-9)
    stem.load_state_dict({key: value * 0.9 for key, value in stem.state_dict().items()})
    torch.testing.assert_close(stem(images), network(images), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(stem.float()(images.float()), network(images.float()), rtol=1e-3, atol=1e-4)
    stem.double()

    stem.requires_grad_(True)
    stem(images).sum().backward()
    assert stem.bn1.weight.grad is not None and _batch_norms(stem, images) > 0
    assert _batch_norms(stem.requires_grad_(False).train(), images) > 0


def test_a_folded_stem_takes_sides_that_its_strides_do_not_divide() -> None:
    stem = HybridStem("tf_efficientnet_lite0", stages=5, width=8).eval().double().requires_grad_(False)
    network = nn.Sequential(stem.normalise, stem.conv_stem, stem.bn1, stem.blocks, stem.project)
    for side in (64, 70, 77):
        images = torch.randn(1, 3, side, side).double()
        torch.testing.assert_close(stem(images), network(images), rtol=1e-9, atol=1e-9)


def test_a_normalised_image_reaches_the_network_in_its_own_units() -> None:
    stem = HybridStem("tf_efficientnet_lite0", stages=1, width=8).eval()
    nn.init.constant_(stem.normalise.weight, 2.0)
    nn.init.constant_(stem.normalise.bias, -0.5)
    plain = HybridStem("tf_efficientnet_lite0", stages=1, width=8).eval()
    same = {"normalise.weight": torch.ones(3, 1, 1, 1), "normalise.bias": torch.zeros(3)}
    plain.load_state_dict({**stem.state_dict(), **same})
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(stem(images), plain(2 * images - 0.5))


def test_the_tower_behind_it_is_any_other(hybrid: ClipBackbone) -> None:
    assert hybrid.has_stem and not load_backbone("plain", architecture=TINY, random_seed=0).has_stem
    assert (hybrid.patch_size, hybrid.width, hybrid.image_size) == (16, 32, 64)
    images = torch.randn(2, 3, 64, 48)
    whole = hybrid.encode_image(images, layers=[1, 3])
    assert whole.grid == (4, 3) and [tuple(p.shape) for p in whole.patches] == [(2, 12, 32)] * 2
    with torch.no_grad():
        model_output = hybrid.encode_image(torch.randn(2, 3, 64, 64)).cls
    assert model_output.shape == (2, 16)
    assert torch.isfinite(hybrid.encode_image(images, layers=[3], vv_from=1).patches[0]).all()
    windows = torch.tensor([[0, 1, 2], [0, 4, 5]])
    assert hybrid.encode_image(images, token_sets=windows).cls.shape == (4, 16)


def test_plain_open_clip_computes_the_same(hybrid: ClipBackbone) -> None:
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(hybrid.visual(images), hybrid.encode_image(images).cls, rtol=1e-4, atol=1e-5)


def test_a_kept_embedding_gives_the_same_tokens(hybrid: ClipBackbone) -> None:
    images = torch.randn(2, 3, 64, 64)
    prompts = Prompts([torch.randn(2, 32)])
    fresh = hybrid.encode_image(images, layers=[2], prompts=prompts)
    embedded, grid = hybrid.embed_image(images)
    again = hybrid.encode_embedded(embedded, grid, layers=[2], prompts=prompts)
    assert torch.equal(fresh.cls, again.cls) and torch.equal(fresh.tokens[0], again.tokens[0])
    assert torch.equal(hybrid.embed_map(hybrid.visual.conv1(images))[0], embedded)


@pytest.mark.parametrize(
    ("stem", "message"),
    [
        ({"name": "tf_efficientnet_lite0"}, "give name and stages"),
        ({"name": "tf_efficientnet_lite0", "stages": 9}, "stages 1 to 7"),
        ({"name": "tf_efficientnet_lite0", "stages": 4}, "features behind stages"),
        ({"name": "tf_efficientnet_lite0", "stages": 3}, "has stride 8: set vision_cfg.patch_size"),
        ({"name": "no_such_net", "stages": 3}, r"unknown backbone\.stem\.name"),
        ({"name": "vit_tiny_patch16_224", "stages": 3}, "no EfficientNet of timm"),
    ],
)
def test_wrong_stems_are_refused(stem: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_backbone("hybrid", architecture=TINY, stem=stem, random_seed=0)


def test_downloaded_weights_have_no_stem() -> None:
    with pytest.raises(UserError, match=r"leave backbone\.stem out"):
        load_backbone("ViT-B-16", pretrained="openai", stem=STEM)
