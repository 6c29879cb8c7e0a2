"""APRIL-GAN against the published implementation's numbers: towers, texts, maps, losses, gradients, few-shot."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from anomaly_vlm.data.types import Batch
from anomaly_vlm.losses import build_terms, training_mask
from anomaly_vlm.methods.april_gan import AprilGAN
from anomaly_vlm.methods.base.published import layout_of, load_published
from tests.support.conf import loss_conf
from tests.support.few_shot import make_batch, make_references
from tests.support.golden import Fixture, fixture_paths, golden_backbone

pytestmark = pytest.mark.golden


def build(fixture: Fixture, o: dict[str, Any], folder: Path) -> AprilGAN:
    """The method with a group's options and the published parameters, through the importer."""
    backbone = golden_backbone(
        fixture.settings["backbone"],
        image_size=fixture.settings["image_size"],
        activation=o["activation"],
        pos_resize=o["pos_resize"],
    )
    method = AprilGAN(
        backbone,
        losses=build_terms(loss_conf("april_gan")),
        **{name: o[name] for name in ("layers", "few_shot_layers", "scale")},
    )
    path = folder / "published.safetensors"
    save_file(fixture.inputs("ckpt/"), path)
    return load_published(method, path).eval()


def batch_of(fixture: Fixture, categories: list[str]) -> Batch:
    batch = make_batch(fixture.input("in/images"), [categories[i] for i in fixture.input("in/category").tolist()])
    batch.mask = fixture.input("in/mask").to(torch.uint8)
    return batch


class Group:
    """The tensors of a group of settings, under its prefix: those that the fixture has are compared."""

    def __init__(self, fixture: Fixture, prefix: str) -> None:
        self.fixture, self.prefix = fixture, prefix

    def names(self, pattern: str) -> list[str]:
        """Names of the group's tensors that match, as they stand behind its prefix."""
        own = [key.removeprefix(self.prefix) for key in self.fixture.tensors if key.startswith(self.prefix)]
        return [name for name in own if re.fullmatch(pattern, name)]

    def check(self, name: str, value: Tensor, *, first: bool = False) -> None:
        """Compares; `first`: of a batch, as many images as the fixture holds."""
        if self.fixture.has(key := self.prefix + name):
            self.fixture.check(key, value[: len(self.fixture.tensors[key])] if first else value)


@torch.no_grad()
def check_zero_shot(group: Group, method: AprilGAN, batch: Batch) -> None:
    clip, tokens = method.backbone, method.frozen_tokens(batch)
    blocks = [int(name.rpartition("_")[2]) for name in group.names(r"mid/block_\d+")]
    tapped = clip.encode_image(batch.image[:1], layers=blocks)
    for block, states in zip(blocks, tapped.tokens, strict=True):
        group.check(f"mid/block_{block}", states)
        if f"block_{block}" in tokens:
            torch.testing.assert_close(tokens[f"block_{block}"][:1], states[:, 1:])
    group.check("mid/pos_embed_resized", clip.positions(tapped.grid))
    group.check("mid/image_raw", tokens["cls"])
    for name in group.names("out/text/.*"):
        group.check(name, method.text_features(name.removeprefix("out/text/")).T)  # the fixture has [C, 2]
    for i, features in enumerate(method.patch_features(tokens)):
        group.check(f"out/patch_features_{i}", features, first=True)
    maps = method.layer_maps(tokens, batch)
    group.check("out/layer_maps", maps.transpose(0, 1), first=True)
    prediction = method.predict(batch)
    assert prediction.score_components is None, "zero-shot"
    group.check("out/anomaly_map", prediction.map)
    group.check("out/image_prob", torch.stack([1 - prediction.score, prediction.score], dim=1))


def check_losses(group: Group, method: AprilGAN, batch: Batch) -> None:
    if not group.names("(loss|grad)/.*"):
        return
    mask = training_mask(batch.mask, batch.path, method.terms)
    maps = method.layer_maps(method.frozen_tokens(batch), batch)
    group.check("loss/focal", torch.stack([method.terms["focal"](m, mask).mean() for m in maps]))
    group.check("loss/dice", torch.stack([method.terms["dice"](m, mask).mean() for m in maps]))
    total = method.total_loss(method.losses(batch))  # the public way, as training calls it
    group.check("loss/total", total)
    total.backward()
    for name, parameter in method.learnable().items():
        assert parameter.grad is not None, f"{name}: no gradient"
        group.check(f"grad/{layout_of(method).key(method, name)}", parameter.grad)


@torch.no_grad()
def check_few_shot(group: Group, method: AprilGAN, batch: Batch, categories: list[str], shots: int) -> None:
    """All images whose category has references in the fixture (a slim one may hold fewer)."""
    references = group.fixture.input("in/references")[:, :shots]
    method.fit_references([make_references(images, name) for images, name in zip(references, categories, strict=False)])
    rows = [i for i, name in enumerate(batch.category) if name in categories[: len(references)]]
    some = make_batch(batch.image[rows], [batch.category[i] for i in rows])
    distances = method.distances(method.frozen_tokens(some), some.category)
    assert distances is not None
    grid = (some.size[0] // method.backbone.patch_size, some.size[1] // method.backbone.patch_size)
    for i, distance in enumerate(distances):
        group.check(f"distance_{i}", distance[0].unflatten(0, grid))
    prediction = method.predict(some)
    assert prediction.score_components is not None
    zero_shot = method.layer_maps(method.frozen_tokens(some), some).sum(dim=0)
    group.check("map", prediction.map - zero_shot)
    group.check("anomaly_map", prediction.map)
    group.check("map_max", prediction.score_components[:, 1])
    scores = torch.empty(len(some))
    for name in categories:
        mine = [i for i, other in enumerate(some.category) if other == name]
        if mine:
            scores[mine] = method.category_scores(prediction.score_components[mine])
    group.check("image_score", scores)


@pytest.mark.parametrize("path", fixture_paths("april_gan"), ids=lambda path: path.stem)
def test_every_tensor(path: Path, tmp_path: Path) -> None:
    fixture = Fixture(path)
    for name in ["", *fixture.settings.get("groups", {})]:
        o = fixture.options(name)
        method, batch = build(fixture, o, tmp_path), batch_of(fixture, o["categories"])
        group = Group(fixture, f"{name}/" if name else "")
        if group.names("(mid|out|loss|grad)/.*"):
            check_zero_shot(group, method, batch)
            check_losses(group, method, batch)
        if o["shots"]:
            check_few_shot(group, method, batch, o["categories"], o["shots"])
    fixture.finish()


def test_a_group_of_the_wrong_activation_does_not_agree(tmp_path: Path) -> None:
    """The fixture tells exact GELU from QuickGELU."""
    fixture = Fixture(fixture_paths("april_gan")[0])
    o = fixture.options()
    other = {**o, "activation": "quick_gelu" if o["activation"] == "gelu" else "gelu"}
    method = build(fixture, other, tmp_path)
    with torch.no_grad(), pytest.raises(AssertionError, match="mid/image_raw"):
        cls = method.frozen_tokens(batch_of(fixture, o["categories"]))["cls"]
        assert F.normalize(cls, dim=-1).isfinite().all()
        fixture.check("mid/image_raw", cls)
