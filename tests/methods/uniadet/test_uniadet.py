"""UniADet's pieces: levels, directions, scores, references, towers."""

from __future__ import annotations

import pytest
import torch

from anomaly_vlm.backbone import load_vit
from anomaly_vlm.errors import UserError
from anomaly_vlm.losses import build_terms
from anomaly_vlm.methods.uniadet import UniADet
from tests.support.conf import loss_conf
from tests.support.few_shot import make_batch, make_references
from tests.support.tiny import tiny_clip


@pytest.fixture(scope="module")
def clip():
    return tiny_clip(layers=8)


def build(backbone, **options) -> UniADet:
    return UniADet(backbone, losses=build_terms(loss_conf("uniadet")), **options).eval()


def images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def training_batch():
    batch = make_batch(images(4), "gear")
    batch.label = torch.tensor([0, 1, 0, 1])
    batch.mask = torch.zeros(4, 32, 32, dtype=torch.uint8)
    batch.mask[1::2, 8:20, 8:20] = 1
    return batch


def test_levels_stand_at_the_papers_shares_of_the_depth(clip) -> None:
    assert build(clip).layers == (4, 5, 6, 7, 8)
    assert build(tiny_clip(layers=12)).layers == (6, 8, 9, 11, 12)
    assert build(tiny_clip(layers=24)).layers == (12, 15, 18, 21, 24)


def test_it_learns_its_directions_and_nothing_else(clip) -> None:
    method = build(clip)
    assert sum(p.numel() for p in method.learnable().values()) == 4 * 5 * clip.embed_dim
    assert set(method.state_dict()) == set(method.learnable())
    method.total_loss(method.losses(training_batch())).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.learnable().values())
    assert not any(p.requires_grad for p in clip.parameters())
    same, other = build(clip), build(clip, seed=1)
    assert torch.equal(same.cls_weights["layer_4"], method.cls_weights["layer_4"])
    assert not torch.equal(other.cls_weights["layer_4"], method.cls_weights["layer_4"])


def test_lengths_of_directions_mean_nothing_and_swapped_rows_the_opposite(clip) -> None:
    method, batch = build(clip), make_batch(images(2), "gear")
    before = method.predict(batch)
    with torch.no_grad():
        method.seg_weights["layer_5"].mul_(3.0)
    torch.testing.assert_close(method.predict(batch).map, before.map)
    with torch.no_grad():
        for weights in (*method.cls_weights.values(), *method.seg_weights.values()):
            weights.copy_(weights.flip(0))
    torch.testing.assert_close(method.predict(batch).map, 1 - before.map)


def test_loss_weights_do_nothing_under_adam(clip) -> None:
    found = []
    for cls_weight, map_weight in ((1.0, 1.0), (0.1, 10.0)):
        conf = {name: {**term, "weight": map_weight} for name, term in loss_conf("uniadet").items()}
        conf["ce"]["weight"] = cls_weight
        method = UniADet(clip, losses=build_terms(conf))
        optimizer = torch.optim.AdamW(method.parameter_groups(), lr=1e-3)
        method.total_loss(method.losses(training_batch())).backward()
        optimizer.step()
        found.append(torch.cat([p.detach().flatten() for p in method.learnable().values()]))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_losses_at_another_size(clip) -> None:
    batch = training_batch()
    whole, small = build(clip).losses(batch), build(clip, loss_size=16).losses(batch)
    assert torch.equal(whole["ce"], small["ce"]) and not torch.equal(whole["dice"], small["dice"])
    assert torch.equal(build(clip, loss_size=32).losses(batch)["dice"], whole["dice"])


def test_image_scores(clip) -> None:
    batch = make_batch(images(2), "gear")
    scores = {name: build(clip, image_score=name, map_weight=0.0).predict(batch).score for name in ("layers", "final")}
    by_class = build(clip, image_score="class").predict(batch).score
    assert all(torch.allclose(score, by_class) for score in scores.values())
    assert not torch.allclose(build(clip).predict(batch).score, build(clip, image_score="final").predict(batch).score)


def test_references_join_the_map(clip) -> None:
    method, references = build(clip, few_shot_weight=0.25), images(2)
    zero_shot = method.predict(make_batch(references, "gear")).map
    method.fit_references([make_references(references, "gear"), make_references(images(1, seed=8), "nut")])
    torch.testing.assert_close(
        method.predict(make_batch(references, "gear")).map, 0.75 * zero_shot, rtol=1e-4, atol=1e-5
    )
    mixed = method.predict(make_batch(references, ["gear", "nut"])).map
    torch.testing.assert_close(mixed[1:], method.predict(make_batch(references[1:], "nut")).map)
    without = build(clip, few_shot_weight=0.0, image_score="final")
    alone = without.predict(make_batch(references, "gear")).score
    without.fit_references([make_references(references, "gear")])
    torch.testing.assert_close(without.predict(make_batch(references, "gear")).score, alone)


@pytest.mark.parametrize("name", ["vit_small_patch14_reg4_dinov2", "vit_base_patch16_siglip_224"])
def test_towers_without_texts(name: str) -> None:
    tower = load_vit(
        name,
        random_seed=0,
        image_size=64 - 64 % (14 if "14" in name else 16),
        sizes={
            "depth": 2,
            "embed_dim": 32,
            "num_heads": 2,
        },
    )
    method = build(tower, layers=[0, 1, 2])
    assert method.cls_weights["layer_2"].shape == (2, 32)
    assert method(torch.rand(2, 3, 40, 50)).map.shape == (2, 40, 50)
    with pytest.raises(UserError, match=rf"method.space is joint: {name} has no projection"):
        build(tower, space="joint")


def test_spaces_and_taps_of_a_clip(clip) -> None:
    widths = {
        options: build(clip, **dict([options])).cls_weights["layer_8"].shape[1]
        for options in (("space", "width"), ("tokens", "raw"))
    }
    assert set(widths.values()) == {clip.width}
    with pytest.raises(UserError, match=r"method.space is joint, where tokens are normalised and projected"):
        build(clip, space="joint", tokens="raw")
    mixed = build(clip, layers=[0, 8])
    assert (
        mixed.seg_weights["layer_0"].shape[1] == clip.width and mixed.seg_weights["layer_8"].shape[1] == clip.embed_dim
    )
