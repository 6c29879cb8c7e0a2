"""VL4AD beyond the golden numbers: options, texts, streaming, views, training, what is stored."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

from anomaly_vlm.data import Batch
from anomaly_vlm.errors import UserError
from anomaly_vlm.losses import build_terms
from anomaly_vlm.methods.shared.sliding_window import SlidingWindow, starts
from anomaly_vlm.methods.vl4ad import VL4AD
from anomaly_vlm.methods.vl4ad.mask_decoder import DecoderOptions, Mask2FormerConfig, MaskClassifier, pool
from anomaly_vlm.methods.vl4ad.mask_matching import MaskMatching, segments
from anomaly_vlm.methods.vl4ad.pixel_scores import (
    PixelClasses,
    anomaly_score,
    class_probabilities,
    geometric_ensemble,
    largest_of,
    mask_probabilities,
    pixel_classes,
)
from anomaly_vlm.methods.vl4ad.vocabulary import Vocabulary
from anomaly_vlm.runs.compose import compose
from anomaly_vlm.texts import load_texts
from tests.support.conf import loss_conf
from tests.support.road import any_images, first_batch, road_data, small_vl4ad, tiny_convnext

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec.*",
    "ignore:.*does not have many workers.*",
    "ignore:.*in eval mode.*",
    "ignore:.*have no `val_.*",
)
TABLE = load_texts("vl4ad_prompts")


# ---- classes ---------------------------------------------------------------------------------------------------------


def test_columns_of_the_shipped_table() -> None:
    vocabulary = Vocabulary(TABLE)
    plain = vocabulary.columns()
    assert plain.num_known == 19 and len(plain.texts) == 60 and plain.of_class == tuple(range(19))
    merged = vocabulary.columns("cityscapes_groups", "proposed")
    assert merged.num_known == 7 and len(merged.names) == 13 and merged.names[7] == "caravan"
    assert merged.texts[:60] == plain.texts
    around = vocabulary.columns("surroundings")
    assert around.names[:2] == ("ground", "background") and around.num_known == 13
    assert around.of_class[0] == around.of_class[1] == 0 and around.of_class[13] == around.names.index("car")
    assert {merged.of_class[i] for i in (13, 14, 15, 16, 17, 18)} == {merged.names.index("vehicle")}
    assert sorted(p for part in merged.members[:7] for p in part) == list(range(60))
    assert Vocabulary(TABLE, ensembling=False).columns().texts == Vocabulary(TABLE).classes


def test_columns_of_own_groups() -> None:
    columns = Vocabulary(TABLE).columns({"wheels": ["car", "truck"]}, ["caravan", ["box", "crate"]])
    assert columns.num_known == 18 and columns.names[0] == "wheels" and columns.names[-2:] == ("caravan", "box")
    assert columns.texts[60:] == ("caravan", "box", "crate") and columns.members[-1] == (61, 62)
    assert columns.of_class[13] == columns.of_class[14] == 0


@pytest.mark.parametrize(
    ("merge", "ood", "message"),
    [
        ("groups", (), "unknown method.merge 'groups'"),
        ({"a": ["cars"]}, (), r"unknown class in method\.merge\.a 'cars'.*did you mean car"),
        ({"a": ["car"], "b": ["car"]}, (), "method.merge puts class 'car' into a and b"),
        ({"bus": ["car", "truck"]}, (), "method.merge has a group 'bus' without the class of that name"),
        ("none", "all", "unknown method.ood_prompts 'all'"),
        ("none", [["box", 3]], "method.ood_prompts holds"),
        ("none", [[]], "method.ood_prompts holds"),
    ],
)
def test_wrong_columns(merge: Any, ood: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Vocabulary(TABLE).columns(merge, ood)


def test_a_table_must_be_whole() -> None:
    with pytest.raises(UserError, match="table of texts has no 'templates'"):
        Vocabulary({"cityscapes_concepts": TABLE["cityscapes_concepts"]})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score": "maximum"}, "unknown method.score 'maximum'"),
        ({"compare": ["rba", "msp"]}, r"unknown method.compare\[1\] 'msp'"),
        ({"void": "keep"}, "unknown method.void 'keep'"),
        ({"classifier": "mlp"}, "unknown method.classifier 'mlp'"),
        ({"clip_classifier": {"ensemble": "mean"}}, "unknown method.clip_classifier.ensemble 'mean'"),
        ({"clip_classifier": {"alpha": 1.5}}, "method.clip_classifier.alpha is 1.5"),
        ({"decoder": {"hidden": 48}}, "method.decoder.hidden is 48: give a multiple of 32"),
        ({"decoder": {"queries": 0}}, "method.decoder.queries is 0: give a whole number of at least 1"),
        ({"classifier": "linear", "ood_prompts": ["box"]}, "method.classifier=linear has no texts"),
        ({"passes": {"window": [16, 64]}}, r"window is \[16, 64\]"),
        ({"passes": {"overlap": 1.0}}, "method.passes.overlap is 1.0"),
        ({"passes": {"scales": []}}, r"scales is \[\]"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        small_vl4ad(**options)


def test_a_trained_clip_stays_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert any(name.startswith("backbone.visual.trunk") for name in small_vl4ad().learnable())
    assert not any(name.startswith("backbone") for name in small_vl4ad(untrained={"train_backbone": False}).learnable())
    import tests.support.road as road

    def trained(**changes: Any) -> Any:
        backbone = tiny_convnext(**changes)
        backbone.is_random = False
        return backbone

    monkeypatch.setattr(road, "tiny_convnext", trained)
    method = small_vl4ad()
    assert not method.center_text and not any(name.startswith("backbone") for name in method.learnable())
    with pytest.raises(UserError, match="VL4AD keeps a trained CLIP frozen"):
        small_vl4ad(untrained={"train_backbone": True})


def test_centred_texts_lie_apart() -> None:
    raw, centred = small_vl4ad(untrained={"center_text": False}), small_vl4ad(untrained={"center_text": True})
    one, other = (method.concept_vectors(method.train_columns) for method in (raw, centred))
    assert (one @ one.T).mean() > 0.5 > 0.1 > (other @ other.T).mean().abs()
    torch.testing.assert_close(other.norm(dim=-1), torch.ones(60))
    with_more = small_vl4ad(untrained={"center_text": True}, ood_prompts=["caravan"])
    torch.testing.assert_close(with_more.concept_vectors(with_more.columns)[:60], other)


def test_the_published_sizes_are_the_defaults_and_the_embedded_ones_presets() -> None:
    """The sizes of the paper on its own backbone, or by `preset=published`; the small ones come with the small backbones."""
    for words in (["preset=published"], ["backbone=convnext_large_d_320"]):
        published = compose(["method=vl4ad", *words])
        assert "decoder" not in published.method and "passes" not in published.method
        assert (published.optimizer.lr, published.gradient_clip) == (1e-4, 0.01)
    for backbone in ("nano_convnext", "tiny_convnext"):
        embedded = compose(["method=vl4ad", f"backbone={backbone}"])
        assert embedded.choices.preset == f"{backbone}/vl4ad" and embedded.method.decoder.queries == 20
    assert DecoderOptions().queries == 250


# ---- formulas --------------------------------------------------------------------------------------------------------


def test_largest_of_members() -> None:
    logits = torch.tensor([[1.0, 5.0, 2.0, 7.0]])  # three concepts and void
    assert largest_of(logits, [(0, 1), (2,)]).tolist() == [[5.0, 2.0, 7.0]]


def test_ensemble_without_weight_is_the_trained_classifier() -> None:
    logits, other = torch.randn(2, 5, 8), torch.randn(2, 5, 7)
    for void in ("drop", "ignore"):
        mixed = geometric_ensemble(logits, other, num_known=4, alpha=0.0, beta=0.0, void=void)  # type: ignore[arg-type]
        torch.testing.assert_close(mixed, class_probabilities(logits, void=void))  # type: ignore[arg-type]
    alone = geometric_ensemble(logits, other, num_known=4, alpha=1.0, beta=1.0, void="ignore")
    torch.testing.assert_close(alone, other.softmax(dim=-1))


def test_scores_by_hand() -> None:
    y = PixelClasses(
        torch.tensor([0.6, 0.3, 0.9]).view(1, 3, 1, 1), torch.tensor([[[0.8]]]), torch.tensor([[[0.7]]]), num_known=2
    )
    expected = {"max": -0.6, "max_inside": -0.8, "margin": -0.3, "max_softmax": -0.7, "max_softmax_pixel": -0.6 / 0.9}
    for name, value in expected.items():
        assert anomaly_score(y, name).item() == pytest.approx(value), name
    raw = torch.tensor([0.6, 0.3])
    assert anomaly_score(y, "rba").item() == pytest.approx(-float(raw.tanh().sum()))
    assert anomaly_score(y, "max_softmax_logits").item() == pytest.approx(-float(raw.softmax(0).max()))


def test_streaming_is_exact_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never more than `chunk` masks at full size, and the same sums."""
    import anomaly_vlm.methods.vl4ad.pixel_scores as module

    masks, classes = torch.randn(1, 10, 8, 12), torch.rand(1, 10, 5)
    frame = ((32, 64), (30, 61), (45, 40))
    s = mask_probabilities(masks, *frame)
    at_once = []

    def watched(part: torch.Tensor, *rest: Any) -> torch.Tensor:
        at_once.append(part.shape[1])
        return mask_probabilities(part, *rest)

    monkeypatch.setattr(module, "mask_probabilities", watched)
    padded, inner, size = frame
    y = pixel_classes(masks, classes, num_known=3, padded=padded, inner=inner, size=size, chunk=4)
    assert at_once == [4, 4, 2] and y.by_class.shape == (1, 5, 45, 40)
    torch.testing.assert_close(y.by_class, torch.einsum("bnhw,bnk->bkhw", s, classes))
    top = classes[..., :3].amax(dim=-1)
    torch.testing.assert_close(y.inside, torch.einsum("bnhw,bn->bhw", s, top))
    assert torch.equal(y.owner[0], top[0][(s[0] * top[0][:, None, None]).argmax(dim=0)])


def test_an_empty_mask_pools_to_zero() -> None:
    pooled = pool(torch.full((1, 2, 3, 4), -1.0), torch.rand(1, 5, 3, 4))
    assert torch.equal(pooled, torch.zeros(1, 2, 5))
    classifier = MaskClassifier(5, 7)
    assert (
        classifier.embeddings(torch.full((1, 2, 3, 4), -1.0), torch.rand(1, 2, 5), torch.rand(1, 5, 3, 4))
        .isfinite()
        .all()
    )


# ---- views -----------------------------------------------------------------------------------------------------------


def ramp(images: torch.Tensor, size: tuple[int, int]) -> PixelClasses:
    """A pass whose class sums are the image's first channel, wherever a window lies."""
    value = F.interpolate(images[:, :1], size=size, mode="bilinear", align_corners=False)
    return PixelClasses(value.clone(), value[:, 0].clone(), value[:, 0].clone(), 1)


def test_windows_cover_every_pixel_and_average() -> None:
    assert starts(100, 40, 0.25) == [0, 30, 60] and starts(32, 40, 0.5) == [0]
    image = any_images(70, 100)
    for overlap in (0.0, 0.5):
        found = SlidingWindow(window=[32, 64], overlap=overlap)(ramp, image, (70, 100))
        torch.testing.assert_close(found.by_class[:, 0], image[:, 0])
    assert SlidingWindow(window=[32, 64])(ramp, image, (35, 50)).inside.shape == (1, 35, 50)
    assert torch.equal(SlidingWindow(window=[200, 200])(ramp, image, (70, 100)).inside, image[:, 0])


def test_scales_average() -> None:
    seen: list[tuple[int, ...]] = []

    def one(images: torch.Tensor, size: tuple[int, int]) -> PixelClasses:
        seen.append(tuple(images.shape[-2:]))
        return PixelClasses(
            torch.full((1, 1, *size), float(len(seen))), torch.zeros(1, *size), torch.zeros(1, *size), 1
        )

    found = SlidingWindow(scales=[1.0, 0.5, 2.0])(one, any_images(64, 96), (64, 96))
    assert seen == [(64, 96), (32, 64), (128, 192)] or seen == [(64, 96), (32, 32), (128, 192)]
    assert (found.by_class == 2).all()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"passes": {"window": [32, 64]}},
        {"passes": {"scales": [1.0, 1.5]}},
        {"clip_classifier": {"ensemble": "geometric"}},
    ],
)
def test_maps_at_any_size(options: dict[str, Any]) -> None:
    method = small_vl4ad(ood_prompts=["caravan"], **options).eval()
    y = method.pixel_classes(any_images(50, 90))
    assert y.by_class.shape == (1, 8, 50, 90) and y.by_class.isfinite().all() and y.num_known == 7
    assert method.pixel_classes(any_images(50, 90), (25, 45)).inside.shape == (1, 25, 45)


# ---- training --------------------------------------------------------------------------------------------------------


def test_segments_leave_void_out() -> None:
    label = torch.tensor([[[0, 13], [255, 13]], [[255, 255], [255, 255]]])
    (classes, masks), nothing = segments(label)
    assert classes.tolist() == [0, 13] and masks.tolist() == [[[1, 0], [0, 0]], [[0, 1], [0, 1]]]
    assert nothing[0].numel() == 0 and nothing[1].shape == (0, 2, 2)


def test_losses_equal_transformers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library computes all three terms itself: same draws, same values."""
    masks, logits = torch.randn(2, 6, 8, 12), torch.randn(2, 6, 20)
    targets = segments(torch.randint(0, 4, (2, 32, 48)))
    method = small_vl4ad()
    weights = {name: term.weight for name, term in method.terms.items()}
    config = Mask2FormerConfig(num_labels=19, train_num_points=64, no_object_weight=0.1)
    config.class_weight, config.mask_weight, config.dice_weight = weights["class"], weights["mask"], weights["dice"]
    theirs = Mask2FormerLoss(config, {})
    torch.manual_seed(0)
    expected = theirs(masks, logits, [part[1] for part in targets], [part[0] for part in targets])
    torch.manual_seed(0)
    ours = method.stage_losses(masks, logits, targets)
    for name, key in (("class", "loss_cross_entropy"), ("mask", "loss_mask"), ("dice", "loss_dice")):
        torch.testing.assert_close(ours[name], expected[key])


def test_images_without_any_class() -> None:
    matched = MaskMatching(points=8, weights={"class": 1.0})(
        torch.randn(1, 3, 4, 4), torch.randn(1, 3, 20), segments(torch.full((1, 16, 16), 255))
    )
    assert matched.classes.tolist() == [[19, 19, 19]] and matched.logits.shape[0] == 0
    method = small_vl4ad()
    batch = first_batch()
    assert batch.semantic is not None
    batch.semantic.fill_(255)
    values = method.losses(batch)
    assert values["mask"] == 0 and values["class"] > 0


def test_draws_depend_on_seed_epoch_and_images_alone() -> None:
    method, batch = small_vl4ad(), first_batch()
    torch.manual_seed(1)
    first = method.losses(batch)
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    second = method.losses(batch)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)
    batch.index += 1
    assert any(not torch.equal(first[name], value) for name, value in method.losses(batch).items())


def test_initial_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(5)
    one = small_vl4ad(classifier="linear")
    torch.manual_seed(6)
    two, other = small_vl4ad(classifier="linear"), small_vl4ad(classifier="linear", seed=1)
    pairs = zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(one.classifier.void, other.classifier.void)
    assert all(value.isfinite().all() for value in one.state_dict().values())
    assert one.classifier.scale.item() == pytest.approx(1 / 0.07)


def test_embeddings_do_not_decay() -> None:
    plain = small_vl4ad().parameter_groups()[1]
    assert plain["weight_decay"] == 0 and len(plain["params"]) == 5  # queries twice, two level tables, void


def test_it_needs_class_labels() -> None:
    batch = first_batch()
    batch.semantic = None
    with pytest.raises(UserError, match="VL4AD learns from class labels"):
        small_vl4ad().losses(batch)


def test_without_losses_it_scores_and_cannot_learn() -> None:
    method = small_vl4ad(losses={}).eval()
    assert method.predict(first_batch("test")).map.shape == (1, 50, 90)
    with pytest.raises(UserError, match="VL4AD learns nothing"):
        method.losses(first_batch())


def test_terms_can_be_left_out() -> None:
    conf = {name: entry for name, entry in loss_conf("vl4ad").items() if name != "dice"}
    assert set(small_vl4ad(losses=build_terms(conf)).losses(first_batch())) == {"class", "mask"}


def test_training_lowers_the_loss_and_stores_the_trunk() -> None:
    """A few steps by Lightning, with the poly schedule; the state holds what was trained, the text tower not."""
    method = small_vl4ad(optimizer=lambda groups: torch.optim.AdamW(groups, lr=2e-3))
    data = road_data(batch_size=4)
    batch = next(iter(data.train_dataloader()))
    before = method.total_loss(method.losses(batch)).item()
    trainer = L.Trainer(
        max_epochs=12, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu",
        enable_model_summary=False, limit_val_batches=0, gradient_clip_val=1.0,
    )  # fmt: skip
    trainer.fit(method, train_dataloaders=data.train_dataloader())
    assert trainer.optimizers[0].param_groups[0]["lr"] < 1e-3
    with torch.no_grad():
        assert method.total_loss(method.losses(batch)).item() < 0.8 * before
    state = method.state_dict()
    trunk = [key for key in state if key.startswith("backbone.")]
    assert trunk and all(key.startswith("backbone.visual.trunk.") for key in trunk)
    fresh = small_vl4ad()
    fresh.check_learned(state, "test")
    fresh.load_state_dict(state, strict=False)
    image = any_images(32, 64)
    torch.testing.assert_close(fresh.pixel_classes(image).by_class, method.pixel_classes(image).by_class)


def test_evaluation_scores_all_of_the_same_masks() -> None:
    method, data = small_vl4ad(components={"min_pred": 5, "min_gt": 2}), road_data()
    trainer = L.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu",
                        enable_model_summary=False)  # fmt: skip
    trainer.test(method, datamodule=data, verbose=False)
    rows = {key.split("/")[0] for key in method.evaluation.result.values}
    assert rows == {
        "max",
        "rba",
        "max_inside",
        "margin",
        "max_softmax",
        "max_softmax_pixel",
        "max_softmax_logits",
        "mean",
    }
    assert method.evaluation.result.values["mean/pixel_ap"] == method.evaluation.result.values["max/pixel_ap"]
    assert (
        0 <= method.evaluation.result.values["mean/known_accuracy"] <= 1
        and 0 < method.evaluation.result.values["mean/prevalence"] < 0.5
    )
    assert len(method.evaluation.result.rows) == 3


def test_merged_classes_are_counted_as_their_group() -> None:
    """A pixel's class is right where its group is: the accuracy of merged columns is at least that of the classes."""
    batch = first_batch("test")
    accuracy = {}
    for merge in ("none", "cityscapes_groups", "surroundings"):
        method = small_vl4ad(merge=merge, components={"min_pred": 1, "min_gt": 1}).eval()
        accuracy[merge] = accuracy_of(method, batch)
    one_group = small_vl4ad(
        merge={"all": list(Vocabulary(TABLE).classes)}, components={"min_pred": 1, "min_gt": 1}
    ).eval()
    assert accuracy_of(one_group, batch) == 1.0 and 0 <= accuracy["none"] <= 1


def accuracy_of(method: VL4AD, batch: Batch) -> float:
    method.evaluation.start(method)
    method.evaluation.update(method, batch)
    return method.evaluation.finish(method).means["known_accuracy"]


def test_the_find_is_named() -> None:
    method = small_vl4ad(ood_prompts=["caravan"]).eval()
    (note,) = method.predict(first_batch("test")).notes
    assert note.removeprefix("most like ") in method.columns.names


def test_void_pixels_do_not_make_the_image_score() -> None:
    method, batch = small_vl4ad().eval(), first_batch("test")
    assert batch.mask is not None
    found = method.predict(batch)
    batch.mask[found.map == found.map.max()] = 255
    assert method.predict(batch).score < found.score
    batch.mask.fill_(255)
    assert torch.equal(method.predict(batch).score, found.map.flatten(1).amax(dim=1))


def test_other_methods_refuse_a_convnext() -> None:
    from anomaly_vlm.methods.anomalyclip import AnomalyCLIP

    with pytest.raises(UserError, match="AnomalyCLIP runs on a ClipBackbone, not on backbone tiny_convnext"):
        AnomalyCLIP(tiny_convnext())  # type: ignore[arg-type]
