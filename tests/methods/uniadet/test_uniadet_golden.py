"""UniADet against formulas in double precision: the authors' code is not released."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from anomaly_vlm.data.types import Batch
from anomaly_vlm.losses import build_terms
from anomaly_vlm.methods.base.published import load_published
from anomaly_vlm.methods.uniadet import UniADet
from tests.support.conf import loss_conf
from tests.support.few_shot import make_batch, make_references
from tests.support.golden import Fixture, fixture_paths, golden_backbone

pytestmark = pytest.mark.golden


def base_of(fixture: Fixture, group: str) -> str:
    """The group whose weights a group uses: itself or the nearest above it that has some."""
    parts = group.split("/")
    for end in range(len(parts), 0, -1):
        prefix = "/".join(parts[:end]) + "/"
        if any(key.startswith(f"{prefix}ckpt/") for key in fixture.tensors):
            return prefix
    return ""


def build(fixture: Fixture, group: str, folder: Path) -> UniADet:
    o = fixture.options(group)
    backbone = golden_backbone(
        fixture.settings["backbone"],
        pos_resize=o["pos_resize"],
        activation=o["activation"],
        image_size=fixture.settings["image_size"],
    )
    conf = loss_conf("uniadet")
    for name, term in conf.items():
        term["weight"] = o["ce_weight"] if name == "ce" else o["seg_weight"]
    names = ("layers", "space", "temperature", "image_score", "map_weight", "reduce", "normal_dice")
    few_shot = {name: o[name] for name in ("few_shot_weight", "few_shot_base") if name in o}
    method = UniADet(backbone, losses=build_terms(conf), **{name: o[name] for name in names}, **few_shot)
    path = folder / "weights.safetensors"
    save_file(fixture.inputs(f"{base_of(fixture, group)}ckpt/"), path)
    return load_published(method, path).eval()


def categories_of(fixture: Fixture) -> list[str]:
    names = fixture.options()["categories"]
    return [names[i] for i in fixture.input("in/category").tolist()]


def check_outputs(fixture: Fixture, group: str, method: UniADet, batch: Batch) -> None:
    prefix = f"{group}/" if group else ""
    tokens = method.frozen_tokens(batch)
    for layer in method.layers:
        if fixture.has(key := f"{prefix}mid/features_{layer}"):
            fixture.check(key, torch.cat([tokens[f"cls_{layer}"][:1, None], tokens[f"patches_{layer}"][:1]], dim=1))
        if fixture.has(key := f"{prefix}mid/block_{layer}"):
            fixture.check(key, method.backbone.encode_image(batch.image[:1], layers=[layer]).tokens[0])
    if fixture.has(key := f"{prefix}mid/pos_embed_resized"):
        side = batch.size[0] // method.backbone.patch_size
        fixture.check(key, method.backbone.positions((side, side)))
    classes, maps = (
        method.class_probabilities(tokens),
        method.layer_maps(tokens, method.grid_of(batch.size), batch.size),
    )
    prediction = method.predict(batch)
    values = {"class_prob": classes, "layer_maps": maps[:, :1], "anomaly_map": prediction.map}
    for name, value in {**values, "image_score": prediction.score}.items():
        if fixture.has(key := f"{prefix}out/{name}"):
            fixture.check(key, value)


def check_training(fixture: Fixture, group: str, method: UniADet, batch: Batch) -> None:
    """Losses level by level, the total, its gradients, and two steps of the optimiser."""
    prefix, o = f"{group}/" if group else "", fixture.options(group)["optimizer"]
    tokens, mask = method.frozen_tokens(batch), (batch.mask == 1).float()
    classes, maps = (
        method.class_probabilities(tokens),
        method.layer_maps(tokens, method.grid_of(batch.size), batch.size),
    )
    fixture.check(f"{prefix}loss/ce", torch.stack([method.terms["ce"](row, batch.label).mean() for row in classes]))
    fixture.check(f"{prefix}loss/focal", torch.stack([method.terms["focal"](row, mask).mean() for row in maps]))
    dice = torch.stack([method.terms["dice"](row, mask).mean() for row in maps])
    if method.normal_dice:
        dice = dice + torch.stack([method.terms["dice"](1 - row, 1 - mask).mean() for row in maps])
    fixture.check(f"{prefix}loss/dice", dice)
    assert o["name"] == "adamw"
    options = {name: value for name, value in o.items() if name != "name"}
    optimizer = torch.optim.AdamW(method.parameter_groups(), **options)
    for step in (1, 2):
        optimizer.zero_grad()
        total = method.total_loss(method.losses(batch))
        total.backward()
        if step == 1:
            fixture.check(f"{prefix}loss/total", total)
        for name, parameter in method.learnable().items():
            if step == 1:
                assert parameter.grad is not None
                fixture.check(f"{prefix}grad/{name}", parameter.grad)
        optimizer.step()
        for name, parameter in method.learnable().items():
            fixture.check(f"{prefix}step_{step}/{name}", parameter)


@pytest.mark.parametrize("path", fixture_paths("uniadet"), ids=lambda path: path.stem)
def test_uniadet_matches_the_formulas(path: Path, tmp_path: Path) -> None:
    fixture = Fixture(path)
    names, images = categories_of(fixture), fixture.input("in/images")
    batch, rows = make_batch(images, names), fixture.input("in/batch")
    step: dict[str, Any] = {"label": fixture.input("in/label")[rows].long(), "mask": fixture.input("in/mask")[rows]}
    training = make_batch(images[rows], [names[i] for i in rows.tolist()])
    training.label, training.mask = step["label"], step["mask"].to(torch.uint8)
    for group in ["", *fixture.settings["groups"]]:
        method, prefix = build(fixture, group, tmp_path), f"{group}/" if group else ""
        if fixture.options(group)["shots"]:
            check_few_shot(fixture, group, method, batch)
        else:
            with torch.no_grad():
                check_outputs(fixture, group, method, batch)
        if fixture.has(f"{prefix}loss/total"):
            check_training(fixture, group, method, training)
    fixture.finish()


@torch.no_grad()
def check_few_shot(fixture: Fixture, group: str, method: UniADet, batch: Batch) -> None:
    references = fixture.input("in/references")
    categories = fixture.options()["categories"]
    method.fit_references([make_references(references[i], name) for i, name in enumerate(categories)])
    distances = method.distances(method.frozen_tokens(batch), batch)
    assert distances is not None
    prediction = method.predict(batch)
    side = (batch.size[0] // method.backbone.patch_size,) * 2
    grid = distances.mean(dim=0).unflatten(1, side)[:, None]
    values = {"map": F.interpolate(grid, batch.size, mode="bilinear")[:, 0], "anomaly_map": prediction.map}
    values |= {f"distance_{layer}": distances[i] for i, layer in enumerate(method.layers)}
    for name, value in {**values, "image_score": prediction.score}.items():
        if fixture.has(key := f"{group}/{name}"):
            fixture.check(key, value)
