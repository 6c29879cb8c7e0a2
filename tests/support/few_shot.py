"""What tests of few-shot methods share: reference images as the data module gives them, published files, golden towers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from anomaly_vlm.backbone import ClipBackbone
from anomaly_vlm.data.types import Batch, PixelChange, References
from anomaly_vlm.methods.base.published import load_published
from anomaly_vlm.methods.promptad.few_shot import VVMemoryMethod
from anomaly_vlm.methods.promptad.fusion import Comparison
from anomaly_vlm.runs.migrate import migrated
from tests.support.golden import Fixture, golden_backbone
from tests.support.tiny import tiny_clip


def tiny_backbone() -> ClipBackbone:
    """32 px, 4 x 4 patches, random weights."""
    return tiny_clip()


def make_batch(images: Tensor, category: str | Sequence[str], *, label: int = 0, name: str = "image") -> Batch:
    """Images [B, 3, H, W] as a batch without masks."""
    count = len(images)
    names = [f"{name} {i}" for i in range(count)]
    categories = [category] * count if isinstance(category, str) else list(category)
    return Batch(images, torch.full((count,), label), None, categories, names, torch.arange(count), [None] * count)


def make_references(images: Tensor, category: str, larger: Tensor | None = None) -> References:
    """The shots of a category; `larger` is what they are at the only other side that is asked for."""

    def at_size(side: int) -> Tensor:
        assert larger is not None and larger.shape[-1] == side
        return larger

    def changed(change: PixelChange) -> list[Tensor]:
        raise AssertionError("these references have no pixels of their own")

    return References(make_batch(images, category, name=f"{category} reference"), at_size, changed)


def towers(fixture: Fixture) -> ClipBackbone:
    return golden_backbone(fixture.settings["backbone"], image_size=fixture.settings["image_size"])


def options(fixture: Fixture, group: str) -> dict[str, Any]:
    """The settings that both methods share, under this suite's names."""
    o = fixture.options(group)
    names = ("task", "n_ctx", "n_ctx_abnormal", "n_pro", "n_pro_abnormal", "memory_layers", "memory_tap", "temperature")
    old = {name: o[name] for name in (*names, "eval_size", "sigma")}
    options: dict[str, Any] = migrated({"name": "promptad", "method": old})["method"]  # fixtures have the first names
    return options


def load_group(fixture: Fixture, group: str, method: VVMemoryMethod, folder: Path) -> None:
    """A group's published file, all keys of it, through the importer."""
    o = fixture.options(group)
    path = folder / f"{o['task'].upper()}-Seed_{o.get('seed', 111)}-{o['category']}-check_point.safetensors"
    save_file(fixture.inputs(f"{group}/ckpt/"), path)
    load_published(method, path).eval()


def check_towers(fixture: Fixture, group: str, method: VVMemoryMethod, batch: Batch) -> None:
    tokens = method.frozen_tokens(batch)
    values = {"feat_cls": tokens["cls"], "feat_patch": tokens["patches"]}
    values |= {f"feat_mid{i + 1}": layer for i, layer in enumerate(tokens["memory"].unbind(dim=1))}
    for name, value in values.items():
        if fixture.has(key := f"{group}/out/{name}"):
            fixture.check(key, value)


def check_maps(fixture: Fixture, group: str, method: VVMemoryMethod, batch: Batch, prefix: str = "out/") -> Comparison:
    """Everything between the texts and the prediction that the group holds."""
    found, prediction = method.compare(batch), method.predict(batch)
    size = (prediction.map.shape[-2], prediction.map.shape[-1])
    values = {
        "textual_map": found.textual.unflatten(1, found.grid)[:, None],
        "visual_map": found.visual.unflatten(1, found.grid)[:, None],
        "fused_map": found.fused()[:, None],
        "textual_score": found.score,
        "visual_map_upsampled": found.visual_map(size),
        "anomaly_map": prediction.map,
        "image_score": prediction.score,
    }
    for name, value in values.items():
        if fixture.has(key := f"{group}/{prefix}{name}"):
            fixture.check(key, value)
    return found


def check_memory(fixture: Fixture, group: str, method: VVMemoryMethod) -> None:
    """The memory fitted to the references against the published file's."""
    category = method.category(fixture.options(group)["category"])
    for i, bank in enumerate(category.memory):
        fixture.check(f"{group}/ckpt/feature_gallery{i + 1}", bank.bank)


def check_ids(fixture: Fixture, key: str, ids: Tensor) -> None:
    """Token ids against the fixture's, which may be cut behind the longest sentence."""
    expected = fixture.tensors[key]
    length = expected.shape[-1]
    assert not ids[..., length:].any()
    fixture.check(key, ids[..., :length])
