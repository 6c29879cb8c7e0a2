"""The ConvNeXt backbone: stages, padding, CLIP's own head, the shared text half, refusals."""

from __future__ import annotations

import pytest
import torch

from anomaly_vlm.backbone import ClipBackbone, ConvNextBackbone, load_backbone
from anomaly_vlm.errors import UserError
from tests.support.road import any_images, tiny_convnext


def test_stages_are_the_trunk_step_by_step() -> None:
    backbone, images = tiny_convnext(), any_images(64, 96, count=2)
    trunk, x, expected = backbone.visual.trunk, images, []
    with torch.no_grad():
        x = trunk.stem(x)
        for stage in trunk.stages:
            expected.append(x := stage(x))
        pyramid = backbone.encode_image(images)
    assert [tuple(part.shape) for part in pyramid.maps] == [
        (2, c, 64 // s, 96 // s) for c, s in zip(backbone.widths, (4, 8, 16, 32), strict=True)
    ]
    assert all(torch.equal(a, b) for a, b in zip(pyramid.maps, expected, strict=True))
    assert pyramid.dense is pyramid.maps[-1]


def test_one_pooled_vector_goes_open_clips_own_way() -> None:
    """Mean of the dense map through `project` is what open_clip makes of the whole image."""
    backbone, images = tiny_convnext(), any_images(96, 96)
    with torch.no_grad():
        pooled = backbone.encode_image(images).dense.mean(dim=(2, 3))
        torch.testing.assert_close(backbone.project(pooled), backbone.visual(images))


def test_padding() -> None:
    backbone = tiny_convnext()
    padded = backbone.pad(torch.ones(1, 3, 50, 90))
    assert padded.shape == (1, 3, 64, 96) and padded[..., 50:, :].sum() == 0 and padded[..., 90:].sum() == 0
    labels = backbone.pad(torch.zeros(1, 50, 64, dtype=torch.uint8), value=255)
    assert labels.shape == (1, 64, 64) and (labels[:, 50:] == 255).all() and labels.dtype == torch.uint8
    assert backbone.pad(padded).shape == padded.shape
    with pytest.raises(ValueError, match="image of 50x90 pixels: sides must be multiples of 32"):
        backbone.encode_image(torch.ones(1, 3, 50, 90))


def test_text_half_is_shared() -> None:
    """The same words through both classes with the same text weights."""
    convnext = tiny_convnext()
    assert isinstance(convnext, ConvNextBackbone)
    vit = load_backbone(
        "vit", random_seed=0,
        architecture={"embed_dim": 64, "quick_gelu": False,
                      "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 32, "patch_size": 8},
                      "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 4}},
    )  # fmt: skip
    assert isinstance(vit, ClipBackbone)
    vit.text.load_state_dict(convnext.text.state_dict())
    texts = ["a photo of a car.", "There is the tree in the scene"]
    with torch.no_grad():
        assert torch.equal(*(b.encode_text(b.tokenize(texts)) for b in (convnext, vit)))


def test_frozen_named_and_sized() -> None:
    backbone = tiny_convnext()
    assert not any(p.requires_grad for p in backbone.parameters()) and not backbone.train().training
    assert backbone.describe() == "tiny_convnext, random weights (seed 0)"
    assert tiny_convnext().fingerprint() == backbone.fingerprint() != tiny_convnext(random_seed=1).fingerprint()
    with pytest.raises(UserError, match=r"image_size 100: .* needs a positive multiple of its stride 32, such as 96"):
        tiny_convnext(image_size=100)
    with pytest.raises(UserError, match=r"backbone\.layers is \[1, 2\]: tiny_convnext is a ConvNeXt"):
        tiny_convnext(layers=[1, 2])


def test_other_trunks_are_refused() -> None:
    from tests.support.road import _conf

    architecture = {**_conf()["architecture"]}
    architecture["vision_cfg"] = {**architecture["vision_cfg"], "timm_model_name": "test_resnet", "timm_pool": "avg"}
    with pytest.raises(UserError, match="image tower"):
        tiny_convnext(architecture=architecture)
