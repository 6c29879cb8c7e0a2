"""Linear heads on frozen towers: formulas by hand, losses, checkpoints, the token cache, wrong options."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from anomaly_vlm.caching.tokens import TokenCache
from anomaly_vlm.errors import UserError
from anomaly_vlm.losses import build_terms, dice_loss, focal_loss
from anomaly_vlm.methods.linear_heads import LinearHeads
from tests.backbone.test_vit import dino, sam
from tests.support.conf import loss_conf
from tests.support.few_shot import make_batch, tiny_backbone
from tests.support.road import tiny_convnext


def build(backbone=None, **options) -> LinearHeads:
    return LinearHeads(backbone or dino(), losses=build_terms(loss_conf("linear_heads")), **options)


def batch_of(side: int = 56, seed: int = 0):
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(seed))
    mask = torch.zeros(2, side, side, dtype=torch.uint8)
    mask[1, 10:30, 5:25] = 1
    return replace(make_batch(images, "gear"), mask=mask, label=torch.tensor([0, 1]))


@pytest.mark.parametrize("backbone", [dino, sam, tiny_backbone])
def test_maps_and_scores_by_hand(backbone):
    method = build(backbone(), sigma=0)
    side = method.backbone.image_size
    batch, expected = batch_of(side), torch.zeros(2, side, side)
    patches = method.backbone.encode_image(batch.image, layers=method.layers).patches
    rows = side // method.backbone.patch_size
    for head, layer in zip(method.heads, patches, strict=True):
        centred = layer - layer.mean(dim=-1, keepdim=True)
        normed = centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()
        logits = (normed @ head.weight.T + head.bias).transpose(1, 2).view(2, 2, rows, rows)
        large = F.interpolate(logits, size=(side, side), mode="bilinear", align_corners=False)
        expected += (large[:, 1] - large[:, 0]).sigmoid() / len(method.heads)
    found = method.predict(batch)
    torch.testing.assert_close(found.map, expected)
    torch.testing.assert_close(found.score, expected.flatten(1).amax(dim=1))


def test_prototypes_compare_by_cosine():
    method = build(head="prototypes", embed_dim=6, temperature=0.1, layers=[2], sigma=0)
    assert method.heads[0].weight.shape == (6, 32) and method.prototypes.shape == (2, 6)
    batch = batch_of()
    (layer,) = method.backbone.encode_image(batch.image, layers=[2]).patches
    projected = method.heads[0](F.layer_norm(layer, (32,)))
    logits = F.cosine_similarity(projected[:, :, None], method.prototypes, dim=-1) / 0.1
    large = F.interpolate(logits.transpose(1, 2).view(2, 2, 4, 4), size=(56, 56), mode="bilinear", align_corners=False)
    torch.testing.assert_close(method.predict(batch).map, large.softmax(dim=1)[:, 1])


def test_the_score_of_the_hottest_hundredth():
    batch = batch_of()
    found = build(image_score="mean_top1pct").predict(batch)
    hottest = found.map.flatten(1).sort(dim=1, descending=True).values[:, : 56 * 56 // 100]
    torch.testing.assert_close(found.score, hottest.mean(dim=1))
    assert (build().predict(batch).score > found.score).all()


def test_losses_are_focal_and_both_dices_of_every_layer():
    method, batch = build(layers=[1, 4]), batch_of()
    values, mask = method.losses(batch), batch.mask.float()
    maps = method.layer_maps(batch, (56, 56))
    focal = sum(focal_loss(m, mask).mean() for m in maps)
    dice = sum((dice_loss(m, mask, over="image") + dice_loss(1 - m, 1 - mask, over="image")).mean() for m in maps)
    torch.testing.assert_close(values["focal"], focal)
    torch.testing.assert_close(values["dice"], dice)


@pytest.mark.parametrize("head", ["linear2", "prototypes"])
def test_it_learns_with_the_heads_alone(head):
    method, batch = build(head=head, embed_dim=8), batch_of()
    learned = method.learnable()
    assert {name.split(".")[0] for name in learned} == ({"heads"} | ({"prototypes"} if head == "prototypes" else set()))
    before = {key: value.clone() for key, value in method.backbone.state_dict().items()}
    optimizer = torch.optim.Adam(learned.values(), lr=0.01)
    totals = []
    for _ in range(20):
        optimizer.zero_grad()
        total = method.total_loss(method.losses(batch))
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < 0.9 * totals[0]
    assert all(torch.equal(value, before[key]) for key, value in method.backbone.state_dict().items())


def test_counts_of_the_published_sizes():
    """DINOv2 ViT-S/14: 4 x (384 x 2 + 2); the first weights depend on the seed alone."""
    method = build(dino(sizes={"depth": 4, "embed_dim": 384, "num_heads": 6}))
    assert sum(p.numel() for p in method.learnable().values()) == 3080
    assert sorted(method.learnable()) == sorted(f"heads.{i}.{kind}" for i in range(4) for kind in ("weight", "bias"))
    assert torch.equal(build(seed=3).heads[0].weight, build(seed=3).heads[0].weight)
    assert not torch.equal(build(seed=3).heads[0].weight, build(seed=4).heads[0].weight)


def test_tokens_from_the_cache_give_the_same_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    method, batch = build(), replace(batch_of(), key=["a", "b"])
    plain = method.predict(batch).map
    method.token_cache = TokenCache({"weights": method.backbone.fingerprint()}, folder=tmp_path)
    torch.testing.assert_close(method.predict(batch).map, plain)
    cached = replace(batch, tokens=[method.token_cache.get(key) for key in batch.key])
    monkeypatch.setattr(type(method.backbone), "encode_image", lambda *_, **__: pytest.fail("computed again"))
    torch.testing.assert_close(method.predict(cached).map, plain)


def test_tokens_that_are_encoded_ahead_give_the_same_maps(monkeypatch: pytest.MonkeyPatch):
    method, batch = build(), replace(batch_of(), key=["a", "b"])
    plain = method.predict(batch).map
    method.token_cache = TokenCache({}, memory_bytes=10**7)
    encode = method.encode_frozen
    method.encode_ahead(batch)
    monkeypatch.setattr(method, "encode_frozen", lambda *_: pytest.fail("encoded twice"))
    assert batch.tokens is not None and len(batch.unencoded) == 0 and batch.size == (56, 56)
    method.encode_ahead(batch)
    torch.testing.assert_close(method.predict(batch).map, plain)
    half = replace(batch_of(seed=1), key=["a", "c"])
    half.tokens, half.unencoded = [method.token_cache.get("a"), None], half.unencoded[1:]
    monkeypatch.setattr(method, "encode_frozen", encode)
    method.encode_ahead(half)
    both = torch.stack([batch_of().image[0], batch_of(seed=1).image[1]])
    torch.testing.assert_close(method.predict(half).map, build().predict(replace(batch_of(), unencoded=both)).map)


def test_a_large_tower_is_not_asked_ahead(monkeypatch: pytest.MonkeyPatch):
    method, batch = build(), batch_of()
    monkeypatch.setattr("anomaly_vlm.methods.base.method.LARGE", 1000)
    method.encode_ahead(batch)
    assert batch.tokens is None and len(batch.unencoded) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "mlp"}, "method.head 'mlp'"),
        ({"image_score": "mean"}, "method.image_score 'mean'"),
        ({"layers": [9]}, "has vision blocks 1 to 4, not 9"),
        ({"temperature": 0}, "method.temperature is 0: give a finite number above 0"),
        ({"embed_dim": 0}, "method.embed_dim is 0"),
        ({"backbone": tiny_convnext()}, "runs on a ViTBackbone or ClipBackbone, not on backbone tiny_convnext"),
    ],
)
def test_wrong_options_are_one_line(options, message):
    with pytest.raises(UserError, match=message):
        build(**options)
