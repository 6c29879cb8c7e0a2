"""AA-CLIP against the published program: both towers, both stages, all image scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from anomaly_vlm.backbone import run_blocks
from anomaly_vlm.data.types import Batch
from anomaly_vlm.losses import build_terms
from anomaly_vlm.methods.aaclip import AACLIP
from anomaly_vlm.methods.aaclip.published import key as published_key
from anomaly_vlm.methods.aaclip.scores import smoothed
from anomaly_vlm.methods.aaclip.texts import Sentences
from anomaly_vlm.methods.base.published import load_published
from tests.support.conf import loss_conf
from tests.support.few_shot import make_batch
from tests.support.golden import Fixture, fixture_paths, golden_backbone

pytestmark = pytest.mark.golden
NAMES = ("layers", "image_adapt_until", "text_adapt_until", "image_weight", "text_weight", "projection_relu")
NAMES += ("adapt_text", "vv_blocks", "vv_axis", "stage1_levels", "scale", "class_words", "domain", "image_score")


def build(fixture: Fixture, group: str, folder: Path, **changes: Any) -> AACLIP:
    o = {**fixture.options(group), **changes}
    backbone = golden_backbone(
        fixture.settings["backbone"],
        pos_resize=o["pos_resize"],
        activation=o["activation"],
        image_size=fixture.settings["image_size"],
    )
    conf = loss_conf("aaclip")
    conf["texts"]["weight"] = o["text_norm_weight"]
    stages = {"text_lr": o["text_lr"], "image_lr": o["image_lr"]}
    method = AACLIP(backbone, losses=build_terms(conf), stages=stages, **{name: o[name] for name in NAMES})
    known = method.sentences.described
    assert all(known[name] == word for name, word in o["described"].items()), "described words of the fixture"
    tensors = fixture.inputs("ckpt/")
    if o["projection_relu"] != fixture.options()["projection_relu"]:  # the same matrices under the other layout's keys
        old, new = (
            (".fc.0.weight", ".fc.weight") if fixture.options()["projection_relu"] else (".fc.weight", ".fc.0.weight")
        )
        tensors = {k.replace(old, new) if "_proj" in k else k: v for k, v in tensors.items()}
    folder.mkdir(exist_ok=True)
    for entry in ("text_adapter", "image_adapter"):
        inner = {k.removeprefix(f"{entry}."): v for k, v in tensors.items() if k.startswith(f"{entry}.")}
        save_file(inner, folder / f"{entry}.safetensors")
    return load_published(method, folder).eval()


def whole_batch(fixture: Fixture) -> Batch:
    names = fixture.options()["categories"]
    categories = [names[i] for i in fixture.input("in/category").tolist()]
    batch = make_batch(fixture.input("in/images"), categories)
    batch.label = fixture.input("in/label").long()
    batch.mask = fixture.input("in/mask").to(torch.uint8)
    return batch


def part_of(batch: Batch, rows: list[int]) -> Batch:
    assert batch.mask is not None
    part = make_batch(batch.image[rows], [batch.category[i] for i in rows])
    part.label, part.mask = batch.label[rows], batch.mask[rows]
    return part


@pytest.mark.parametrize("path", fixture_paths("aaclip"), ids=lambda path: path.stem)
def test_aaclip_matches_the_published_program(path: Path, tmp_path: Path) -> None:
    fixture = Fixture(path)
    batch = whole_batch(fixture)
    method = build(fixture, "", tmp_path / "main")
    with torch.no_grad():
        check_towers(fixture, method, batch)
        check_scores(fixture, method, batch)
        check_texts(fixture, tmp_path)
        for group in [name for name in fixture.settings["groups"] if not name.startswith("stage1")]:
            check_variant(fixture, group, build(fixture, group, tmp_path / group), batch)
    for group in ["stage1", *(name for name in fixture.settings["groups"] if name.startswith("stage1"))]:
        first = part_of(batch, fixture.options(group)["stage1_batch"])
        check_first_stage(fixture, group, build(fixture, group, tmp_path / group), first)
    second = part_of(batch, fixture.options()["stage2_batch"])
    check_second_stage(fixture, build(fixture, "", tmp_path / "second"), second)
    fixture.finish()


def check_towers(fixture: Fixture, method: AACLIP, batch: Batch) -> None:
    side = batch.size[0] // method.backbone.patch_size
    fixture.check("mid/pos_embed_resized", method.backbone.positions((side, side)))
    first = method.backbone.encode_image(batch.image[:1], layers=[1], adapters=list(method.image_adapters)).tokens[0]
    fixture.check("mid/block_1", first[0])
    assert method.text is not None
    clip, ids = method.backbone, fixture.input("mid/text_ids").long()
    known = [Sentences("aaclip_prompts", kind) for kind in ("described", "plain", "object")]
    sides = [words.sides(category) for words in known for category in fixture.options()["categories"]]
    sentences = [sentence for pair in sides for side in pair for sentence in side]
    assert any(torch.equal(clip.tokenize([sentence]), ids) for sentence in sentences), "one of the method's sentences"
    numbers = [int(k.rpartition("_")[2]) for k in fixture.tensors if k.startswith("mid/text_block_")]
    adapters = list(method.text.adapters)
    blocks = clip.text.transformer.resblocks
    taps = run_blocks(blocks, clip.embed_text(ids), causal=True, taps=numbers, adapters=adapters).taps
    for number in numbers:
        fixture.check(f"mid/text_block_{number}", taps[number][0])
    raw = clip.encode_text(ids, adapters=adapters, projection=method.text.projected)
    fixture.check("mid/text_raw", raw)


def check_scores(fixture: Fixture, method: AACLIP, batch: Batch) -> None:
    patches, image = method.encode(batch.image)
    fixture.check("out/patches_last", patches[-1, :1])
    fixture.check("out/det_feature", image[:1])
    texts = torch.stack([method.text_features(category) for category in batch.category])
    grids = method.level_grids(patches, texts, method.grid_of(batch.size))
    fixture.check("out/grid_before_blur", grids[:, 0])
    fixture.check("out/grid", smoothed(grids, method.domain)[:, 0])
    maps, values = method.maps_and_values(batch)
    fixture.check("out/map", maps)
    fixture.check("out/det", values)
    method.calibrate([part_of(batch, [i]) for i in range(len(batch))])
    fixture.check("calibrated/range", method.range)
    fixture.check("calibrated/image_score", method.predict(batch).score)


def check_texts(fixture: Fixture, folder: Path) -> None:
    for kind in ("described", "plain", "object"):
        prefix = f"text/{kind}"
        keys = [k for k in fixture.tensors if k == prefix or k.startswith(f"{prefix}/")]
        keys += [k for k in fixture.tensors if kind == "described" and k.startswith("text/extra/")]
        method = build(fixture, "", folder / kind, class_words=kind)
        for key in keys:
            category = "any" if key == prefix else key.rpartition("/")[2]
            if "/extra/" in key:  # named DATASET_CATEGORY
                sets = [name for name in method.sentences.texts["described"] if category.startswith(f"{name}_")]
                category = category.removeprefix(f"{max(sets, key=len)}_")
            fixture.check(key, method.text_features(category).T)


def check_variant(fixture: Fixture, group: str, method: AACLIP, batch: Batch) -> None:
    """What a group holds of maps, image values, texts and scores under its options."""
    for key in [k for k in fixture.tensors if k.startswith((f"{group}/text/", "text_frozen/"))]:
        if key.startswith("text_frozen/") == (group == "text_frozen"):
            fixture.check(key, method.text_features(key.rpartition("/")[2]).T)
    maps, values = method.maps_and_values(batch)
    for key, value in ((f"{group}/map", maps[:1, ::2, ::2]), (f"{group}/det", values)):
        if fixture.has(key):
            fixture.check(key, value)
    if not fixture.has(f"{group}/image_score") or group == "calibrated":
        return
    components = method.predict(batch).score_components
    assert components is not None
    scores, peaks = torch.empty(len(batch)), torch.empty(len(batch))
    for category in dict.fromkeys(batch.category):
        rows = [i for i, name in enumerate(batch.category) if name == category]
        scores[rows] = method.category_scores(components[rows])
        low, high = components[rows, 1].min(), components[rows, 0].max()
        peaks[rows] = (components[rows, 0] - low) / (high - low)
    fixture.check(f"{group}/image_score", scores)
    if fixture.has(key := f"{group}/map_max"):
        fixture.check(key, peaks)


def check_levels(fixture: Fixture, group: str, method: AACLIP, patches: Tensor, texts: Tensor, batch: Batch) -> None:
    """Focal and both dice losses of every level, and the last level's map of the first image."""
    assert batch.mask is not None
    mask = (batch.mask == 1).float()
    logits = method.abnormal_logits(patches, texts, batch.size)
    abnormal, normal = logits.sigmoid(), (-logits).sigmoid()
    focal = torch.stack([method.terms["focal"](level, mask).mean() for level in abnormal])
    dice = [
        torch.stack([method.terms["dice"](x, y).mean() for x in p]) for p, y in ((normal, 1 - mask), (abnormal, mask))
    ]
    values = {"focal": focal, "dice_normal": dice[0], "dice_abnormal": dice[1], "abnormal_map_last": abnormal[-1, :1]}
    for name, value in values.items():
        if fixture.has(key := f"{group}/{name}"):
            fixture.check(key, value)
    for i, level in enumerate(patches):
        if fixture.has(key := f"{group}/patches_{i}"):
            fixture.check(key, level[:1])


def check_step(fixture: Fixture, group: str, method: AACLIP, losses: dict[str, Tensor], part: str) -> None:
    """The total, its gradients, and the first rows of the matrices after one step."""
    o = fixture.options(group)
    optimizer = torch.optim.Adam(method.parameter_groups(), betas=tuple(o["betas"]))
    total = method.total_loss(losses)
    fixture.check(f"{group}/total", total)
    total.backward()
    optimizer.step()
    for name, parameter in method.learnable().items():
        kind, _, key = published_key(method, name).partition(".")
        if kind != part:
            assert parameter.grad is None, f"{name} has no part in this stage"
            continue
        key = key.replace(".fc.0.", ".fc.") if "_proj" in key and not fixture.options()["projection_relu"] else key
        if fixture.has(full := f"{group}/grad/{key}"):
            fixture.check(full, parameter.grad)
        if fixture.has(full := f"{group}/after/{key}"):
            fixture.check(full, parameter[:8])


def check_first_stage(fixture: Fixture, group: str, method: AACLIP, batch: Batch) -> None:
    patches, cls = method.encode_unadapted(batch.image)
    if fixture.has(key := f"{group}/cls_raw"):
        fixture.check(key, cls)
    texts = torch.stack([method.text_features(category) for category in batch.category])
    check_levels(fixture, group, method, patches, texts, batch)
    losses = method.text_losses(batch)
    fixture.check(f"{group}/orthogonal", losses["texts"])
    check_step(fixture, group, method, losses, "text_adapter")


def check_second_stage(fixture: Fixture, method: AACLIP, batch: Batch) -> None:
    patches, image = method.encode(batch.image)
    texts = torch.stack([method.text_features(category) for category in batch.category])
    fixture.check("stage2/logits", torch.einsum("bc,bkc->bk", image, texts))
    check_levels(fixture, "stage2", method, patches, texts, batch)
    losses = method.image_losses(batch)
    fixture.check("stage2/ce", losses["ce"])
    check_step(fixture, "stage2", method, losses, "image_adapter")
