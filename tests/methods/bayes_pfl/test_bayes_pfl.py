"""Bayes-PFL's pieces: flows, draws that depend on the image alone, stages, losses, files."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from anomaly_vlm.errors import UserError
from anomaly_vlm.losses import build_terms
from anomaly_vlm.losses.focal import balanced_focal_loss
from anomaly_vlm.losses.prompts import square_orthogonality_loss
from anomaly_vlm.methods.base.published import load_published
from anomaly_vlm.methods.bayes_pfl import BayesPFL
from anomaly_vlm.methods.bayes_pfl.published import REPEATED, key
from anomaly_vlm.methods.bayes_pfl.stages import StageOptions, schedule_of
from tests.support.conf import loss_conf
from tests.support.few_shot import make_batch
from tests.support.tiny import tiny_clip


@pytest.fixture(scope="module")
def clip():
    return tiny_clip(embed_dim=24)  # another width than the text tower's


def build(clip, **options) -> BayesPFL:
    return BayesPFL(clip, losses=build_terms(loss_conf("bayes_pfl")), **{"samples": 2, "flows": 2, **options}).eval()


def images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def training_batch():
    batch = make_batch(images(4), ["gear", "nut", "gear", "nut"])
    batch.label = torch.tensor([0, 1, 0, 1])
    batch.mask = torch.zeros(4, 32, 32, dtype=torch.uint8)
    batch.mask[1::2, 8:20, 8:20] = 1
    return batch


def test_the_flow_is_a_determinant_and_without_steps_the_mean(clip) -> None:
    method = build(clip)
    flow, noise = method.flow_normal, torch.randn(1, clip.text_width, generator=torch.Generator().manual_seed(1))

    def steps(z: torch.Tensor) -> torch.Tensor:
        for k in range(len(flow.amor_u)):
            z = z + flow.amor_u[k] * torch.tanh(flow.amor_w[k] @ z + flow.amor_b[k])
        return z

    draw = flow.draw(method.head_state, noise)
    torch.testing.assert_close(draw.end[0], steps(draw.start[0]))
    jacobian = torch.autograd.functional.jacobian(steps, draw.start[0].detach())
    torch.testing.assert_close(draw.log_det[0], torch.linalg.slogdet(jacobian)[1], rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        flow.amor_u.zero_()
    still = flow.draw(method.head_state, torch.zeros_like(noise))
    assert torch.equal(still.end, still.mean)


def test_an_image_has_one_result_whatever_comes_with_it(clip) -> None:
    method, batch = build(clip), make_batch(images(3), ["gear", "nut", "gear"])
    whole = method.predict(batch)
    alone = make_batch(images(3)[1:2], "nut")
    alone.path[0] = batch.path[1]
    torch.testing.assert_close(method.predict(alone).map, whole.map[1:2], rtol=1e-4, atol=1e-5)
    other = method.predict(replace(alone, path=["another name"]))
    assert not torch.equal(other.map, whole.map[1:2]), "its draws are other ones"
    assert torch.equal(build(clip).predict(batch).score, whole.score)
    again = build(clip, seed=5)
    again.load_state_dict(method.state_dict(), strict=False)
    assert not torch.equal(again.predict(batch).score, whole.score)


def test_stage_two_trains_its_head_alone(clip) -> None:
    method, batch = build(clip, stages={"first": 1, "second": 1}), training_batch()
    before = method.predict(batch).map
    method.total_loss(method.losses(batch)).backward()  # epoch 0 is stage 1
    idle = {name for name, p in method.learnable().items() if p.grad is None or not p.grad.any()}
    assert idle and all(name.startswith(("image_mapping.", "fuse.")) for name in idle)
    method.zero_grad()
    noise = torch.zeros(4, clip.text_width)
    loss = method.second_losses(batch, noise, noise[:1], noise[:1], pair=0)
    assert set(loss) == {"ce"}
    loss["ce"].backward()
    trained = {name.split(".")[0] for name, p in method.learnable().items() if p.grad is not None}
    assert trained == {"class_mapping", "image_mapping", "fuse"}
    torch.optim.SGD(method.parameters(), lr=0.1).step()
    torch.testing.assert_close(method.predict(batch).map, before)


def test_losses_of_the_whole_batch() -> None:
    prob, none = torch.full((2, 3, 3), 0.25), torch.zeros(2, 3, 3)
    some = none.clone()
    some[0, 0, 0] = 1
    normal, abnormal = -(0.25**2) * torch.tensor(0.75).log(), -(0.75**2) * torch.tensor(0.25).log()
    torch.testing.assert_close(balanced_focal_loss(prob, some), normal + abnormal)
    torch.testing.assert_close(balanced_focal_loss(prob, none), normal)
    equal = torch.ones(2, 3, 5)
    torch.testing.assert_close(square_orthogonality_loss(equal), torch.tensor(6 / 9))
    assert square_orthogonality_loss(torch.eye(4)[None]) == 0 == square_orthogonality_loss(torch.ones(2, 1, 5))
    dice = build_terms(loss_conf("bayes_pfl"))["dice"]
    torch.testing.assert_close(dice(prob, some), torch.tensor([1 - 0.5 / 5.5]), rtol=1e-4, atol=1e-5)


def test_rates(clip) -> None:
    method = build(clip)
    rates = {name: method.stages.rate(name) for name in method.learnable()}
    assert rates["prompt_context"] == 1e-3 and rates["temperature_pixel"] == 1e-2 and rates["flow_normal.state"] == 1e-3
    assert rates["head_state.weight_mean.0.weight"] == rates["rca.q_proj_pre.weight"] == 1e-4
    assert sum(len(group["params"]) for group in method.parameter_groups()) == len(rates)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    stages = StageOptions(first=2, second=1, planned=3, warmup=0.2)
    schedule = schedule_of(optimizer, stages, SimpleNamespace(estimated_stepping_batches=30, max_epochs=3))
    found = []
    for _ in range(30):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert found[0] == 0 and found[6] == 1 and found[7] > found[12] > found[19] > 0 and found[20:] == [1.0] * 10


def test_pixels_in_the_score(clip) -> None:
    maps = torch.linspace(0, 1, 90 * 90).view(1, 90, 90)
    count = round(2000 * 90 * 90 / 518**2)
    torch.testing.assert_close(build(clip).top_scores(maps, ["screw"]), maps.flatten()[-count:].mean()[None])
    published = build(clip, top_k="published")
    torch.testing.assert_close(published.top_scores(maps, ["screw"]), maps.flatten()[-20:].mean()[None])
    torch.testing.assert_close(published.top_scores(maps, ["bottle"]), maps.flatten()[-2000:].mean()[None])
    stretched = build(clip, image_score="category_minmax")
    scores = stretched.category_scores(torch.tensor([[0.1, 0.2], [0.3, 0.2], [0.2, 0.6]]))
    torch.testing.assert_close(scores, torch.tensor([0.0, 0.5, 0.75]))
    assert stretched.display_name("bayes_pfl") == "bayes_pfl (scores stretched over the test set)"


def test_published_files_load(clip, tmp_path) -> None:
    method = build(clip)
    stored = {key(method, name): p.detach().clone() for name, p in method.learnable().items()}
    stored["context_decoder.0.weight"] = torch.zeros(2)
    for repeated, original in REPEATED.items():
        name = next(name for name in stored if name.startswith(original))
        stored[repeated + name.removeprefix(original)] = stored[name].clone()
    save_file(stored, tmp_path / "train_visa.safetensors")
    again = load_published(build(clip, seed=4), tmp_path / "train_visa.safetensors")
    assert all(torch.equal(p, again.learnable()[name]) for name, p in method.learnable().items())
    stored[next(name for name in stored if name.startswith("PFL_normal.encoder."))] += 1
    save_file(stored, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"the published file has two different tensors for PFL_normal.encoder"):
        load_published(method, tmp_path / "other.safetensors")


def test_wrong_input_is_rejected(clip) -> None:
    with pytest.raises(
        UserError, match=r"method.rca_heads is 5: tiny has a joint space of 24 channels, give a divisor"
    ):
        build(clip, rca_heads=5)
    with pytest.raises(UserError, match=r"the class word 'gear gear .* fill the 77 positions of the text tower"):
        build(clip).predict(make_batch(images(1), "gear " * 80))
    with pytest.raises(UserError, match=r"method.stages.first and method.stages.second are both 0"):
        build(clip, stages={"first": 0, "second": 0})
