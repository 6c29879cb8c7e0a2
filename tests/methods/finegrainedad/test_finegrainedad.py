"""FineGrainedAD as a part of a run: levels, regions, ablations, checkpoints, published files, options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_vlm.backbone import ClipBackbone
from anomaly_vlm.errors import UserError
from anomaly_vlm.losses import build_terms
from anomaly_vlm.methods.base.published import load_published
from anomaly_vlm.methods.finegrainedad import FineGrainedAD
from anomaly_vlm.methods.finegrainedad.levels import LevelPrompts, QueryFormer
from anomaly_vlm.methods.promptad import PromptAD
from tests.support.conf import loss_conf, method_conf
from tests.support.few_shot import make_batch, make_references, tiny_backbone

SIDE = 32
SKIPPED = ("_target_", "seed", "eval_size")  # what the run gives


@pytest.fixture(scope="module")
def tiny() -> ClipBackbone:
    return tiny_backbone()


def draw(count: int, seed: int, side: int = SIDE) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def build(backbone: ClipBackbone, **options: Any) -> FineGrainedAD:
    conf = {k: v for k, v in method_conf("finegrainedad").items() if k not in SKIPPED}
    return FineGrainedAD(
        backbone,
        losses=build_terms(loss_conf("finegrainedad")),
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
        **{**conf, **options},
    )


def remembering(backbone: ClipBackbone, *categories: str, **options: Any) -> FineGrainedAD:
    method = build(backbone, **options)
    method.fit_references(
        [make_references(draw(2, i), name, draw(2, 50 + i, 4 * SIDE)) for i, name in enumerate(categories)]
    )
    return method


def losses(method: FineGrainedAD, category: str) -> dict[str, Tensor]:
    return method.losses(make_batch(draw(2, 0), category, name=f"{category} reference"))


def learner(method: FineGrainedAD, category: str, task: str = "seg") -> LevelPrompts:
    found = method.category(category).learner(task)
    assert isinstance(found, LevelPrompts)
    return found


def test_defaults_are_the_published_codes(tiny: ClipBackbone) -> None:
    method, shipped = FineGrainedAD(tiny), build(tiny)
    assert method.region == shipped.region
    assert method.sizes == shipped.sizes
    assert (method.fusion, method.mllp, method.mlsa) == (shipped.fusion, shipped.mllp, shipped.mlsa)
    assert method.query_former is not None
    assert shipped.query_former is not None
    torch.testing.assert_close(method.query_former.state_dict(), shipped.query_former.state_dict())


def test_trains_all_parts_and_predicts(tiny: ClipBackbone) -> None:
    method = remembering(tiny, "transistor", "gear")
    for category, entities in (("transistor", 4), ("gear", 1)):
        assert learner(method, category).rescale is not None
        assert len(learner(method, category).components) == entities + 1
        method.zero_grad()
        method.total_loss(losses(method, category)).backward()
        for name, parameter in method.learnable().items():
            assert (parameter.grad is not None) == (f"@{category}." in name), name
    prediction = method.predict(make_batch(draw(3, 9), ["gear", "transistor", "gear"]))
    assert prediction.map.shape == (3, SIDE, SIDE)
    assert torch.isfinite(prediction.map).all()
    assert torch.isfinite(prediction.score).all()


def test_weights_of_groups_that_the_template_lacks_have_no_effect(tiny: ClipBackbone) -> None:
    method = remembering(tiny, "gear")
    method.total_loss(losses(method, "gear")).backward()
    weights = learner(method, "gear").weights
    assert weights is not None
    assert weights.grad is not None
    assert (weights.grad[:, 0] != 0).all()  # relation
    assert (weights.grad[:, 1:] == 0).all()


def test_without_mllp_and_mlsa_it_is_promptad(tiny: ClipBackbone) -> None:
    """Both off: PromptAD's sentences, contexts and scores, and its losses but for the margin."""
    method = remembering(tiny, "bottle", mllp=False, mlsa=False)
    other = PromptAD(tiny, losses=build_terms(loss_conf("promptad")))
    other.fit_references([make_references(draw(2, 0), "bottle")])
    other.seed = method.seed
    batch = make_batch(draw(2, 9), "bottle")
    expected, found = other.predict(batch), method.predict(batch)
    torch.testing.assert_close(found.map, expected.map)
    torch.testing.assert_close(found.score, expected.score)
    theirs = other.losses(make_batch(draw(2, 0), "bottle", name="bottle reference"))
    ours = losses(method, "bottle")
    torch.testing.assert_close(ours["v2t"], theirs["contrastive"])
    torch.testing.assert_close(ours["match"], theirs["alignment"])
    assert set(ours) == {"v2t", "triplet", "match"}


def test_ablations_change_one_thing(tiny: ClipBackbone) -> None:
    plain = remembering(tiny, "bottle", mllp=False)
    assert learner(plain, "bottle").weights is None
    assert len(learner(plain, "bottle").components) > 1
    image = remembering(tiny, "bottle", mlsa=False)
    assert learner(image, "bottle").weights is not None
    assert learner(image, "bottle").rescale is None
    assert method_features(image, "bottle").shape[0] == 1
    for method in (plain, image):
        method.total_loss(losses(method, "bottle")).backward()
        assert all(p.grad is not None for p in method.learnable().values())


def method_features(method: FineGrainedAD, category: str) -> Tensor:
    return method.text_features(method.category(category), "seg")


def test_fine_features_are_those_of_the_tiles_in_their_places(tiny: ClipBackbone) -> None:
    method, images = build(tiny), draw(2, 3, 3 * SIDE)
    fine = method.fine_features(images, SIDE).unflatten(1, (12, 12))
    tile = method.frozen_tokens(make_batch(images[:, :, SIDE : 2 * SIDE, 2 * SIDE :], "any"))["patches"].unflatten(
        1, (4, 4)
    )
    torch.testing.assert_close(fine[:, 4:8, 8:12], tile)


def test_ranked_rows_are_those_with_the_largest_mean_embedding(tiny: ClipBackbone) -> None:
    method = remembering(tiny, "screw", task="cls")
    own = learner(method, "screw", "cls")
    for name in own.groups:
        family: Any = own.families[name]
        means = own.fill(tiny, family.manual).mean(dim=(1, 2))
        count = min(len(means), 9)
        assert torch.equal(own.ranked(tiny, name, count), means.argsort(descending=True, stable=True)[:count])
    assert torch.equal(
        own.ranked(tiny, "color", 500)[:3], own.ranked(tiny, "color", 3)
    )  # few rows: from the start again


def test_query_former_is_two_attentions_to_one_key() -> None:
    former, (p, q) = QueryFormer(16, 0), torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0)).unbind()
    outputs = []
    for value, out, x in ((former.value1, former.out1, p), (former.value2, former.out2, q)):
        attention = torch.nn.MultiheadAttention(16, 8, batch_first=True)
        with torch.no_grad():
            attention.in_proj_weight[32:] = value.weight
            attention.in_proj_bias[32:] = value.bias
            attention.out_proj.load_state_dict(out.state_dict())
        outputs.append(attention(torch.randn(5, 1, 16), x[:, None], x[:, None])[0][:, 0])
    torch.testing.assert_close(former(p, q), former.fuse(torch.cat(outputs, dim=-1)))
    assert torch.equal(former(p, q), QueryFormer(16, 0)(p, q))
    assert not list(filter(lambda parameter: parameter.requires_grad, former.parameters()))


def test_token_wise_choice(tiny: ClipBackbone) -> None:
    """Each feature is scored by the texts of the family whose normal text is nearest."""
    method = build(tiny, match="normal")
    texts = F.normalize(torch.randn(3, 2, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    features = F.normalize(texts[[2, 0], 0] + 0.01, dim=-1)
    assert method.nearest_family(features, texts).tolist() == [2, 0]
    expected = torch.stack(
        [(method.factor * texts[u] @ x).softmax(dim=0)[1] for u, x in zip((2, 0), features, strict=True)]
    )
    torch.testing.assert_close(method.abnormal_prob(features, texts), expected)


def test_a_checkpoint_needs_no_references(tiny: ClipBackbone) -> None:
    method = remembering(tiny, "bottle", "gear")
    method.total_loss(losses(method, "bottle")).backward()
    method.configure_optimizers().step()
    checkpoint: dict[str, Any] = {"state_dict": method.state_dict()}
    method.on_save_checkpoint(checkpoint)
    batch = make_batch(draw(2, 7), ["gear", "bottle"])
    fresh = build(tiny)
    fresh.on_load_checkpoint(checkpoint)
    fresh.load_state_dict(checkpoint["state_dict"], strict=False)
    assert torch.equal(fresh.predict(batch).map, method.predict(batch).map)
    with pytest.raises(UserError, match="no reference image"):
        losses(fresh, "bottle")


def test_published_files(tiny: ClipBackbone, tmp_path: Path) -> None:
    unit = lambda seed, *shape: F.normalize(draw(1, seed).flatten()[: torch.Size(shape).numel()].view(shape), dim=-1)  # noqa: E731
    for i, task in enumerate(("SEG", "CLS")):
        state = {
            "feature_gallery1": unit(0, 16, tiny.width),
            "feature_gallery2": unit(1, 16, tiny.width),
            "text_features": unit(2 + i, 2, 16),
            "background_features": unit(4 + i, 2, 16),
            "entity_features_list": unit(6 + i, 4, 2, 16),
        }
        torch.save(state, tmp_path / f"{task}-Seed_111-transistor-check_point.pt")
    method = load_published(build(tiny), tmp_path)
    assert isinstance(method, FineGrainedAD)
    features = method_features(method, "transistor")
    assert torch.equal(features[:4], unit(6, 4, 2, 16))
    assert torch.equal(features[4], unit(2, 2, 16))
    assert torch.equal(features[5], unit(4, 2, 16))
    assert method.predict(make_batch(draw(1, 0), "transistor")).score.shape == (1,)
    assert not method.learnable()
    alone = load_published(build(tiny, mlsa=False), tmp_path)
    assert isinstance(alone, FineGrainedAD)
    assert torch.equal(method_features(alone, "transistor")[0], unit(2, 2, 16))
    del state["background_features"]
    torch.save(state, tmp_path / "CLS-Seed_111-transistor-check_point.pt")
    with pytest.raises(UserError, match="has no background_features"):
        load_published(build(tiny), tmp_path)


def test_options_that_change_the_numbers(tiny: ClipBackbone) -> None:
    batch = make_batch(draw(2, 3), "bottle")
    usual = remembering(tiny, "bottle").predict(batch)
    assert not torch.allclose(remembering(tiny, "bottle", match="normal").predict(batch).map, usual.map)
    assert not torch.allclose(remembering(tiny, "bottle", qformer_seed=5).predict(batch).map, usual.map)
    assert not torch.allclose(remembering(tiny, "bottle", score="mean").predict(batch).score, usual.score)
    weights = {}
    for name, region in {
        "usual": {},
        "pool": {"pool": "spatial"},
        "boost": {"boost": 0.3},
        "seed": {"seed": 1},
    }.items():
        weights[name] = learner(remembering(tiny, "bottle", region=region), "bottle").rescale
    assert not any(torch.equal(weights["usual"], weights[name]) for name in ("pool", "boost", "seed"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"match": "both"}, "method.match"),
        ({"score": "max"}, "method.score"),
        ({"region": {"pool": "max"}}, "region.pool"),
    ],
)
def test_wrong_options(tiny: ClipBackbone, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        build(tiny, **options)
