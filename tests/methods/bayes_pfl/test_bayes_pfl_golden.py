"""Bayes-PFL against the published program: flows, texts, both stages, scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from anomaly_vlm.data.types import Batch
from anomaly_vlm.losses import build_terms
from anomaly_vlm.methods.base.published import load_published
from anomaly_vlm.methods.bayes_pfl import BayesPFL
from anomaly_vlm.methods.bayes_pfl.flows import divergences
from anomaly_vlm.methods.bayes_pfl.published import key as published_key
from anomaly_vlm.methods.shared.maps import gaussian_smooth
from tests.support.conf import loss_conf
from tests.support.few_shot import make_batch
from tests.support.golden import Fixture, fixture_paths, golden_backbone

pytestmark = pytest.mark.golden
NAMES = ("layers", "prompts", "context_tokens", "state_tokens", "flows", "samples", "rca_heads")
NAMES += ("state_log_det", "stage", "sigma", "top_k", "image_score")


def build(fixture: Fixture, group: str, folder: Path) -> BayesPFL:
    o = fixture.options(group)
    backbone = golden_backbone(
        fixture.settings["backbone"],
        pos_resize=o["pos_resize"],
        activation=o["activation"],
        image_size=fixture.settings["image_size"],
    )
    conf = loss_conf("bayes_pfl")
    conf["kl"]["weight"] = o["kl_weight"]
    stages = {name: o[name] for name in ("lr_prompts", "lr_temperatures", "lr_flows", "lr_rest")}
    method = BayesPFL(backbone, losses=build_terms(conf), stages=stages, **{name: o[name] for name in NAMES})
    path = folder / "weights.safetensors"
    save_file(fixture.inputs("ckpt/"), path)
    return load_published(method, path).eval()


def whole_batch(fixture: Fixture) -> Batch:
    names = fixture.options()["categories"]
    batch = make_batch(fixture.input("in/images"), [names[i] for i in fixture.input("in/category").tolist()])
    batch.label, batch.mask = fixture.input("in/label").long(), fixture.input("in/mask").to(torch.uint8)
    return batch


def part_of(batch: Batch, rows: list[int]) -> Batch:
    assert batch.mask is not None
    part = make_batch(batch.image[rows], [batch.category[i] for i in rows])
    part.label, part.mask = batch.label[rows], batch.mask[rows]
    return part


@pytest.mark.parametrize("path", fixture_paths("bayes_pfl"), ids=lambda path: path.stem)
def test_bayes_pfl_matches_the_published_program(path: Path, tmp_path: Path) -> None:
    fixture = Fixture(path)
    batch = whole_batch(fixture)
    first = part_of(batch, fixture.options()["train_batch"])
    noise = [fixture.input(f"in/eps_train_{name}") for name in ("context", "normal", "abnormal")]
    check_draws(fixture, build(fixture, "", tmp_path), first, noise)
    check_first_stage(fixture, build(fixture, "", tmp_path), first, noise)
    check_second_stage(fixture, build(fixture, "", tmp_path), first, noise)
    method = build(fixture, "state_log_det", tmp_path)
    draws = method.draws(method.frozen_tokens(first), *noise)
    fixture.check(
        "state_log_det/kl", divergences(draws, method.terms["kl"], published=method.state_log_det == "published")
    )
    with torch.no_grad():
        for group in ["", *fixture.settings["groups"]]:
            check_test(fixture, group, build(fixture, group, tmp_path), batch)
    fixture.finish()


@torch.no_grad()
def check_draws(fixture: Fixture, method: BayesPFL, batch: Batch, noise: list[Tensor]) -> None:
    tokens = method.frozen_tokens(batch)
    side = batch.size[0] // method.backbone.patch_size
    patches = [tokens[f"block_{layer}"] for layer in method.layers]
    values = {"image_raw": tokens["cls"], "patches_0": patches[0][:1], "fuse": method.fuse(patches)}
    values["pos_embed_resized"] = method.backbone.positions((side, side))
    for name, value in values.items():
        fixture.check(f"mid/{name}", value)
    draws = method.draws(tokens, *noise)
    for name, draw in zip(("context", "normal", "abnormal"), draws, strict=True):
        found = {"mean": draw.mean, "var": draw.variance, "zk": draw.end, "log_det": draw.log_det}
        for kind, value in found.items():
            if fixture.has(key := f"stage1/{kind}_{name}"):
                fixture.check(key, value)
    fixture.check("stage1/kl", divergences(draws, method.terms["kl"], published=method.state_log_det == "published"))


def check_first_stage(fixture: Fixture, method: BayesPFL, batch: Batch, noise: list[Tensor]) -> None:
    o, tokens = fixture.options(), method.frozen_tokens(batch)
    pair = o["prompt_index"]
    texts = method.drawn_texts(tokens, batch.category, noise[0][:, None], noise[1], noise[2])
    fixture.check("stage1/text", texts.flatten(1, 2))
    fixture.check("stage1/image_logits", method.image_logits(tokens, texts, stage=1).flatten(1))
    assert batch.mask is not None
    mask = (batch.mask == 1).float()
    maps = [level[:, pair] for level in method.level_maps(tokens, texts, batch.size)]
    fixture.check("stage1/abnormal_map_0", maps[0][:1])
    for name in ("focal", "dice"):
        fixture.check(f"stage1/{name}", torch.stack([method.terms[name](level, mask).mean() for level in maps]))
    losses = method.first_losses(batch, *noise, pair=pair)
    fixture.check("stage1/cross_entropy", losses["ce"])
    fixture.check("stage1/orthogonal", losses["texts"])
    total = method.total_loss(losses)
    fixture.check("stage1/total", total)
    optimizer = torch.optim.Adam(method.parameter_groups(), betas=tuple(o["betas"]))
    total.backward()
    check_gradients(fixture, "stage1", method)
    optimizer.step()
    for name, parameter in method.learnable().items():
        if fixture.has(key := f"stage1/after/{published_key(method, name)}"):
            fixture.check(key, cut(parameter, fixture.tensors[key]))


def check_second_stage(fixture: Fixture, method: BayesPFL, batch: Batch, noise: list[Tensor]) -> None:
    tokens, pair = method.frozen_tokens(batch), fixture.options()["prompt_index"]
    with torch.no_grad():
        texts = method.drawn_texts(tokens, batch.category, noise[0][:, None], noise[1], noise[2])
        fixture.check("stage2/image_logits", method.image_logits(tokens, texts, stage=2).flatten(1))
    losses = method.second_losses(batch, *noise, pair=pair)
    fixture.check("stage2/cross_entropy", losses["ce"])
    method.total_loss(losses).backward()
    check_gradients(fixture, "stage2", method)


def cut(value: Tensor, expected: Tensor) -> Tensor:
    """The first rows that the fixture holds of a large matrix; a state flow's parameters in the published shape."""
    if value.numel() == expected.numel():
        return value.reshape(expected.shape)
    return value[: len(expected)]


def check_gradients(fixture: Fixture, stage: str, method: BayesPFL) -> None:
    """Gradients, of large matrices the first rows and the norm; what has none in the fixture has none here."""
    for name, parameter in method.learnable().items():
        key = published_key(method, name)
        if not fixture.has(full := f"{stage}/grad/{key}"):
            assert parameter.grad is None or not parameter.grad.any(), f"{stage}: {name} has a gradient"
            continue
        assert parameter.grad is not None, name
        fixture.check(full, cut(parameter.grad, fixture.tensors[full]))
        if fixture.has(norm := f"{stage}/grad_norm/{key}"):
            fixture.check(norm, parameter.grad.norm())


def check_test(fixture: Fixture, group: str, method: BayesPFL, batch: Batch) -> None:
    """Probabilities and maps under the given draws, and the scores made of them."""
    prefix = f"{group}/" if group else "out/"
    noise: Any = [fixture.input(f"in/eps_test_{name}") for name in ("context", "normal", "abnormal")]
    probability, maps = method.probabilities(batch, *noise)
    for name, value in (
        ("image_prob", probability),
        ("map", maps),
        ("map_smooth", gaussian_smooth(maps, method.sigma)),
    ):
        if fixture.has(key := f"{prefix}{name}"):
            fixture.check(key, value[: len(fixture.tensors[key])])
    tokens = method.frozen_tokens(batch)
    texts = method.drawn_texts(tokens, batch.category, *noise).flatten(1, 2)
    for row in range(len(batch)):
        if fixture.has(key := f"{prefix}text_{row}"):
            fixture.check(key, texts[row : row + 1])
    top = method.top_scores(maps, batch.category)
    if fixture.has(key := f"{prefix}score"):
        fixture.check(key, top)
    if not fixture.has(key := f"{prefix}image_score"):
        return
    if method.image_score == "mean":
        fixture.check(key, (probability + top) / 2)
        return
    components, scores = torch.stack([probability, top], dim=1), torch.empty(len(batch))
    for category in dict.fromkeys(batch.category):
        rows = [i for i, name in enumerate(batch.category) if name == category]
        scores[rows] = method.category_scores(components[rows])
    fixture.check(key, scores)
