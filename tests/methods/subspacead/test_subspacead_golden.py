"""SubspaceAD against the published program, on given hidden states and on the golden CLIP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from anomaly_vlm.data.transforms import preprocessed
from anomaly_vlm.data.types import Preprocess
from anomaly_vlm.methods.shared.turned import turn_black
from anomaly_vlm.methods.subspacead import SubspaceAD
from anomaly_vlm.methods.subspacead.subspace import NormalSubspace, TokenSums
from tests.support.golden import Fixture, fixture_paths, golden_backbone
from tests.support.tiny import tiny_clip

pytestmark = pytest.mark.golden
MASK = ("threshold", "kernel", "border", "coverage", "morphology", "sign")
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def build(fixture: Fixture, o: dict[str, Any]) -> SubspaceAD:
    names = ("aggregate", "explained", "dimension", "residual", "drop", "rotations", "draws", "fit_on", "masking")
    if "depth" in o:  # hidden states are given, of a tower that is not
        backbone = tiny_clip(layers=o["depth"], text_layers=1)
    else:
        backbone = golden_backbone(
            fixture.settings["backbone"], pos_resize=o["pos_resize"], image_size=fixture.settings["image_size"]
        )
    return SubspaceAD(
        backbone,
        layers=o["layers"],
        layer_groups=o.get("layer_groups", ()) if o["aggregate"] == "group" else (),
        mask={name: o[f"mask_{name}"] for name in MASK},
        **{name: o[name] for name in (*names, "kernel", "sigma", "image_score", "eps")},
    ).eval()


def numbered(fixture: Fixture, group: str, name: str) -> list[Tensor]:
    """Numbered inputs of a group, or of the nearest group above that has them."""
    parts = group.split("/")
    for end in range(len(parts), 0, -1):
        prefix = f"{'/'.join(parts[:end])}/in/{name}/"
        keys = sorted(
            (key for key in fixture.tensors if key.startswith(prefix)), key=lambda key: int(key.split("/")[-1])
        )
        if keys:
            return [fixture.input(key) for key in keys]
    return []


def tokens_of(method: SubspaceAD, states: Tensor, o: dict[str, Any]) -> Tensor:
    """Combined tokens [g, g, D] of hidden states [depth + 1, 1 + registers + n, D]."""
    patches = states[:, 1 + o["registers"] :]
    side = round(patches.shape[1] ** 0.5)
    return method.combined({layer: patches[layer] for layer in method.layers}).unflatten(0, (side, side))


def encoded(method: SubspaceAD, image: Tensor, o: dict[str, Any]) -> Tensor:
    clip, size = method.backbone, o["image_size"]
    pixels = preprocessed(image.numpy(), Preprocess(size, clip.mean, clip.std))
    side = size // clip.patch_size
    return method.encode_frozen(pixels)["patches"][0].unflatten(0, (side, side))


def sums_of(tokens: list[Tensor]) -> TokenSums:
    sums = TokenSums()
    for image in tokens:
        sums.add(image)
    return sums


def fitted(fixture: Fixture, group: str, method: SubspaceAD, o: dict[str, Any], test: list[Tensor]) -> NormalSubspace:
    """The subspace of a group, by what the fixture gives: references, two passes over turned ones, or test images."""
    if o["fit_on"] == "test":
        method.fit_to("any", test)
        return method.subspace_of("any")
    if fixture.has(key := f"{group.partition('/')[0]}/in/mean_pass"):
        passes = [fixture.input(key), fixture.input(key.replace("mean_pass", "covariance_pass"))]
        first, second = (sums_of([tokens_of(method, states, o) for states in one]) for one in passes)
        return method.subspace(first, second if o["draws"] == "published" else first)
    references = numbered(fixture, group, "reference")
    images = references[0].ndim == 3 and references[0].shape[-1] == 3 and references[0].dtype == torch.uint8
    made = [encoded(method, one, o) if images else tokens_of(method, one, o) for one in references]
    sums = sums_of(made)
    return method.subspace(sums, sums)


def check_group(fixture: Fixture, group: str, o: dict[str, Any]) -> None:
    method = build(fixture, o)
    inputs = numbered(fixture, group, "test")
    images = inputs[0].dtype == torch.uint8
    test = [encoded(method, one, o) if images else tokens_of(method, one, o) for one in inputs]
    subspace = fitted(fixture, group, method, o, test)
    if fixture.has(f"{group}/fit/mean"):
        fixture.check(f"{group}/fit/mean", subspace.mean)
        fixture.check(f"{group}/fit/eigenvalues", subspace.eigenvalues)
        fixture.check(f"{group}/fit/projector", subspace.basis @ subspace.basis.T)
        assert fixture.tensors[f"{group}/fit/components"].tolist() == [subspace.basis.shape[1]]
        fixture.mark(f"{group}/fit/components")
    maps = []
    for i, tokens in enumerate(test):
        if fixture.has(key := f"{group}/mid/tokens/{i}"):
            fixture.check(key, tokens)
        residual = method.residuals(tokens, subspace)
        if fixture.has(key := f"{group}/out/residual/{i}"):
            fixture.check(key, residual)
        maps.append(method.maps(residual[None], (o["image_size"],) * 2)[0])
        if fixture.has(key := f"{group}/out/map/{i}"):
            fixture.check(key, maps[-1])
    fixture.check(f"{group}/out/score", method.image_scores(torch.stack(maps)))


def check_preprocessing(fixture: Fixture, group: str, o: dict[str, Any]) -> None:
    """torchvision's resize rounds to 8 bits another way: one grey level, as the fixture's README says."""
    tolerance = 1.01 / 255 / min(IMAGENET[1]) if o["resize"] == "torchvision" else 1e-5
    for i, image in enumerate(numbered(fixture, group, "image")):
        pixels = preprocessed(image.numpy(), Preprocess(o["image_size"], *IMAGENET))[0]
        fixture.check(f"{group}/out/pixels/{i}", pixels, atol=tolerance)


@pytest.mark.parametrize("path", fixture_paths("subspacead"), ids=lambda path: path.stem)
@torch.no_grad()
def test_subspacead_matches_the_published_program(path: Path) -> None:
    fixture = Fixture(path)
    for group in fixture.settings["groups"]:
        o = fixture.options(group)
        if group.startswith("prep"):
            check_preprocessing(fixture, group, o)
        else:
            check_group(fixture, group, o)
    if fixture.has("rotate/in/image"):
        image = fixture.input("rotate/in/image").numpy()
        angles = fixture.input("rotate/in/angles").tolist()
        turned = torch.from_numpy(np.stack([turn_black(image, angle) for angle in angles]))
        assert torch.equal(turned, fixture.tensors["rotate/out"])
        fixture.mark("rotate/out")
    fixture.finish()
