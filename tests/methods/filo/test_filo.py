"""FiLo's rules on hand-made cases, its options against their formulas, its two stages, its token cache."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from anomaly_vlm.backbone import ClipBackbone, load_backbone
from anomaly_vlm.caching.tokens import TokenCache
from anomaly_vlm.data.types import Batch
from anomaly_vlm.detectors import ComponentsDetector, Detections
from anomaly_vlm.errors import UserError
from anomaly_vlm.losses import build_terms
from anomaly_vlm.methods.base.published import layout_of, load_published
from anomaly_vlm.methods.filo.boxes import best_box, cell, damped, position_of, with_valid_phrases
from anomaly_vlm.methods.filo.maps import MapOptions, blurred, joined, probabilities
from anomaly_vlm.methods.filo.method import ABLATIONS, FiLo
from anomaly_vlm.methods.filo.mmci import MMCI, convolve
from anomaly_vlm.methods.filo.stages import StageOptions
from tests.support.conf import loss_conf, method_conf
from tests.support.filo import StoredDetector, build, give_detections, info, make_batch
from tests.support.golden import Fixture, fixture_paths
from tests.support.tiny import tiny_architecture

TINY = tiny_architecture(text_width=32, embed_dim=32)


@pytest.fixture(scope="module")
def clip() -> ClipBackbone:
    return load_backbone("tiny", architecture=TINY, random_seed=0)


def make(clip: ClipBackbone, **options: Any) -> FiLo:
    """The shipped configuration on a tiny backbone."""
    conf = method_conf("filo")
    for key in ("_target_", "seed", "stages"):
        conf.pop(key)
    losses = build_terms(options.pop("loss", None) or loss_conf("filo"))
    return FiLo(clip, losses=losses, **{**conf, **options}).eval()


def batch(count: int = 2, category: str = "metal nut") -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, 32, 32, generator=generator)
    mask = torch.zeros(count, 32, 32, dtype=torch.uint8)
    mask[0, 4:12, 8:20] = 1
    names = [f"image {i}" for i in range(count)]
    label = mask.flatten(1).any(dim=1).long()
    return Batch(images, label, mask, [category] * count, names, torch.arange(count), list(names))


def boxes(
    rows: list[list[float]], scores: list[float], phrases: list[str] | None = None, valid: Any = True
) -> Detections:
    flags = torch.tensor([valid] * len(rows) if isinstance(valid, bool) else valid)
    return Detections(torch.tensor(rows), torch.tensor(scores), tuple(phrases or ["anomaly"] * len(rows)), flags)


# ---- boxes -----------------------------------------------------------------------------------------------------------


def test_a_box_is_valid_by_one_whole_entry() -> None:
    found = boxes([[0.0, 0, 1, 1]] * 4, [0.5] * 4, ["cracks on metal", "excessive wear", "fungal growth", "crack"])
    words = ["cracks", "excessive wear on contact surfaces", "Fungal growth"]
    assert with_valid_phrases(found, words, "published").valid.tolist() == [True, False, False, False]
    assert with_valid_phrases(found, words, "casefold").valid.tolist() == [True, False, True, False]
    assert with_valid_phrases(found, ["crack "], "published").valid.tolist() == [False] * 4
    assert with_valid_phrases(found, ["crack "], "casefold").valid.tolist() == [True, False, False, True]


def test_scores_are_cut_and_the_later_box_wins() -> None:
    found = boxes([[0.0, 0, 1, 1]] * 3, [0.519, 0.511, 0.9], valid=[True, True, False])
    assert best_box(found, 2) == 1  # both are 0.51, the best one is invalid
    assert best_box(found, None) == 0
    assert best_box(boxes([[0.0, 0, 1, 1]], [0.5], valid=False), 2) is None


@pytest.mark.parametrize(
    ("value", "reference", "thirds"),
    [(0, 0, 0), (172, 0, 0), (172.4, None, 0), (173, 1, 1), (344, 1, 1), (344.9, None, 1), (345, 2, 1), (517, 2, 2),
     (517.5, None, 2), (-0.1, None, 0), (600, None, 2)],
)  # fmt: skip
def test_cells_of_518_pixels(value: float, reference: int | None, thirds: int) -> None:
    assert cell(value, 518, "published") == reference
    assert cell(value, 518, "thirds") == thirds


def test_positions_run_row_by_row() -> None:
    assert position_of(None, (518, 518), "published") == 4
    assert position_of(torch.tensor([400.0, 0, 500, 100]), (518, 518), "published") == 2  # top right
    assert position_of(torch.tensor([0.0, 400, 100, 500]), (518, 518), "published") == 6  # bottom left
    assert position_of(torch.tensor([0.0, 0, 344.8, 100]), (518, 518), "published") is None


def test_the_map_outside_boxes_is_damped() -> None:
    heat = torch.ones(4, 4)
    inside = damped(heat, boxes([[1.9, 0.5, 3.2, 2.0]], [0.5]), 0.5, clip_boxes=False)
    expected = torch.full((4, 4), 0.5)
    expected[0:2, 1:3] = 1.0
    assert torch.equal(inside, expected)
    assert torch.equal(damped(heat, boxes([[0.0, 0, 4, 4]], [0.5], valid=False), 0.5, clip_boxes=False), heat * 0.5)
    low = boxes([[-1.2, 0.0, 2.0, 4.0]], [0.5])  # an edge of -1 counts from the other side: an empty slice
    assert torch.equal(damped(heat, low, 0.5, clip_boxes=False), heat * 0.5)
    assert damped(heat, low, 0.5, clip_boxes=True)[:, :2].eq(1).all()


# ---- MMCI ------------------------------------------------------------------------------------------------------------


def test_one_convolution_is_the_sum_of_all() -> None:
    torch.manual_seed(0)
    head = MMCI(5, 3, [[1, 1], [3, 3], [1, 5], [7, 1]]).double()
    tokens = torch.randn(2, 12, 5, dtype=torch.double, requires_grad=True)
    apart = head.branches(tokens, (3, 4)).sum(dim=0)
    weight, bias = head.merged()
    assert weight.shape == (3, 5, 7, 5)
    together = convolve(tokens, (3, 4), weight, bias)
    torch.testing.assert_close(together, apart)
    wanted = [tokens, *head.parameters()]
    direction = torch.randn_like(apart)
    for one, other in zip(*(torch.autograd.grad(out, wanted, direction) for out in (together, apart)), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kernels", [[], [[2, 2]], [[3, 3], [3, 3]]])
def test_wrong_kernels(kernels: list[list[int]]) -> None:
    with pytest.raises(UserError, match=r"method\.mmci\.kernels"):
        MMCI(4, 4, kernels)


def test_heads_of_other_tokens_than_the_shared_ones(clip: ClipBackbone) -> None:
    """Each MMCI head sees its own layer's tokens where tokens are kept per layer."""
    method = make(clip, token_capture="paper")
    assert method.token_list.names == ["o1", "v2", "o2", "v3", "o3", "v4", "o4"]
    tokens = method.encode_frozen(batch().image)
    out = clip.encode_image(batch().image, layers=[1, 2, 3, 4], vv_from=1)
    for layer in (2, 3, 4):
        torch.testing.assert_close(tokens[f"v{layer}"], out.patches[layer - 1])
        torch.testing.assert_close(tokens[f"o{layer}"], out.ordinary[layer - 1][:, 1:])
    heads = method.heads(tokens, (4, 4))
    for i, name in enumerate(method.heads.mmci_names):
        head = method.heads.mmci[i]
        assert isinstance(head, MMCI)
        expected = F.normalize(head.branches(tokens[name], (4, 4)).sum(dim=0), dim=-1)
        torch.testing.assert_close(heads[4 + i][0], expected)


# ---- options against their formulas ----------------------------------------------------------------------------------


def parts(method: FiLo, one: Batch) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Feature, pairs over all positions, heads."""
    with torch.no_grad():
        tokens = method.frozen_tokens(one)
        feature = method.feature(tokens["cls"], adapted=True)
        return (
            feature,
            method.pairs(method.sentence_features(one.category, feature)),
            method.heads(tokens, method.grid(one)),
        )


def test_similarities_of_branches_are_averaged(clip: ClipBackbone) -> None:
    method, one = make(clip, mmci={"fuse": "paper"}), batch()
    _, pairs, heads = parts(method, one)
    assert [len(head) for head in heads] == [1] * 4 + [6] * 3
    maps = probabilities(method.map_logits(heads, pairs, (4, 4), (32, 32)))
    logits = 100 * torch.einsum("kbnc,bpc->kbpn", heads[5], pairs).unflatten(-1, (4, 4))
    large = F.interpolate(logits.flatten(0, 1), size=(32, 32), mode="bilinear", align_corners=True)
    expected = large.unflatten(0, (6, 2)).softmax(dim=2)[:, :, 1].mean(dim=0)
    torch.testing.assert_close(maps[5], expected, rtol=1e-4, atol=1e-6)


def test_maps_are_scaled_before_their_mean() -> None:
    maps = torch.rand(3, 2, 32, 32, generator=torch.Generator().manual_seed(0))
    paper, published = MapOptions(scaling="paper"), MapOptions()
    expected = torch.zeros(2, 32, 32)
    for m in blurred(maps, paper):
        for i, row in enumerate(m):
            expected[i] += (row - row.min()) / (row.max() - row.min()) / 3
    torch.testing.assert_close(joined(maps, paper), expected)
    torch.testing.assert_close(joined(maps, published), blurred(maps, published).mean(dim=0))
    assert torch.isfinite(joined(torch.zeros(1, 1, 32, 32), paper)).all()


def test_scores(clip: ClipBackbone) -> None:
    similarity, heat = torch.tensor([[0.2, 0.27]]), torch.full((1, 4, 4), 0.5)
    raw, soft = make(clip), make(clip, score="paper")
    assert raw.image_score(similarity, heat).item() == pytest.approx((0.27 + 0.5) / 2)
    expected = (similarity / 0.07).softmax(dim=-1)[0, 1].item()
    assert soft.image_score(similarity, heat).item() == pytest.approx((expected + 0.5) / 2)


def test_the_pairs_norm(clip: ClipBackbone) -> None:
    _, coupled, _ = parts(make(clip), batch())
    _, free, _ = parts(make(clip, texts={"pair_norm": "paper"}), batch())
    torch.testing.assert_close(free.norm(dim=-1), torch.ones(2, 2))
    torch.testing.assert_close(coupled * 2**0.5, free)


def test_chosen_position_alone_is_that_row_of_all_nine(clip: ClipBackbone) -> None:
    method, one = make(clip), batch()
    with torch.no_grad():
        feature = method.feature(method.frozen_tokens(one)["cls"], adapted=True)
        nine, chosen = (
            method.sentence_features(one.category, feature),
            method.sentence_features(one.category, feature, [3, 8]),
        )
        torch.testing.assert_close(method.pairs(chosen), method.pairs(nine, [3, 8]), rtol=1e-4, atol=1e-5)
    assert chosen[0].abnormal.shape[1] == 1 and nine[0].abnormal.shape[1] == 9


def test_images_of_a_batch_do_not_touch_each_other(clip: ClipBackbone) -> None:
    method, both = make(clip, detector=ComponentsDetector()), batch(3)
    both.category[1] = "carpet"
    together = method.predict(both)
    for i in range(3):
        single = replace(
            both,
            unencoded=both.unencoded[i : i + 1],
            category=both.category[i : i + 1],
            path=both.path[i : i + 1],
            key=[None],
        )
        alone = method.predict(single)
        torch.testing.assert_close(together.map[i], alone.map[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together.score[i], alone.score[0], rtol=1e-4, atol=1e-5)


def test_boxes_from_the_methods_own_map(clip: ClipBackbone) -> None:
    detector, one = ComponentsDetector(), batch()
    method = make(clip, detector=detector)
    feature, pairs, heads = parts(method, one)
    coarse = method.joined_map(heads, pairs, (4, 4), (32, 32))
    found = [detector.boxes(m) for m in coarse]
    positions = [position_of(f.boxes[0] if len(f) else None, (32, 32), "published") for f in found]
    with torch.no_grad():
        pairs = method.pairs(method.sentence_features(one.category, feature), positions)
    heat = method.joined_map(heads, pairs, (4, 4), (32, 32))
    expected = torch.stack([damped(m, f, 0.7, clip_boxes=False) for m, f in zip(heat, found, strict=True)])
    prediction = method.predict(one)
    torch.testing.assert_close(prediction.map, expected)
    torch.testing.assert_close(prediction.score, method.image_score(method.similarity(feature, pairs), heat))
    assert len(found[0]) > 0 and torch.equal(prediction.boxes[0], found[0].boxes)
    assert make(clip).predict(one).boxes == ()


def test_results_say_what_had_a_part_in_them(clip: ClipBackbone) -> None:
    assert make(clip, detector=ComponentsDetector()).display_name("filo") == "filo (components)"
    assert make(clip).display_name("filo") == "filo (no detector)"
    assert make(clip, detector=StoredDetector()).display_name("filo") == "filo"


def test_images_that_the_detector_has_not_seen(clip: ClipBackbone) -> None:
    with pytest.raises(UserError, match="no detections of image 'image 0'"):
        make(clip, detector=StoredDetector()).predict(batch())


# ---- ablations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ABLATIONS)
def test_each_part_can_be_left_out(clip: ClipBackbone, part: str) -> None:
    method, whole = (make(clip, detector=ComponentsDetector(), without=left) for left in ([part], []))
    one = batch()
    assert torch.isfinite(method.predict(one).map).all()
    assert not torch.equal(method.predict(one).map, whole.predict(one).map)
    method.train()
    total = method.total_loss(method.losses(one))
    total.backward()
    assert torch.isfinite(total)
    normal, abnormal = method.sentences.lines("metal nut")
    assert len(normal) == 7
    assert len(abnormal) == {"fg_des": 5 * 9, "position_prompt": 8 + 5}.get(part, (8 + 5) * 9)
    assert (method.detector is None, len(method.heads.mmci)) == (part == "grounding", 0 if part == "mmci" else 3)
    assert (method.adapter is None) == (part == "adapter")
    method.zero_grad(set_to_none=True)


def test_published_weights_without_the_parts_left_out(clip: ClipBackbone, tmp_path: Path) -> None:
    whole = make(clip, seed=1)
    state = {layout_of(whole).key(whole, name): p.detach().clone() for name, p in whole.learnable().items()}
    extra = {"clip_model.visual.proj": torch.zeros(1), "text_encoder.ln_final.bias": torch.zeros(1)}
    torch.save({"filo": {**state, **extra}}, tmp_path / "filo.pth")
    for without in ([], ["mmci"], ["adapter"]):
        method = load_published(make(clip, without=without), tmp_path / "filo.pth")
        for name, parameter in method.learnable().items():
            assert torch.equal(parameter, dict(whole.named_parameters())[name]), name
    expected = {
        "normal_prompt_learner.ctx",
        "abnormal_prompt_learner.meta_net.linear2.bias",
        "decoder_linear.fc.3.weight",
    }
    assert {*expected, "decoder_cov.fc_15.2.bias", "adapter.fc.2.weight"} <= state.keys()
    torch.save({"filo": {**state, "decoder_linear.fc.9.weight": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"surplus decoder_linear\.fc\.9\.weight"):
        load_published(make(clip), tmp_path / "other.pth")


# ---- stages ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epochs", "first"), [(20, 15), (None, 15), (30, 15), (4, 3), (2, 1), (1, 1), (8, 6), (19, 14)]
)
def test_a_shorter_run_keeps_the_proportion_of_the_stages(epochs: int | None, first: int) -> None:
    assert StageOptions(epochs=epochs).first_in_run == first
    assert StageOptions(epochs=epochs, second=0).first_in_run == 15
    assert StageOptions(epochs=epochs, first=0).first_in_run == 0


class Spy(L.Callback):
    """What changes in each epoch."""

    def __init__(self) -> None:
        self.changed: list[set[str]] = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.before = {name: p.detach().clone() for name, p in pl_module.named_parameters() if p.requires_grad}

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        now = dict(pl_module.named_parameters())
        self.changed.append({n.split(".")[0] for n, old in self.before.items() if not torch.equal(old, now[n])})


def fit(method: FiLo, epochs: int, **options: Any) -> list[set[str]]:
    spy = Spy()
    trainer = L.Trainer(
        max_epochs=epochs, callbacks=[spy], logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu", **options,
    )  # fmt: skip
    trainer.fit(method.train(), DataLoader([batch()], batch_size=None))
    return spy.changed


OPTIMIZER = partial(torch.optim.AdamW, betas=(0.5, 0.999), weight_decay=0.01)


@pytest.mark.filterwarnings("ignore")  # Lightning's advice about loaders and devices
def test_heads_and_prompts_first_then_the_adapter(clip: ClipBackbone) -> None:
    learned = {"normal", "abnormal", "heads"}
    method = make(clip, stages={"epochs": 3, "first": 2, "second": 1}, optimizer=OPTIMIZER)
    assert fit(method, 3) == [learned, learned, {"adapter"}]
    joint = make(clip, stages={"schedule": "paper", "epochs": 1}, optimizer=OPTIMIZER)
    assert fit(joint, 1) == [{*learned, "adapter"}]
    bare = make(clip, stages={"epochs": 3, "first": 2, "second": 1}, without=["adapter"], optimizer=OPTIMIZER)
    assert fit(bare, 3) == [learned, learned], "without an adapter the run ends with stage 1"


def test_rates_of_the_groups(clip: ClipBackbone) -> None:
    optimizer = make(
        clip, stages={"lr_heads": 0.1, "lr_prompts": 0.2, "lr_adapter": 0.3}, optimizer=OPTIMIZER
    ).configure_optimizers()
    method = make(clip)
    counts = {group["lr"]: sum(p.numel() for p in group["params"]) for group in optimizer.param_groups}
    modules: dict[float, list[nn.Module]] = {0.1: [method.heads], 0.2: [method.normal, method.abnormal]}
    assert method.adapter is not None
    modules[0.3] = [method.adapter]
    assert counts == {rate: sum(p.numel() for m in found for p in m.parameters()) for rate, found in modules.items()}


def test_losses_that_a_stage_lacks(clip: ClipBackbone) -> None:
    conf = loss_conf("filo")
    with pytest.raises(UserError, match="neither 'focal' nor 'dice'"):
        make(clip, loss={"image": conf["image"]}, optimizer=OPTIMIZER).configure_optimizers()
    maps = {key: conf[key] for key in ("focal", "dice")}
    with pytest.raises(UserError, match="no term 'image'"):
        make(clip, loss=maps, optimizer=OPTIMIZER).configure_optimizers()
    assert make(clip, loss=maps, without=["adapter"], optimizer=OPTIMIZER).configure_optimizers()


def test_the_joint_loss_trains_everything_at_once(clip: ClipBackbone) -> None:
    method = make(clip, stages={"schedule": "paper"}).train()
    values = method.losses(batch())
    assert values.keys() == {"focal", "dice", "image"}
    method.total_loss(values).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in method.learnable().values())
    method.zero_grad(set_to_none=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"token_capture": "x"}, r"unknown method\.token_capture 'x': choose one of paper, published"),
        ({"mmci": {"fuse": "x"}}, r"unknown method\.mmci\.fuse 'x'"),
        ({"mmci": {"fused": True}}, r"unknown key of method\.mmci 'fused'"),
        ({"without": ["boxes"]}, r"unknown method\.without\[0\] 'boxes': choose one of adapter"),
        ({"boxes": {"cells": "x"}}, r"unknown method\.boxes\.cells"),
        ({"boxes": {"phrase_match": "x"}}, r"unknown method\.boxes\.phrase_match"),
        ({"boxes": {"score_cut": -1}}, r"method\.boxes\.score_cut is -1: give a whole number of at least 0"),
        (
            {"boxes": {"box_threshold": 1.5}},
            r"method\.boxes\.box_threshold is 1\.5: give a finite number of at least 0",
        ),
        ({"maps": {"kernel": 4}}, r"method\.maps\.kernel is 4: give an odd number"),
        ({"texts": {"context_length": 0}}, r"method\.texts\.context_length is 0"),
        ({"texts": {"class_list": "x"}}, r"unknown method\.texts\.class_list"),
        ({"texts": {"class_text": "x"}}, r"unknown method\.texts\.class_text"),
        ({"n_plain": 4}, r"method\.n_plain is 4"),
        ({"adapter": {"reduction": 0}}, r"method\.adapter\.reduction is 0"),
        ({"stages": {"first": 0, "second": 0}}, "both 0"),
        ({"layers": [1, 9]}, "vision blocks 1 to 4"),
        ({"n_ctx": 3}, "unknown option of FiLo 'n_ctx'"),
    ],
)
def test_wrong_options(clip: ClipBackbone, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(clip, **options)


# ---- frozen tokens ---------------------------------------------------------------------------------------------------


@pytest.mark.golden
@pytest.mark.parametrize("path", fixture_paths("filo"), ids=lambda path: path.stem)
def test_tokens_from_the_cache_change_nothing(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fixture = Fixture(path)
    method, whole = build(fixture, "", tmp_path), make_batch(fixture)
    give_detections(method, fixture, info(fixture, path))
    expected = method.predict(whole)
    loss = method.total_loss(method.losses(whole)).item()
    cache = method.token_cache = TokenCache(method.cache_key() or {}, folder=tmp_path / "cache")
    method.predict(whole)
    served = replace(whole, unencoded=whole.image[:0], tokens=[cache.get(key) for key in whole.key])
    assert served.tokens is not None and all(entry is not None for entry in served.tokens)
    monkeypatch.setattr(FiLo, "encode_frozen", lambda self, images: pytest.fail("an image passed the tower"))
    again = method.predict(served)
    torch.testing.assert_close(again.map, expected.map, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(again.score, expected.score, rtol=1e-6, atol=1e-7)
    assert method.total_loss(method.losses(served)).item() == pytest.approx(loss, rel=1e-6)
