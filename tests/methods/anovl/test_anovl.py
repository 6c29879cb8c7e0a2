"""AnoVL's parts: views, squares, sentences, adaptation step by step, what depends on order and what does not."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_vlm.backbone import load_backbone
from anomaly_vlm.caching.tokens import TokenCache
from anomaly_vlm.data.types import Batch
from anomaly_vlm.errors import UserError
from anomaly_vlm.methods.anovl.adapter import AdapterStart, CategoryTexts, adapt
from anomaly_vlm.methods.anovl.method import AnoVL
from anomaly_vlm.methods.anovl.views import augmented_views, joined, squares_of
from anomaly_vlm.methods.base.published import layout_of
from anomaly_vlm.texts import load_texts
from tests.support.few_shot import make_batch
from tests.support.tiny import tiny_architecture

SMALL = tiny_architecture(layers=2, text_layers=1, context_length=32)
TABLE = load_texts("anovl_prompts")


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("small", random_seed=0, architecture=SMALL, image_size=32)


def build(backbone, **options) -> AnoVL:
    return AnoVL(backbone, **options).eval()


def images(count: int, height: int = 32, width: int = 32, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def some(batch: Batch, rows: list[int]) -> Batch:
    """Images of a batch, which keep their index."""
    part = make_batch(batch.image[rows], [batch.category[i] for i in rows])
    part.index, part.path = batch.index[rows], [batch.path[i] for i in rows]
    return part


def predict(method: AnoVL, batch: Batch):
    with torch.inference_mode():
        return method.predict(batch)


# ---- views and squares -----------------------------------------------------------------------------------------------


def test_views_are_those_of_the_paper():
    side = 11
    across = torch.arange(side).float().expand(side, side)
    picture = torch.stack([across, across.T, torch.ones(side, side)])[None]
    views = augmented_views(picture)[0]
    assert views.shape == (22, 3, side, side)
    assert torch.equal(views[0], picture[0])
    for i, k in enumerate((-4, -3, -2, -1, 1, 2, 3, 4)):  # the middle of the right edge comes from the circle's border
        angle = k * math.pi / 16
        expected = torch.tensor([math.cos(angle), math.sin(angle)]) * 5 + 5
        torch.testing.assert_close(views[1 + i, :2, 5, 10], expected, atol=1e-4, rtol=0)
    moves = [(s * x, s * y) for s in (0.2, 0.1) for x, y in ((1, 1), (-1, 1), (-1, -1), (1, -1))]
    for i, (a, b) in enumerate(moves):
        expected = torch.tensor([5 + 5 * a, 5 + 5 * b])
        torch.testing.assert_close(views[9 + i, :2, 5, 5], expected, atol=1e-4, rtol=0)
    assert torch.equal(views[17], picture[0].flip(-1))
    grey = 0.299 * picture[0, 0] + 0.587 * picture[0, 1] + 0.114
    torch.testing.assert_close(views[18], grey.expand(3, -1, -1))
    assert views[19, 0, 10, 3] == 0 and views[19, 0, 0, 3] == 10, "counter-clockwise: the right edge is on top"
    assert torch.equal(views[20], picture[0].flip(-1, -2)) and torch.equal(views[21], views[19].flip(-1, -2))


def test_the_border_is_reflected():
    views = augmented_views(torch.arange(11.0).expand(1, 3, 11, 11))[0]
    assert views[9, 0, 5, 10] == pytest.approx(9.0), "one pixel beyond the right edge is one pixel inside it"


def test_squares_cover_an_image():
    whole = slice(0, 8)
    assert squares_of((8, 8)) == [(whole, whole)]
    assert squares_of((8, 12)) == [(whole, slice(0, 8)), (whole, slice(4, 12))]
    assert squares_of((12, 8)) == [(slice(0, 8), whole), (slice(4, 12), whole)]
    assert [across.start for _, across in squares_of((4, 10))] == [0, 3, 6]


def test_maps_of_squares_are_averaged_where_they_overlap():
    parts = torch.stack([torch.full((2, 2), 1.0), torch.full((2, 2), 3.0)])[None]
    assert joined(parts, (2, 3)).tolist() == [[[1.0, 2.0, 3.0]] * 2]
    assert torch.equal(joined(parts[:, :1], (2, 2)), parts[:, 0])


@pytest.mark.parametrize("shape", [(32, 48), (48, 32)])
def test_a_tiled_image_is_its_squares(backbone, shape):
    wide = images(1, *shape)
    plain, tiled = build(backbone, adapt=False), build(backbone, adapt=False, tiling="auto")
    parts = [predict(plain, make_batch(wide[(..., *at)], "gear")) for at in squares_of(shape)]
    found = predict(tiled, make_batch(wide, "gear"))
    torch.testing.assert_close(found.score, torch.stack([part.score for part in parts]).mean(dim=0))
    torch.testing.assert_close(found.map, joined(torch.stack([part.map for part in parts], dim=1), shape))


def test_the_squares_of_an_image_are_adapted_to_together(backbone, monkeypatch):
    counts = []
    start = AnoVL.start
    monkeypatch.setattr(AnoVL, "start", lambda self, i, count, t: counts.append(count) or start(self, i, count, t))
    found = predict(build(backbone, tiling="auto"), make_batch(images(1, 32, 48), "gear"))
    assert counts == [2 * 16] and found.map.shape == (1, 32, 48)


def test_shapes_that_the_tower_cannot_take_are_rejected(backbone):
    with pytest.raises(UserError, match=r"images of 32x48 pixels with method.tiling=off.*method.tiling=auto"):
        build(backbone).predict(make_batch(images(1, 32, 48), "gear"))
    with pytest.raises(UserError, match=r"images of 30x48 pixels: the shorter side.*pixels.fit=short_side"):
        build(backbone, tiling="auto").predict(make_batch(images(1, 30, 48), "gear"))


# ---- sentences -------------------------------------------------------------------------------------------------------


def test_sentences_are_of_the_domain_templates_outermost(backbone):
    method = build(backbone, texture_categories=["Wood", "my felt"])
    normal, anomalous = method.sentences("metal_nut")
    assert len(normal) == len(anomalous) == 462
    assert normal[:2] == [
        "a cropped industrial photo of the normal metal_nut",
        "a cropped industrial photo of the flawless metal_nut",
    ]
    assert anomalous[7 + 4] == "a cropped industrial photo of a metal_nut with flaw"
    assert normal[-1] == "a manufacturing image of a metal_nut without damage for anomaly detection"
    for texture in ("wood", "My felt"):
        said = method.sentences(texture)[0]
        assert said[154] == f"a cropped textural photo of the normal {texture}" and "surface picture" in said[-1]
    assert "normal macaroni" in method.sentences("macaroni2")[0][0]
    assert "macaroni2" not in method.sentences("macaroni2")[0][0]


def test_prototypes_are_means_of_raw_features(backbone):
    method = build(backbone)
    raw = torch.cat([backbone.encode_text(backbone.tokenize(side)) for side in method.sentences("gear")])
    texts = method.texts("gear")
    torch.testing.assert_close(texts.prototypes, F.normalize(raw.unflatten(0, (2, -1)).mean(dim=1), dim=-1))
    torch.testing.assert_close(texts.keys, F.normalize(raw, dim=-1))


# ---- maps and scores -------------------------------------------------------------------------------------------------


def test_the_map_is_smoothed_with_the_edge_repeated(backbone):
    prob = torch.zeros(1, 1, 16)
    prob[0, 0, 0] = 9.0
    found = build(backbone).maps(prob, (32, 32))[0]
    # The corner patch is in its own window four times, in those of its neighbours on an edge twice.
    assert (found[0, 0].item(), found[0, -1].item()) == pytest.approx((4.0, 0.0))
    plain = build(backbone, smooth_kernel=1).maps(prob, (32, 32))[0]
    assert plain[0, 0].item() == pytest.approx(9.0)
    assert plain[0, 31 // 3].item() == pytest.approx(9.0 * (1 - 3 * 10 / 31), abs=1e-5), "corners are aligned"


def test_the_score_is_the_mean_over_views(backbone):
    batch = make_batch(images(2), "gear")
    method = build(backbone, adapt=False)
    views = augmented_views(batch.image).flatten(0, 1)
    each = predict(build(backbone, adapt=False, augment_views=False), make_batch(views, "gear"))
    found = predict(method, batch)
    torch.testing.assert_close(found.score, each.score.unflatten(0, (2, 22)).mean(dim=1))
    torch.testing.assert_close(found.map, each.map.unflatten(0, (2, 22))[:, 0])


def test_the_temperature_spreads_scores_and_leaves_the_adaptation(backbone):
    batch = make_batch(images(2), "gear")
    warm, cold = (build(backbone, temperature=t, augment_views=False, smooth_kernel=1) for t in (1.0, 0.1))
    logit = predict(warm, batch).score.logit()
    torch.testing.assert_close(predict(cold, batch).score.logit(), 10 * logit, rtol=1e-4, atol=1e-4)
    patches, texts = warm.frozen_tokens(batch)["patches"], warm.texts("gear")
    assert torch.equal(warm.adapted(patches, texts, [0, 1]), cold.adapted(patches, texts, [0, 1]))


def test_without_dual_blocks_the_patches_are_the_ordinary_ones(backbone):
    batch = make_batch(images(1), "gear")
    tokens = backbone.encode_image(batch.image, layers=[2])
    ordinary = build(backbone, vv_blocks=0).encode_frozen(batch.image)["patches"][:, 0]
    torch.testing.assert_close(ordinary, backbone.project(tokens.patches[0]))
    assert not torch.allclose(build(backbone).encode_frozen(batch.image)["patches"][:, 0], ordinary)


# ---- adaptation ------------------------------------------------------------------------------------------------------


def in_double(parts):
    return type(parts)(*(part.double() for part in parts))


def step_by_step(patches: Tensor, starts: list[AdapterStart], texts: CategoryTexts, *, carry: bool) -> Tensor:
    """Adapted patches [B, N, C], written out with a linear layer, image by image."""
    layer = nn.Linear(*texts.keys.T.shape).double()
    optimizer, found = torch.optim.AdamW(layer.parameters(), lr=1e-3), []

    def adapter(x: Tensor) -> Tensor:
        return 0.5 * x + 0.5 * torch.tanh(layer(x / x.norm(dim=-1, keepdim=True))) @ texts.keys

    for x, start in zip(patches, starts, strict=True):
        layer.load_state_dict({"weight": start.weight[0], "bias": start.bias[0]})
        if not carry:
            optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3)
        for noise in start.noise[:, 0]:
            clean, noisy = (F.normalize(adapter(v), dim=-1) @ texts.prototypes.T for v in (x, x + noise))
            entropy = torch.distributions.Categorical(logits=clean).entropy().mean()
            normal, anomalous = (torch.full((len(x),), side) for side in (0, 1))
            loss = entropy + 0.5 * (F.cross_entropy(noisy, anomalous) + F.cross_entropy(clean, normal))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        found.append(adapter(x).detach())
    return torch.stack(found)


def test_adaptation_is_what_it_says_step_by_step(backbone):
    """In float64: AdamW turns rounding of small gradients into movement."""
    method = build(backbone)
    patches, texts = method.frozen_tokens(make_batch(images(3), "gear"))["patches"][:, 0].double(), method.texts("gear")
    starts = [in_double(method.start([i], 16, texts)) for i in range(3)]
    together, texts = in_double(method.start([0, 1, 2], 16, texts)), in_double(texts)

    def adapted(rows: slice, start: AdapterStart, carried: str | None = None) -> Tensor:
        adapter, optimizer, noise = method.begin(start, texts, carried)
        losses = adapt(adapter, optimizer, patches[rows], noise, texts)
        assert losses.shape == (5, len(patches[rows]))
        return adapter(patches[rows]).detach()

    fresh, carried = (step_by_step(patches, starts, texts, carry=carry) for carry in (False, True))
    torch.testing.assert_close(adapted(slice(3), together), fresh, rtol=0, atol=1e-10)
    one_by_one = [adapted(slice(i, i + 1), start, "gear") for i, start in enumerate(starts)]
    torch.testing.assert_close(torch.cat(one_by_one), carried, rtol=0, atol=1e-10)
    assert torch.equal(fresh[0], carried[0]) and (fresh[1:] - carried[1:]).abs().max() > 1e-6


def test_fresh_results_know_nothing_of_batches_order_and_global_numbers(backbone):
    batch = make_batch(images(4), ["gear", "tile", "gear", "tile"])
    method = build(backbone)
    state = torch.get_rng_state()
    whole = predict(method, batch)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    for rows in ([3], [2, 0], [1, 2, 3]):
        part = predict(method, some(batch, rows))
        torch.testing.assert_close(part.map, whole.map[rows], rtol=0, atol=2e-6)
        torch.testing.assert_close(part.score, whole.score[rows], rtol=0, atol=2e-6)
    moved = some(batch, [0])
    moved.index += 1
    spread = (predict(method, moved).map - whole.map[0]).abs().max()
    assert spread > 1e-5, "another index draws other numbers"
    assert (predict(build(backbone, seed=1), batch).map - whole.map).abs().max() > 1e-5


def test_carry_goes_through_the_images_in_order(backbone):
    batch = make_batch(images(3), "gear")
    method = build(backbone, adaptation={"optimizer_state": "published"})
    whole = predict(method, batch).map
    assert torch.equal(predict(method, some(batch, [2])).map[0], whole[2]), "an image that comes again keeps its map"
    method.invalidate_caches()
    one_by_one = torch.cat([predict(method, some(batch, [i])).map for i in range(3)])
    torch.testing.assert_close(one_by_one, whole, rtol=0, atol=2e-6)
    method.invalidate_caches()
    alone = predict(method, some(batch, [2])).map[0]
    torch.testing.assert_close(alone, predict(build(backbone), batch).map[2], rtol=0, atol=2e-6)
    assert (alone - whole[2]).abs().max() > 1e-5
    assert method.display_name("anovl") == "anovl, optimiser carried from image to image"


def test_carry_refuses_several_processes(backbone):
    method = build(backbone, adaptation={"optimizer_state": "published"})
    method._trainer = SimpleNamespace(world_size=2)
    with pytest.raises(
        UserError, match="optimizer_state=published goes through the images in order, here are 2 processes"
    ):
        method.setup("test")
    method._trainer = SimpleNamespace(world_size=1)
    method.setup("test")
    fresh = build(backbone)
    fresh._trainer = SimpleNamespace(world_size=2)
    fresh.setup("test")


# ---- house -----------------------------------------------------------------------------------------------------------


def test_tokens_and_texts_are_kept(backbone, tmp_path, monkeypatch):
    batch = make_batch(images(2), "gear")
    batch.key = ["aa", "bb"]
    first = build(backbone)
    first.token_cache = TokenCache(first.cache_key(), folder=tmp_path)
    expected = predict(first, batch)
    second = build(backbone, adaptation={"optimizer_state": "published"})  # the adaptation is no part of what is kept
    second.token_cache = TokenCache(second.cache_key(), folder=tmp_path)
    batch.tokens = [second.token_cache.get(key) for key in batch.key]
    batch.unencoded = torch.empty(0, 3, 32, 32)
    for name in ("encode_image", "encode_text"):
        monkeypatch.setattr(type(backbone), name, lambda *_, **__: pytest.fail("encoded again"))
    found = predict(second, batch)
    assert torch.equal(found.score, expected.score) and torch.equal(found.map[0], expected.map[0])
    other = [build(backbone, **o).cache_key() for o in ({"augment_views": False}, {"vv_blocks": 1})]
    assert first.cache_key() not in other


def test_nothing_is_stored_and_nothing_is_published(backbone):
    method = build(backbone)
    predict(method, make_batch(images(1), "gear"))
    assert method.state_dict() == {} and method.learnable() == {}
    method.check_learned({}, "checkpoint")
    with pytest.raises(UserError, match="AnoVL has no published checkpoints"):
        layout_of(method)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"vv_blocks": 3}, r"method.vv_blocks is 3: give all, or 0 to 2"),
        ({"vv_blocks": "some"}, "method.vv_blocks is 'some': give a whole number of at least 0, or all"),
        ({"temperature": 0.0}, "method.temperature is 0.0"),
        ({"adaptation": {"lr": -1.0}}, "method.adaptation.lr is -1.0"),
        ({"smooth_kernel": 2}, "method.smooth_kernel is 2: give an odd number"),
        ({"adaptation": {"steps": 0}}, "method.adaptation.steps is 0"),
        ({"adaptation": {"noise_std": -0.1}}, "method.adaptation.noise_std is -0.1"),
        (
            {"adaptation": {"optimizer_state": "keep"}},
            "unknown method.adaptation.optimizer_state 'keep': choose one of fresh, published",
        ),
        ({"tiling": "on"}, "unknown method.tiling 'on'"),
        ({"texts": {}}, "table of texts has no 'normal_states'"),
        ({"texts": {**TABLE, "object_templates": ["phto"]}}, "unknown list of templates in object_templates 'phto'"),
    ],
)
def test_wrong_options_are_rejected(backbone, options, told):
    with pytest.raises(UserError, match=told):
        AnoVL(backbone, **options)
