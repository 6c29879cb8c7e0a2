"""AnoVL against the published implementation's numbers: towers, views, sentences, scores, maps, steps of the adaptation.

The repository's fixture is a part of the full one: images 0 and 1 (one category, so that the carried optimiser shows),
every n-th row and column of towers, views and maps, and no group `tile`, which `test_anovl.py` builds from the parts.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from anomaly_vlm.data.types import Batch
from anomaly_vlm.methods.anovl.adapter import AdapterStart, CategoryTexts, TextAdapter, adapt, log_probabilities
from anomaly_vlm.methods.anovl.method import AnoVL
from anomaly_vlm.methods.anovl.views import augmented_views
from anomaly_vlm.methods.shared.maps import to_grid
from anomaly_vlm.runs.migrate import migrated
from tests.support.few_shot import make_batch
from tests.support.golden import Fixture, fixture_paths, golden_backbone

pytestmark = pytest.mark.golden
FINE = {"rtol": 0.0, "atol": 2e-6}  # probabilities, scores and maps: they spread over 1e-3 alone
HALF = {"rtol": 0.0, "atol": 2e-3}  # views are stored as float16
OPTIONS = (
    "texture_categories",
    "vv_blocks",
    "temperature",
    "smooth_kernel",
    "augment_views",
    "adapt",
    "adapt_steps",
    "adapt_lr",
    "noise_std",
    "optimizer_state",
    "tiling",
)


class Given(AnoVL):
    """The method with the first weights and the noise of the fixture, image by image."""

    given: dict[int, AdapterStart]

    def start(self, indices, patches: int, texts: CategoryTexts) -> AdapterStart:
        drawn = [self.given[index] for index in indices]
        dims = (0, 0, 1)  # of the images in weight, bias and noise
        return AdapterStart(
            *(torch.cat(parts, dim=dim) for parts, dim in zip(zip(*drawn, strict=True), dims, strict=True))
        )


def build(fixture: Fixture, group: str = "", **changes) -> Given:
    o = fixture.options(group)
    backbone = golden_backbone(
        fixture.settings["backbone"], image_size=fixture.settings["image_size"], pos_resize=o["pos_resize"]
    )
    old = {name: o[name] for name in OPTIONS} | changes
    options = migrated({"name": "anovl", "method": old})["method"]  # fixtures have the options' first names
    method = Given(backbone, **options).eval()
    method.given = {
        int(key.split("/")[1]): AdapterStart(
            fixture.input(key)[None],
            fixture.input(key.replace("weight", "bias"))[None],
            fixture.input(key.replace("init_weight", "noise")).flatten(2, 3),  # [steps, 1, g, g, C]
        )
        for key in fixture.tensors
        if key.endswith("/init_weight")
    }
    return method


def check_towers(fixture: Fixture, method: AnoVL, images: Tensor, first: CategoryTexts) -> None:
    """Image 0: positions, both paths, local features, views."""
    clip = method.backbone
    one = images[:1]
    out = clip.encode_image(one, layers=[clip.num_layers], vv_from=method.vv_from)
    check = partial(check_if_there, fixture)
    check("mid/pos_embed_resized", clip.positions(out.grid))
    check("mid/final_ori", out.ordinary[0])
    check("mid/final_vv", torch.cat([out.ordinary[0][:, :1], out.tokens[0][:, 1:]], dim=1))
    check("mid/global_tokens", clip.project(torch.cat([out.ordinary[0][:, :1], out.tokens[0][:, 1:]], dim=1)))
    patches = clip.project(out.patches[0])
    check("out/patch_raw", patches)
    check("out/patch_prob", to_grid(method.abnormal(patches, first), out.grid)[0], **FINE)
    tokens = method.encode_frozen(one)
    torch.testing.assert_close(tokens["patches"][:, 0], patches)
    check("mid/augmented", augmented_views(one)[0], **HALF)
    check("mid/augmented_cls", tokens["cls"][0, 0])
    check("mid/augmented_prob", log_probabilities(tokens["cls"][0, 0], first.prototypes).exp(), **FINE)


def check_if_there(fixture: Fixture, key: str, actual: Tensor, **tolerance: float) -> None:
    if fixture.has(key):
        fixture.check(key, actual, **tolerance)


def check_texts(fixture: Fixture, method: AnoVL, categories: list[str]) -> None:
    for category in categories:
        texts = method.texts(category)
        fixture.check(f"out/text/{category}", texts.prototypes.T)
        head = fixture.tensors[key := f"out/text_list_head/{category}"]
        sides = texts.keys.unflatten(0, (2, -1))[:, : len(head)]  # normal ones first
        fixture.check(key, sides.permute(1, 2, 0))


def check_steps(fixture: Fixture, method: Given, batch: Batch) -> None:
    """Losses of every step, the first step's probabilities and the last weights, in the state that the fixture has."""
    patches = method.frozen_tokens(batch)["patches"].flatten(1, 2)
    for i, start in method.given.items():
        category = batch.category[i]
        texts, x = method.texts(category), patches[i : i + 1]
        if fixture.has(key := f"tta/{i}/prob_step0"):
            both = torch.cat([x, x + start.noise[0]])
            adapted = TextAdapter(texts.keys, start)(both.flatten(0, 1)[None])
            prob = (
                log_probabilities(adapted, texts.prototypes).exp().unflatten(1, (2, *fixture.tensors[key].shape[1:3]))
            )
            fixture.check(key, prob[0], **FINE)
        adapter, optimizer, noise = method.begin(start, texts, category if method.carry else None)
        gradients: dict[str, list[Tensor]] = {"final_bias": [], "final_weight_head": []}
        hooks = [
            parameter.register_hook(found.append)
            for parameter, found in zip((adapter.bias, adapter.weight), gradients.values(), strict=True)
        ]
        fixture.check(f"tta/{i}/loss", adapt(adapter, optimizer, x, noise, texts)[:, 0])
        for name, parameter in (("final_bias", adapter.bias), ("final_weight_head", adapter.weight)):
            if fixture.has(key := f"tta/{i}/{name}"):
                rows = len(fixture.tensors[key])
                check_moved(fixture, key, parameter[0, :rows], torch.stack(gradients[name])[:, 0, :rows], optimizer)
        for hook in hooks:
            hook.remove()


def check_moved(
    fixture: Fixture, key: str, actual: Tensor, gradients: Tensor, optimizer: torch.optim.Optimizer
) -> None:
    """What AdamW made of weights: at the fixture's tolerance where the gradient stayed above AdamW's `eps` in every step.

    Most gradients are a few `eps` large here. Below it AdamW's division turns rounding of the gradient (1e-10) into as much
    movement as the tolerance (float64 differs from the published float32 by twice of it): those compare to a tenth of a
    step.
    """
    options, expected = optimizer.param_groups[0], fixture.tensors[key]
    settled = gradients.abs().amin(dim=0) >= 2 * options["eps"]
    assert settled.float().mean() > 0.05, f"{key}: too few comparable weights"
    fixture.check(key, torch.where(settled, actual, expected))
    torch.testing.assert_close(actual.detach(), expected, rtol=0.0, atol=options["lr"] / 10)


@pytest.mark.parametrize("path", fixture_paths("anovl"), ids=lambda path: path.stem)
def test_anovl_matches_the_published_implementation(path: Path) -> None:
    fixture = Fixture(path)
    categories = fixture.options()["categories"]
    batch = make_batch(fixture.input("in/images"), [categories[i] for i in fixture.input("in/category").tolist()])
    method = build(fixture)
    check_texts(fixture, method, categories)
    check_towers(fixture, method, batch.image, method.texts(batch.category[0]))
    check_steps(fixture, method, batch)
    method.invalidate_caches()

    with torch.inference_mode():  # as an evaluation runs
        found = method.predict(batch)
        fixture.check("out/image_score", found.score, **FINE)
        fixture.check("out/anomaly_map", found.map, **FINE)
        again = method.predict(batch)
        assert torch.equal(again.map, found.map), "an image that comes again keeps its map"
        for key, change in (
            ("out/anomaly_map_fresh_optimizer", {"optimizer_state": "fresh"}),
            ("out/anomaly_map_no_adapter", {"adapt": False}),
        ):
            other = build(fixture, **change).predict(batch)
            fixture.check(key, other.map, **FINE)
            assert torch.equal(other.score, found.score), "the adaptation changes the map alone"
        if fixture.has("tile/image"):
            tiled = build(fixture, "tile")
            wide = make_batch(fixture.input("tile/image"), fixture.options("tile")["categories"][0])
            prediction = tiled.predict(wide)
            shape = fixture.tensors["tile/image_score"].shape
            fixture.check("tile/image_score", prediction.score.reshape(shape), **FINE)
            fixture.check("tile/anomaly_map", prediction.map.reshape(fixture.tensors["tile/anomaly_map"].shape), **FINE)
    fixture.finish()
