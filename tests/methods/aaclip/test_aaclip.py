"""AA-CLIP's pieces: adapters, V-V attention over the batch, stages, the range of the scores, words, files."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from anomaly_vlm.backbone import ValueAttention
from anomaly_vlm.errors import UserError
from anomaly_vlm.losses import build_terms
from anomaly_vlm.methods.aaclip import AACLIP
from anomaly_vlm.methods.aaclip.published import key
from anomaly_vlm.methods.aaclip.stages import StageOptions, halving
from anomaly_vlm.methods.base.published import load_published
from anomaly_vlm.methods.shared.adapters import MixedAdapter
from tests.support.conf import loss_conf
from tests.support.few_shot import make_batch
from tests.support.tiny import tiny_clip


@pytest.fixture(scope="module")
def clip():
    return tiny_clip()


def build(clip, **options) -> AACLIP:
    return AACLIP(clip, losses=build_terms(loss_conf("aaclip")), **options).eval()


def images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def training_batch():
    batch = make_batch(images(4), ["gear", "nut", "gear", "nut"])
    batch.label = torch.tensor([0, 1, 0, 1])
    batch.mask = torch.zeros(4, 32, 32, dtype=torch.uint8)
    batch.mask[1::2, 8:20, 8:20] = 1
    return batch


def test_the_adapter_mixes_at_the_tokens_length() -> None:
    tokens = torch.rand(2, 5, 8, generator=torch.Generator().manual_seed(0))
    adapter = MixedAdapter(8, weight=0.3)
    with torch.no_grad():
        adapter.factors[0].copy_(7 * torch.eye(8))
    torch.testing.assert_close(adapter(tokens), tokens)  # parallel to the tokens, which are positive
    assert torch.equal(MixedAdapter(8, weight=0.0)(tokens), tokens)
    with torch.no_grad():
        adapter.factors[0].zero_()
    torch.testing.assert_close(adapter(tokens), 0.7 * tokens)
    thin = MixedAdapter(8, weight=0.3, rank=2)
    assert sum(p.numel() for p in thin.parameters()) == 32 and thin(tokens).shape == tokens.shape


def test_without_weight_the_adapted_tower_is_clip(clip) -> None:
    method = build(clip, image_weight=0.0)
    plain = clip.encode_image(images(2), layers=[2])
    adapted = clip.encode_image(images(2), layers=[2], adapters=list(method.image_adapters))
    assert torch.equal(plain.tokens[0], adapted.tokens[0]) and torch.equal(plain.cls, adapted.cls)


def test_vv_attention_over_the_batch_and_over_the_tokens(clip) -> None:
    def tokens(x: torch.Tensor, over: str) -> torch.Tensor:
        return clip.encode_image(x, layers=[1, 4], value_attention=ValueAttention(1, over)).tokens[1]

    x = images(3)
    alone = tokens(x[:1], "batch")
    torch.testing.assert_close(tokens(x[:1].repeat(2, 1, 1, 1), "batch"), alone.repeat(2, 1, 1))
    torch.testing.assert_close(tokens(x.flip(0), "batch"), tokens(x, "batch").flip(0))
    assert (tokens(x, "batch")[:1] - alone).abs().max() > 1e-3, "neighbours change it"
    torch.testing.assert_close(tokens(x, "tokens")[:1], tokens(x[:1], "tokens"))
    ordinary = clip.encode_image(x, layers=[1]).tokens[0]
    torch.testing.assert_close(clip.encode_image(x, layers=[1], value_attention=ValueAttention(1)).tokens[0], ordinary)


def test_each_stage_trains_its_own_matrices(clip) -> None:
    method, batch = build(clip), training_batch()
    for stage, part in ((method.text_losses, "text."), (method.image_losses, "image")):
        method.zero_grad()
        method.total_loss(stage(batch)).backward()
        trained = {name for name, p in method.learnable().items() if p.grad is not None}
        other = {"text.": ("image", "patch_projections"), "image": ("text.",)}[part]
        assert trained and not any(name.startswith(other) for name in trained)
    assert not any(p.requires_grad for p in clip.parameters())
    method.zero_grad()
    method.image_losses(batch)["ce"].backward()
    assert {name for name, p in method.learnable().items() if p.grad is not None} >= {"image_projection"}
    assert method.patch_projections[0].grad is None


def test_published_stage_one_trains_on_the_last_level_alone(clip) -> None:
    first, second = build(clip), build(clip, layers=[1, 4])
    second.load_state_dict({k: v for k, v in first.state_dict().items() if k.startswith("text.")}, strict=False)
    torch.testing.assert_close(first.text_losses(training_batch()), second.text_losses(training_batch()))
    every = build(clip, stage1_levels="paper").text_losses(training_batch())
    assert every["focal"] > first.text_losses(training_batch())["focal"]


def test_the_range_of_the_scores(clip, caplog) -> None:
    method, batch = build(clip), make_batch(images(6), ["gear"] * 6)
    with caplog.at_level(logging.WARNING, logger="anomaly_vlm"):
        unknown = method.predict(batch)
    assert "the image score is the map's maximum" in caplog.text
    torch.testing.assert_close(unknown.score, unknown.map.flatten(1).amax(dim=1))
    method.calibrate([batch])
    known = method.predict(batch)
    alone = method.predict(make_batch(images(6)[2:3], ["gear"]))
    torch.testing.assert_close(alone.score, known.score[2:3], rtol=1e-4, atol=1e-5)
    assert known.map.min() == 0 and known.map.max() == 1
    stretched = build(clip, image_score="category_minmax")
    stretched.load_state_dict(method.state_dict(), strict=False)
    components = stretched.predict(batch).score_components
    assert torch.equal(stretched.category_scores(components).argsort(), known.score.argsort())
    single = stretched.category_scores(components[:1])
    torch.testing.assert_close(single, torch.tensor([0.5]))
    assert stretched.display_name("aaclip") == "aaclip (scores stretched over the test set)"
    medical = build(clip, domain="medical", image_score="map_max")
    larger = make_batch(torch.nn.functional.interpolate(images(2), (40, 40)), "gear")
    torch.testing.assert_close(medical.predict(larger).score, medical.predict(larger).map.flatten(1).amax(dim=1))


def test_class_words(clip) -> None:
    words = {kind: build(clip, class_words=kind).sentences for kind in ("described", "plain", "object")}
    assert (
        words["described"].word("pill").startswith("oval white pill")
        and words["described"].word("my_part") == "my part"
    )
    assert words["plain"].word("metal_nut") == "metal nut" and words["object"].word("pill") == "object"
    normal, abnormal = words["plain"].sides("gear")
    assert normal[:2] == ["gear.", "a photo of gear."] and len(normal) == 6 and len(abnormal) == 10


def test_the_image_rate_is_halved_at_steps_of_stage_two() -> None:
    stages = StageOptions(text=2, image=3, milestones=(4, 6))
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in (1.0, 8.0)]
    optimizer = torch.optim.SGD(groups)
    schedule = halving(optimizer, stages, SimpleNamespace(estimated_stepping_batches=25, max_epochs=5), adapt_text=True)
    rates = []
    for _ in range(20):
        optimizer.step()
        rates.append([group["lr"] for group in optimizer.param_groups])
        schedule.step()
    assert [rate for rate, _ in rates] == [1.0] * 20
    assert [rate for _, rate in rates] == [8.0] * 14 + [4.0] * 2 + [2.0] * 4  # stage 2 starts at step 10


@pytest.mark.parametrize("relu", [False, True])
def test_published_files_load(clip, tmp_path, relu: bool) -> None:
    method = build(clip, projection_relu=relu)
    stored = {key(method, name): p.detach().clone() for name, p in method.learnable().items()}
    for entry in ("text_adapter", "image_adapter"):
        part = {k.removeprefix(f"{entry}."): v for k, v in stored.items() if k.startswith(entry)}
        save_file(part, tmp_path / f"{entry}.safetensors")
    again = load_published(build(clip, projection_relu=relu, seed=5), tmp_path)
    assert all(torch.equal(p, again.learnable()[name]) for name, p in method.learnable().items())
    del part["det_proj.fc.weight" if not relu else "det_proj.fc.0.weight"]
    save_file(part, tmp_path / "image_adapter.safetensors")
    assert load_file(tmp_path / "image_adapter.safetensors")
    with pytest.raises(
        UserError, match=r"the published files do not fit AACLIP as configured: missing image_adapter.det"
    ):
        load_published(method, tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_adapt_until": 5}, r"method.image_adapt_until is 5: the tower has 4 blocks"),
        ({"stages": {"text": 0, "image": 0}}, r"method.stages.text and method.stages.image are both 0"),
        ({"image_weight": 1.5}, r"method.image_weight is 1.5"),
    ],
)
def test_wrong_options_are_rejected(clip, options, message) -> None:
    with pytest.raises(UserError, match=message):
        build(clip, **options)


def test_a_grid_too_small_for_the_gaussian(clip) -> None:
    with pytest.raises(
        UserError, match=r"an image of 3 x 3 patches is too small for the Gaussian of 7: set image_size to 32"
    ):
        build(clip).predict(make_batch(images(1)[..., :24, :24], "gear"))
