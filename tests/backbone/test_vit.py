"""Vision towers without texts: what is tapped, any size, published files, one line for what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from anomaly_vlm.backbone import load_vit, timm_weights
from anomaly_vlm.errors import UserError

DINO = {"depth": 4, "embed_dim": 32, "num_heads": 2}
SAM = {**DINO, "global_attn_indexes": (1, 3), "window_size": 2, "img_size": 64}


def dino(**options):
    return load_vit("vit_small_patch14_dinov2", **{"random_seed": 0, "image_size": 56, "sizes": DINO, **options})


def sam(**options):
    return load_vit("samvit_base_patch16", **{"random_seed": 0, "image_size": 64, "sizes": SAM, **options})


def images(side: int) -> torch.Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(side))


def test_patches_are_raw_block_outputs_without_class_and_register_tokens():
    tower = dino()
    x = tower.visual._pos_embed(tower.visual.patch_embed(images(56)))
    by_hand = []
    for block in tower.visual.blocks:
        x = block(x)
        by_hand.append(x[:, 1:])
    found = tower.encode_image(images(56), layers=[4, 1])
    assert found.grid == (4, 4) and len(found.patches) == 2
    torch.testing.assert_close(found.patches[0], by_hand[3])
    torch.testing.assert_close(found.patches[1], by_hand[0])
    with_registers = load_vit("vit_small_patch14_reg4_dinov2", random_seed=0, image_size=56, sizes=DINO)
    assert with_registers.encode_image(images(56), layers=[2]).patches[0].shape == (2, 16, 32)


def test_sam_gives_its_blocks_outputs_before_the_neck():
    tower = sam()
    x = tower.visual.patch_embed(images(64)) + tower.visual.pos_embed
    for block in tower.visual.blocks[:2]:
        x = block(x)
    (found,) = tower.encode_image(images(64), layers=[2]).patches
    torch.testing.assert_close(found, x.flatten(1, 2))


@pytest.mark.parametrize(("tower", "side", "grid"), [(dino, 70, (5, 5)), (sam, 96, (6, 6))])
def test_other_sizes_than_the_weights_own(tower, side, grid):
    found = tower().encode_image(images(side), layers=[1, 4])
    assert found.grid == grid and all(p.shape == (2, grid[0] * grid[1], 32) for p in found.patches)


def test_facts_and_frozenness():
    tower = sam()
    assert (tower.patch_size, tower.width, tower.num_layers, tower.layers) == (16, 32, 4, (1, 2, 3, 4))
    assert tower.is_random and tower.describe() == "samvit_base_patch16, random weights (seed 0)"
    assert tower.mean == (0.485, 0.456, 0.406) and not any(p.requires_grad for p in tower.parameters())
    assert not tower.train().training
    assert dino().fingerprint() == dino().fingerprint() != dino(random_seed=1).fingerprint()


def test_published_files_are_read_as_they_are(tmp_path: Path):
    own = sam()
    published = {f"image_encoder.{k.replace('mlp.fc', 'mlp.lin')}": v for k, v in own.visual.state_dict().items()}
    published["mask_decoder.iou_token.weight"] = torch.zeros(1, 4)
    torch.save(published, tmp_path / "sam_vit.pth")
    again = sam(random_seed=None, weights=str(tmp_path / "sam_vit.pth"))
    assert again.fingerprint() == own.fingerprint() and again.weights == "file sam_vit.pth" and not again.is_random
    published = {**dino().visual.state_dict(), "mask_token": torch.zeros(1, 32)}
    torch.save(published, tmp_path / "dinov2.pth")
    again = dino(random_seed=None, weights=str(tmp_path / "dinov2.pth"), pretrained="lvd142m")
    assert again.fingerprint() == dino().fingerprint() and again.weights == "lvd142m from file dinov2.pth"


def test_timms_own_layout_is_read(tmp_path: Path):
    save_file(dino().visual.state_dict(), tmp_path / "own.safetensors")
    again = dino(random_seed=None, weights=str(tmp_path / "own.safetensors"), origin="a friend")
    assert again.fingerprint() == dino().fingerprint() and again.weights == "a friend"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"name": "vit_smal_patch14_dinov2"}, "timm architecture 'vit_smal_patch14_dinov2'"),
        ({"pretrained": "lvd142m"}, "give one"),
        ({"random_seed": None}, "names no weights"),
        ({"random_seed": None, "pretrained": "lvd"}, "pretrained tag of vit_small_patch14_dinov2 'lvd'"),
        ({"image_size": 57}, "positive multiple of its patch size 14, such as 56"),
        ({"layers": [5]}, "has vision blocks 1 to 4, not 5"),
        ({"sizes": {"embed_dim": 33, "num_heads": 2}}, "cannot be built with"),
        ({"name": "resnet18", "sizes": None}, "resnet18' cannot be built with|is no plain ViT"),
        ({"random_seed": None, "weights": "absent.pth"}, "'absent.pth' does not exist"),
    ],
)
def test_wrong_choices_are_rejected(options, told):
    with pytest.raises(UserError, match=told):
        load_vit(**{"name": "vit_small_patch14_dinov2", "random_seed": 0, "image_size": 56, "sizes": DINO, **options})


def test_a_file_of_another_layout_is_rejected(tmp_path: Path):
    save_file(dino(sizes={**DINO, "depth": 3}).visual.state_dict(), tmp_path / "shallow.safetensors")
    with pytest.raises(UserError, match=r"does not fit the architecture: missing blocks\.3"):
        dino(random_seed=None, weights=str(tmp_path / "shallow.safetensors"))


def test_absent_weights_are_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(timm_weights, "hub_answers", lambda: False)
    monkeypatch.setattr(timm_weights, "hub_has", lambda repository, files: False)
    with pytest.raises(UserError, match=r"'samvit_large_patch16\.sa1b' are not in the local cache.*backbone\.weights="):
        load_vit("samvit_large_patch16", pretrained="sa1b", image_size=1024)


@pytest.mark.parametrize(
    ("name", "has_class"),
    [
        ("vit_small_patch14_dinov2", True),
        ("vit_small_patch14_reg4_dinov2", True),
        ("vit_small_patch16_dinov3", True),
        ("vit_base_patch16_siglip_224", False),
        ("samvit_base_patch16", False),
    ],
)
def test_class_tokens_and_the_patch_embedding(name, has_class):
    sizes = SAM if name.startswith("sam") else DINO
    patch = 14 if "patch14" in name else 16
    tower = load_vit(name, random_seed=0, image_size=4 * patch, sizes=sizes)
    found = tower.encode_patches(images(4 * patch), layers=[0, 2])
    torch.testing.assert_close(found.patches[0], tower.visual.patch_embed(images(4 * patch)).flatten(1, 2))
    assert [cls.shape for cls in found.cls] == [(2, 32)] * 2
    assert torch.equal(found.cls[1], found.patches[1].mean(dim=1)) != has_class
    if has_class:
        whole = tower.visual.forward_features(images(4 * patch))
        (last,) = tower.encode_patches(images(4 * patch), layers=[4], tap="norm").cls
        torch.testing.assert_close(last, whole[:, 0])
    with pytest.raises(UserError, match="has no projection: choose tap=raw"):
        tower.encode_patches(images(4 * patch), layers=[2], tap="projected")


def test_positions_by_dinov2s_own_rule():
    timm_rule, own_rule = dino(), dino(pos_resize="dinov2")
    first, second = (tower.encode_image(images(70), layers=[2]).patches[0] for tower in (timm_rule, own_rule))
    assert not torch.allclose(first, second) and (first - second).abs().max() < 1
    assert own_rule.cache_key() == {"positions": "dinov2"} and timm_rule.cache_key() == {}
    with pytest.raises(
        UserError, match=r"backbone.pos_resize is dinov2: samvit_base_patch16 has no table of positions"
    ):
        sam(pos_resize="dinov2")
