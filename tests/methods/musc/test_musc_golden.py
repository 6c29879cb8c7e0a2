"""MuSc against the published code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from anomaly_vlm.methods.musc import MuSc
from anomaly_vlm.methods.musc.scoring import pooled
from tests.support.golden import Fixture, fixture_paths, golden_backbone

pytestmark = pytest.mark.golden


def build(fixture: Fixture, group: str) -> MuSc:
    o = fixture.options(group)
    backbone = golden_backbone(
        fixture.settings["backbone"],
        pos_resize=o["pos_resize"],
        activation=o["activation"],
        image_size=fixture.settings["image_size"],
    )
    names = ("layers", "degrees", "interval", "neighbours", "score_range", "subsets")
    return MuSc(backbone, **{name: o[name] for name in names}).eval()


@pytest.mark.parametrize("path", fixture_paths("musc"), ids=lambda path: path.stem)
@torch.no_grad()
def test_musc_matches_the_published_code(path: Path) -> None:
    fixture = Fixture(path)
    images, category = fixture.input("in/images"), fixture.input("in/category")
    tokens: dict[str, dict[str, Tensor]] = {}
    for group in ["", *fixture.settings["groups"]]:
        method, prefix = build(fixture, group), f"{group}/" if group else ""
        clip = method.backbone
        tower = f"{clip.activation} {clip.pos_resize} {method.layers}"  # what the frozen tokens depend on here
        if tower not in tokens:
            tokens[tower] = method.encode_frozen(images)
        check_group(fixture, prefix, method, tokens[tower], images, category)
    fixture.finish()


def check_group(
    fixture: Fixture, prefix: str, method: MuSc, tokens: dict[str, Tensor], images: Tensor, category: Tensor
) -> None:
    side = images.shape[-1] // method.backbone.patch_size
    grid, size = (side, side), (images.shape[-2], images.shape[-1])
    if not prefix:
        check_tower(fixture, method, tokens, images, grid)
    rows = fixture.input(f"{prefix}in/rows") if fixture.has(f"{prefix}in/rows") else torch.arange(len(images))
    subset = fixture.input(f"{prefix}in/subset") if fixture.has(f"{prefix}in/subset") else torch.zeros_like(rows)
    found: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for name in category[rows].unique():
        whole = (category[rows] == name).nonzero()[:, 0]
        peaks = torch.empty(len(whole))
        for part in subset[whole].unique():
            inside = (subset[whole] == part).nonzero()[:, 0]
            members = whole[inside]
            chosen = {key: value[rows[members]] for key, value in tokens.items() if key != "cls"}
            mutual, patch_map = method.mutual(chosen, grid), method.patch_maps(chosen, grid)
            maps = method.maps(patch_map, grid, size)
            peaks[inside] = maps.flatten(1).amax(dim=1)
            for key, value in (("mid/msm", mutual), ("mid/patch_map", patch_map), ("out/anomaly_map", maps)):
                found.setdefault(key, []).append((members, value))
        found.setdefault("out/image_max", []).append((whole, peaks))
        scores = method.scores(peaks, tokens["cls"][rows[whole]])
        found.setdefault("out/image_score", []).append((whole, scores))
    for key, parts in found.items():
        if fixture.has(prefix + key):
            order = torch.cat([members for members, _ in parts]).argsort()
            fixture.check(prefix + key, torch.cat([value for _, value in parts])[order])


def check_tower(
    fixture: Fixture, method: MuSc, tokens: dict[str, Tensor], images: Tensor, grid: tuple[int, int]
) -> None:
    fixture.check("mid/pos_embed_resized", method.backbone.positions(grid))
    fixture.check("out/image_feature", tokens["cls"])
    whole = method.backbone.encode_image(images[:1], layers=method.layers)
    for i, layer in enumerate(method.layers):
        if fixture.has(key := f"mid/block_{layer}"):
            fixture.check(key, whole.tokens[i])
    for degree in method.degrees:
        windows = [pooled(tokens[f"block_{layer}"][:1], grid, degree) for layer in method.layers]
        fixture.check(f"mid/lnamd_r{degree}", torch.cat(windows))
