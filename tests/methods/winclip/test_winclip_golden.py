"""WinCLIP against the numbers of two public implementations."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F

from anomaly_vlm.methods.winclip import WinCLIP
from tests.support.few_shot import make_batch, make_references
from tests.support.golden import Fixture, fixture_paths, golden_backbone

pytestmark = pytest.mark.golden
VARIANTS: dict[str, Literal["paper", "published"]] = {"anomalib": "paper", "cao": "published"}  # words of the fixtures


def build(fixture: Fixture, group: str) -> WinCLIP:
    o: dict[str, Any] = fixture.options(group)
    backbone = golden_backbone(fixture.settings["backbone"], image_size=fixture.settings["image_size"])
    names = ("scales", "temperature", "gallery_lag", "eval_size")
    return WinCLIP(backbone, variant=VARIANTS[o["variant"]], **{name: o[name] for name in names}).eval()


@pytest.mark.parametrize("path", fixture_paths("winclip"), ids=lambda path: path.stem)
def test_winclip_matches_the_public_implementations(path: Path) -> None:
    fixture = Fixture(path)
    categories = fixture.options()["categories"]
    names = [categories[i] for i in fixture.input("in/category").tolist()]
    images, references = fixture.input("in/images"), fixture.input("in/reference_images")
    batch = make_batch(images, names)
    for group in [name for name in fixture.settings["groups"] if "/" not in name]:
        zero, few = build(fixture, group), build(fixture, group)
        few.fit_references([make_references(references[i], name) for i, name in enumerate(categories)])
        with torch.no_grad():
            tokens = few.frozen_tokens(batch)
            check_tokens(fixture, tokens)
            check = check_paper if few.variant == "paper" else check_published
            check(fixture, group, few, tokens, names, categories)
            for prefix, method in (("zs", zero), ("fs", few)):
                prediction = method.predict(batch)
                fixture.check(f"{group}/out/{prefix}_anomaly_map", prediction.map)
                fixture.check(f"{group}/out/{prefix}_image_score", prediction.score)
    fixture.finish()


def check_tokens(fixture: Fixture, tokens: dict[str, torch.Tensor]) -> None:
    fixture.check("out/image_embedding", tokens["cls"])
    fixture.check("out/patch_tokens", tokens["patches"])
    for name, value in tokens.items():
        if fixture.has(key := f"out/window_embedding_{name.removeprefix('windows_')}"):
            fixture.check(key, value)


def grid_of(method: WinCLIP) -> tuple[int, int]:
    return (method.backbone.image_size // method.backbone.patch_size,) * 2


def check_paper(
    fixture: Fixture,
    group: str,
    method: WinCLIP,
    tokens: dict[str, torch.Tensor],
    names: list[str],
    categories: list[str],
) -> None:
    """Texts, scores and maps on the way, image by image (each with the texts and references of its category)."""
    grid = grid_of(method)
    for number, category in enumerate(categories):
        fixture.check(f"{group}/out/text_embeddings_raw_{number}", method.text_features(category))
    found: dict[str, list[torch.Tensor]] = {}
    for row, category in enumerate(names):
        one = {name: value[row : row + 1] for name, value in tokens.items()}
        texts, memory = F.normalize(method.text_features(category), dim=-1), method.memory(category)
        assert memory is not None
        values = {"zs_map": method.compare_paper(one, texts, None, grid)[1]}
        associations = method.association_maps(one, memory, grid)
        values["fs_patch_score"] = associations[0]
        values["fs_map"] = torch.stack(associations).mean(dim=0)
        for size, text_map, visual_map in zip(
            method.scales, method.text_maps(one, texts, grid), associations[1:], strict=True
        ):
            windows = one[f"windows_{size}"]
            values[f"zs_window_score_{size}"] = method.abnormal(windows, texts)
            values[f"fs_window_score_{size}"] = memory[f"windows_{size}"](windows)
            values[f"zs_map_{size}"], values[f"fs_map_{size}"] = text_map, visual_map
        for name, value in values.items():
            found.setdefault(name, []).append(value.unflatten(1, grid) if "map" in name else value)
    for name, parts in found.items():
        fixture.check(f"{group}/out/{name}", torch.cat(parts))


def check_published(
    fixture: Fixture,
    group: str,
    method: WinCLIP,
    tokens: dict[str, torch.Tensor],
    names: list[str],
    categories: list[str],
) -> None:
    grid = grid_of(method)
    for number, category in enumerate(categories):
        fixture.check(f"{group}/out/text_features_{number}", F.normalize(method.text_features(category), dim=-1))
    textual, visual = [], []
    for row, category in enumerate(names):
        one = {name: value[row : row + 1] for name, value in tokens.items()}
        memory = method.memory(category)
        assert memory is not None
        textual.append(
            method.normality_map(one, F.normalize(method.text_features(category), dim=-1), grid).unflatten(1, grid)
        )
        visual.append(method.window_distance_map(one, memory, grid).unflatten(1, grid))
    fixture.check(f"{group}/out/textual_map", torch.stack(textual))
    fixture.check(f"{group}/out/visual_map", torch.stack(visual))
