"""APRIL-GAN's pieces: sentences, maps, memories, scores over a whole category, losses, checkpoints, caches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_vlm.backbone import ClipBackbone
from anomaly_vlm.caching.tokens import TokenCache
from anomaly_vlm.data.types import Batch
from anomaly_vlm.errors import UserError
from anomaly_vlm.losses import build_terms, dice_loss, focal_loss, map_losses
from anomaly_vlm.methods.april_gan import AprilGAN
from anomaly_vlm.methods.base.published import load_published
from anomaly_vlm.runs.checks import check_values
from anomaly_vlm.runs.compose import compose
from tests.support.conf import loss_conf
from tests.support.few_shot import make_batch, make_references, tiny_backbone


@pytest.fixture(scope="module")
def backbone() -> ClipBackbone:
    return tiny_backbone()


def build(backbone: ClipBackbone, **options) -> AprilGAN:
    options = {"layers": [2, 4], "losses": build_terms(loss_conf("april_gan")), **options}
    return AprilGAN(backbone, **options).eval()


def images(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def masked(count: int = 2, seed: int = 0) -> Batch:
    batch = make_batch(images(count, seed), "gear")
    mask = torch.zeros(count, 32, 32, dtype=torch.uint8)
    mask[0, 4:20, 8:16] = 1
    return replace(batch, mask=mask, key=[f"key {i}" for i in range(count)])


def test_sentences_keep_the_name_of_the_category(backbone):
    normal, abnormal = build(backbone).sentences("metal_nut")
    assert (len(normal), len(abnormal)) == (7 * 35, 5 * 35)
    assert (
        normal[0] == "a bad photo of a metal_nut." and abnormal[-1] == "this is one metal_nut with damage in the scene."
    )


def test_a_text_feature_is_the_mean_of_unit_features(backbone):
    method = build(backbone)
    with torch.no_grad():
        for side, sentences in enumerate(method.sentences("pcb1")):
            one_by_one = torch.cat([backbone.encode_text(backbone.tokenize([text])) for text in sentences[:3]])
            torch.testing.assert_close(backbone.encode_sentences(sentences)[:3], one_by_one)
            every = F.normalize(backbone.encode_text(backbone.tokenize(sentences)), dim=-1)
            expected = F.normalize(every.mean(dim=0), dim=0)
            torch.testing.assert_close(method.text_features("pcb1")[side], expected)


def test_repeated_sentences_keep_their_places(backbone):
    rows = backbone.encode_sentences(["a gear", "a large broken gear", "a gear"])
    assert torch.equal(rows[0], rows[2]) and not torch.equal(rows[0], rows[1])


@torch.no_grad()
def test_logits_are_upsampled_before_the_softmax_and_maps_summed(backbone):
    method = build(backbone)
    batch = make_batch(images(2), ["gear", "metal_nut"])
    expected = torch.zeros(2, 32, 32)
    for row, category in enumerate(batch.category):
        tokens = backbone.encode_image(batch.image[row : row + 1], layers=[2, 4])
        for linear, patches in zip(method.projection, tokens.patches, strict=True):
            logits = 100 * F.normalize(linear(patches), dim=-1) @ method.text_features(category).T  # [1, N, 2]
            large = F.interpolate(logits.mT.unflatten(-1, (4, 4)), size=32, mode="bilinear", align_corners=True)
            expected[row] += large.softmax(dim=1)[0, 1]
    prediction = method.predict(batch)
    torch.testing.assert_close(prediction.map, expected, rtol=1e-4, atol=1e-5)
    cls = F.normalize(backbone.encode_image(batch.image).cls, dim=-1)
    probability = (100 * cls[1] @ method.text_features("metal_nut").T).softmax(dim=-1)[1]
    torch.testing.assert_close(prediction.score[1], probability, rtol=1e-4, atol=1e-5)
    assert prediction.score_components is None
    assert method.color_range == (0.0, 2.0) and prediction.map.min() >= 0 and prediction.map.max() <= 2


@torch.no_grad()
def test_distances_to_the_references_are_added(backbone):
    zero, few = build(backbone), build(backbone, few_shot_layers=[1, 3])
    references, foreign = images(2), images(1, seed=9)
    few.fit_references([make_references(references, "gear"), make_references(images(1, seed=5), "tile")])
    both = make_batch(torch.cat([references[:1], foreign]), "gear")
    distances = few.distances(few.frozen_tokens(both), both.category)
    assert distances is not None and distances.shape == (2, 2, 16)
    assert distances[:, 0].abs().max() < 1e-5 and distances[:, 1].min() > 1e-3
    bank = torch.cat(list(backbone.encode_image(references, layers=[3]).patches[0]))
    query = backbone.encode_image(foreign, layers=[3]).patches[0][0]
    cosines = F.cosine_similarity(query[:, None], bank[None], dim=-1)
    torch.testing.assert_close(distances[1, 1], 1 - cosines.amax(dim=1), rtol=1e-4, atol=1e-5)
    before, after = zero.predict(both), few.predict(both)
    torch.testing.assert_close(after.map[0], before.map[0], rtol=1e-4, atol=1e-5)
    assert (after.map[1] > before.map[1]).all()
    peak = after.map.flatten(1).amax(dim=1)
    assert few.bound == 2 + 2 * 2
    torch.testing.assert_close(after.score, (before.score + peak / 6) / 2)
    assert after.score_components is not None
    torch.testing.assert_close(after.score_components, torch.stack([before.score, peak], dim=1))


def test_scores_of_a_whole_category_by_hand(backbone):
    method = build(backbone)
    components = torch.tensor([[0.2, 1.0], [0.4, 3.0], [0.6, 2.0]])
    torch.testing.assert_close(method.category_scores(components), torch.tensor([0.1, 0.7, 0.55]))
    torch.testing.assert_close(method.category_scores(components[:1]), torch.tensor([0.1]))  # nothing to stretch


def test_an_evaluation_ends_in_scores_over_the_category(backbone):
    """In batches that mix the categories, with a repeat as a distributed sampler adds one."""
    method = build(backbone)
    method.fit_references([make_references(images(1), "gear"), make_references(images(1, seed=1), "tile")])
    names = ["gear", "tile", "gear", "tile", "gear", "gear"]
    whole = replace(make_batch(images(6, seed=3), names), label=torch.tensor([0, 1, 1, 0, 0, 1]))
    with torch.no_grad():
        components = method.predict(whole).score_components
    assert components is not None
    expected = torch.empty(6)
    for name in ("gear", "tile"):
        rows = [i for i, other in enumerate(names) if other == name]
        expected[rows] = method.category_scores(components[rows])
    method.evaluation.start(method)
    for rows in ([0, 1, 2], [3, 4], [5, 0]):
        few = make_batch(whole.image[rows], [names[i] for i in rows])
        method.evaluation.update(method, replace(few, label=whole.label[rows], index=torch.tensor(rows)))
    method.evaluation.finish(method)
    found = torch.tensor([row.score for row in method.evaluation.result.rows])
    torch.testing.assert_close(found, expected)
    normal, anomalous = expected[[0, 4]], expected[[2, 5]]
    auroc = (anomalous[:, None] > normal[None]).float().mean()
    assert method.evaluation.result.values["gear/image_auroc"] == pytest.approx(float(auroc))
    assert {method.evaluation.result.values["tile/image_auroc"]} <= {0.0, 1.0}


def test_the_dice_of_the_normal_map_is_left_out(backbone):
    method, batch = build(backbone), masked()
    values = method.losses(batch)
    assert batch.mask is not None
    maps, mask = method.layer_maps(method.frozen_tokens(batch), batch), batch.mask.float()
    torch.testing.assert_close(values["dice"], sum(dice_loss(m, mask).mean() for m in maps))
    torch.testing.assert_close(values["focal"], sum(focal_loss(m, mask).mean() for m in maps))
    both = map_losses(method.terms, maps, mask)["dice"]
    torch.testing.assert_close(both - values["dice"], sum(dice_loss(1 - m, 1 - mask).mean() for m in maps))


def test_a_batch_of_one_has_the_loss_of_its_image(backbone):
    method, batch = build(backbone), masked(1)
    total = method.total_loss(method.losses(batch))
    assert total.ndim == 0
    double = replace(make_batch(batch.image.repeat(2, 1, 1, 1), "gear"), mask=batch.mask.repeat(2, 1, 1))
    torch.testing.assert_close(method.total_loss(method.losses(double)), total)


def test_only_the_linear_layers_learn(backbone):
    method, batch = build(backbone), masked()
    assert set(method.learnable()) == {f"projection.{i}.{part}" for i in (0, 1) for part in ("weight", "bias")}
    optimizer = torch.optim.Adam(method.learnable().values(), lr=1e-2, betas=(0.5, 0.999))
    course = []
    for _ in range(20):
        loss = method.total_loss(method.losses(batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        course.append(loss.item())
    assert course[-1] < 0.8 * course[0]


def test_the_seed_decides_the_start_and_nothing_else_is_drawn(backbone):
    torch.manual_seed(5)
    first, after = build(backbone, seed=3), torch.rand(1)
    second, other = build(backbone, seed=3), build(backbone, seed=4)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))
    assert torch.equal(first.projection[0].weight, second.projection[0].weight)
    assert not torch.equal(first.projection[0].weight, other.projection[0].weight)


def test_layers_and_memory_travel_in_a_checkpoint(backbone):
    method, again = build(backbone), build(backbone, seed=8)
    method.fit_references([make_references(images(2), "metal nut. v2"), make_references(images(1, 4), "gear")])
    state = method.state_dict()
    assert not any(key.startswith("backbone.") for key in state)
    again.check_learned(state, "checkpoint")
    again.load_state_dict(state, strict=False)
    batch = make_batch(images(2, 7), ["gear", "metal nut. v2"])
    torch.testing.assert_close(again.predict(batch), method.predict(batch))


def test_references_after_a_zero_shot_checkpoint(backbone):
    """As the published few-shot numbers are made: zero-shot layers, then a memory."""
    method, again = build(backbone), build(backbone, seed=8)
    again.check_learned(method.state_dict(), "checkpoint")
    again.load_state_dict(method.state_dict(), strict=False)
    for one in (method, again):
        one.fit_references([make_references(images(2), "gear")])
    batch = make_batch(images(2, 7), "gear")
    torch.testing.assert_close(again.predict(batch), method.predict(batch))


def test_published_files_have_one_entry(backbone, tmp_path):
    method, again = build(backbone), build(backbone, seed=8)
    content = {name.replace("projection", "fc"): p.detach().half() for name, p in method.learnable().items()}
    torch.save({"trainable_linearlayer": content}, tmp_path / "visa_pretrained.pth")
    load_published(again, tmp_path / "visa_pretrained.pth")
    torch.testing.assert_close(again.projection[1].weight, method.projection[1].weight, atol=1e-3, rtol=0)
    torch.save({"trainable_linearlayer": {**content, "fc.2.bias": torch.zeros(16)}}, tmp_path / "more.pth")
    with pytest.raises(UserError, match=r"surplus fc\.2\.bias"):
        load_published(again, tmp_path / "more.pth")
    with pytest.raises(UserError, match=r"missing fc\.2\.weight; missing fc\.2\.bias"):
        load_published(build(backbone, layers=[1, 2, 4]), tmp_path / "visa_pretrained.pth")


def test_a_category_without_references_is_rejected(backbone):
    method = build(backbone)
    method.fit_references([make_references(images(1), "gear")])
    with pytest.raises(
        UserError, match=r"category 'tile' has no reference images in AprilGAN's memory \(it has: gear\)"
    ):
        method.predict(make_batch(images(1), "tile"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": []}, "method.layers is .*give different vision blocks of 1 to 4"),
        ({"layers": [2, 2]}, "method.layers is"),
        ({"layers": 2}, "method.layers is 2"),
        ({"layers": "first"}, "method.layers is 'first'"),
        ({"layers": [5]}, "has vision blocks 1 to 4, not 5"),
        ({"few_shot_layers": [0]}, "not 0"),
        ({"few_shot_layers": []}, "method.few_shot_layers is"),
        ({"scale": 0.0}, "method.scale is 0.0"),
        ({"memory_mb": -1.0}, "method.memory_mb is -1.0"),
    ],
)
def test_wrong_options_are_one_line(backbone, options, message):
    with pytest.raises(UserError, match=message):
        build(backbone, **options)


def test_default_layers_are_those_of_the_backbone(backbone):
    method = AprilGAN(backbone)
    assert method.layers == method.few_shot_layers == backbone.layers == (1, 2, 3, 4)
    assert build(backbone, few_shot_layers="last").few_shot_layers == (4,)


def test_the_cache_serves_tokens_of_both_uses_and_texts(backbone, tmp_path: Path, monkeypatch):
    batch = masked()
    method = build(backbone, few_shot_layers=[3])
    expected = method.total_loss(method.losses(batch))
    method.token_cache = TokenCache(method.cache_key(), folder=tmp_path)
    method._text_features.clear()
    method.losses(batch)
    again = build(backbone, few_shot_layers=[3])
    again.token_cache = cache = TokenCache(again.cache_key(), folder=tmp_path)
    monkeypatch.setattr(type(backbone), "encode_image", lambda *_, **__: pytest.fail("an image passed the tower"))
    monkeypatch.setattr(type(backbone), "encode_text", lambda *_, **__: pytest.fail("a text was encoded again"))
    served = replace(batch, unencoded=batch.image[:0], tokens=[cache.get(key) for key in batch.key])
    torch.testing.assert_close(again.total_loss(again.losses(served)), expected)
    references = make_references(images(2), "gear")
    references.batch = replace(references.batch, unencoded=batch.image[:0], tokens=served.tokens)
    again.fit_references([references])
    assert again.predict(served).map.shape == (2, 32, 32)


def test_texts_made_in_inference_can_be_learned_with(backbone):
    """A validation during training encodes categories that the next step learns from."""
    method, batch = build(backbone), masked()
    with torch.inference_mode():
        method.predict(batch)
    method.total_loss(method.losses(batch)).backward()
    assert method.projection[0].weight.grad is not None


@pytest.mark.parametrize(
    ("words", "epochs"),
    [
        (["dataset=visa_to_mvtec"], 15),
        (["dataset=mvtec_to_visa"], 3),
        (["experiment=april_gan/visa_to_mvtec"], 15),
        ([], 3),
        (["dataset.train=null"], 3),
        (["dataset=visa_to_mvtec", "epochs=7"], 7),
    ],
)
def test_epochs_are_the_published_ones_of_the_training_set(words, epochs):
    named = [] if "experiment" in "".join(words) else ["method=april_gan", "preset=published"]
    cfg = compose([*named, *words])
    check_values(cfg)
    assert cfg.epochs == epochs and cfg.augment.mosaic_on == ["mvtec_ad"]


def test_the_published_size_of_everything():
    cfg = compose(["method=april_gan", "backbone=vit_l14_336", "dataset=visa_to_mvtec"])
    assert list(cfg.backbone.layers) == [6, 12, 18, 24] and "layers" not in cfg.method  # the default: the backbone's
    assert (cfg.backbone.activation, cfg.backbone.pos_resize, cfg.image_size) == ("gelu", "bicubic_antialias", 518)
    assert (cfg.batch_size, cfg.optimizer.lr, list(cfg.optimizer.betas), cfg.seed) == (8, 1e-3, [0.5, 0.999], 111)
