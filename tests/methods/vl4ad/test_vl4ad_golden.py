"""VL4AD against FC-CLIP's published code and SegmentMeIfYouCan's metrics: features, masks, scores, losses, gradients."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from anomaly_vlm.backbone import ConvNextBackbone, load_backbone
from anomaly_vlm.losses import build_terms
from anomaly_vlm.methods.base.published import layout_of, load_published
from anomaly_vlm.methods.vl4ad import VL4AD
from anomaly_vlm.methods.vl4ad.mask_matching import segments
from anomaly_vlm.methods.vl4ad.pixel_scores import anomaly_score, mask_probabilities
from anomaly_vlm.metrics import ComponentMetrics, PixelMetrics
from anomaly_vlm.runs.migrate import migrated
from tests.support.conf import loss_conf
from tests.support.golden import ROOT, Fixture, merged

pytestmark = pytest.mark.golden


def settings_files() -> list[Path]:
    """The trunk's own configuration lies beside the fixtures."""
    found = [path for path in sorted((ROOT / "vl4ad").glob("*.json")) if path.with_suffix(".safetensors").is_file()]
    if not found:
        raise FileNotFoundError(f"no golden fixture of vl4ad in {ROOT}")
    return found


class Towers:
    """The fixture's trunk and the shared text tower as one weights file."""

    def __init__(self, fixture: Fixture, folder: Path) -> None:
        o = fixture.options()
        self.name = fixture.settings["backbone"]
        self.architecture = json.loads((ROOT / "vl4ad" / f"{self.name}.json").read_text())
        text = load_file(ROOT / "backbone" / f"{o['text_backbone']}.safetensors")
        state = {key: value for key, value in text.items() if not key.startswith("visual.")}
        state.update(fixture.inputs("backbone/"))
        self.path = folder / "towers.safetensors"
        save_file(state, self.path)

    def load(self) -> ConvNextBackbone:
        backbone = load_backbone(self.name, architecture=self.architecture, weights=str(self.path))
        assert isinstance(backbone, ConvNextBackbone)
        return backbone


def terms(o: dict[str, Any]) -> dict[str, Any]:
    """The shipped loss with the fixture's weights."""
    conf = merged(loss_conf("vl4ad"), {name: {"weight": float(weight)} for name, weight in o["weights"].items()})
    return build_terms(merged(conf, {"class": {"no_object": o["no_object"]}}))


def build(fixture: Fixture, towers: Towers, group: str = "", **changes: Any) -> VL4AD:
    o = fixture.options(group)
    names = ("queries", "hidden", "heads", "pixel_layers", "pixel_ffn", "decoder_layers", "decoder_ffn", "points")
    names += ("merge", "ood_prompts", "void", "ensemble", "alpha", "beta", "score")
    old = {"concepts": Path(o["concepts"]).stem, **{name: o[name] for name in names}, **changes}
    options = migrated({"name": "vl4ad", "method": old})["method"]  # fixtures have the options' first names
    method = VL4AD(towers.load(), losses=terms(o), **options)
    path = towers.path.with_name("published.safetensors")
    save_file(fixture.inputs("ckpt/"), path)
    load_published(method, path)
    return method.eval()


def images(fixture: Fixture, method: VL4AD) -> Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (method.backbone.mean, method.backbone.std))
    return (fixture.input("in/images_uint8").float() / 255 - mean) / std


def thinned(value: Tensor, expected: Tensor) -> Tensor:
    """Every second row and column, where the fixture stores those."""
    return value if value.shape[-2:] == expected.shape[-2:] else value[..., ::2, ::2]


@pytest.mark.parametrize("path", settings_files(), ids=lambda path: path.stem)
def test_every_tensor(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fixture = Fixture(path)
    towers = Towers(fixture, tmp_path)
    o = fixture.options()
    size = tuple(o["output_size"])
    base = build(fixture, towers)
    assert base.clip.stride == o["pad_multiple"]
    x = images(fixture, base)
    assert tuple(x.shape[-2:]) == tuple(fixture.settings["image_size"])

    def check(key: str, value: Tensor, **tolerance: float) -> None:
        if fixture.has(key):
            fixture.check(key, thinned(value, fixture.tensors[key]), **tolerance)

    with torch.no_grad():
        padded = base.clip.pad(x)
        pyramid = base.clip.encode_image(padded)
        decoded = base.decoder(pyramid.maps)
        for level, features in enumerate(pyramid.maps):
            check(f"mid/res{level + 2}", features[:1])
        for level, features in enumerate(decoded.levels):
            check(f"mid/multi_scale_{level}", features[:1])
        check("mid/mask_features", decoded.pixels[:1])
        for stage in range(len(decoded.masks) - 1):
            check(f"aux/mask_logits_{stage}", decoded.masks[stage][:1], atol=1e-4)
            check(f"aux/class_logits_{stage}", base.class_logits(decoded, stage, base.train_columns))
        check("out/mask_logits", decoded.masks[-1], atol=1e-4)
        frame = (tuple(padded.shape[-2:]), tuple(x.shape[-2:]), size)
        check("out/mask_prob", mask_probabilities(decoded.masks[-1], *frame)[:1])

    for group in fixture.settings["groups"]:
        if group.startswith("component"):
            continue
        method = build(fixture, towers, group)
        with torch.no_grad():
            check(f"{group}/text", method.concept_vectors(method.columns))
            check(f"{group}/class_logits", method.class_logits(decoded, -1, method.columns))
            if method.clip_classifier.ensemble == "geometric":
                check_second_classifier(fixture, method, decoded, pyramid.dense, group)
            y = method.pixel_classes(x, size)
            check(f"{group}/class_map", y.by_class[:1])
            check(f"{group}/anomaly", anomaly_score(y, method.score))
            if fixture.has(f"{group}/anomaly_no_void"):
                ignoring = build(fixture, towers, group, void="ignore")
                check(f"{group}/anomaly_no_void", anomaly_score(ignoring.pixel_classes(x, size), ignoring.score))
            if group == "plain":
                for score in ("rba", "max_inside"):
                    check(f"scores/{score}", anomaly_score(y, score))
                one_by_one = build(fixture, towers, group)
                one_by_one.chunk = 1  # what streams cannot depend on how many masks come at a time
                torch.testing.assert_close(one_by_one.pixel_classes(x, size).by_class, y.by_class)

    check_training(fixture, towers, monkeypatch)
    check_components(fixture)
    fixture.finish(
        {key: "informative only (fixture's README)" for key in fixture.tensors if key.endswith("/siou_pred")}
    )


def check_second_classifier(fixture: Fixture, method: VL4AD, decoded: Any, dense: Tensor, group: str) -> None:
    from torch.nn.functional import interpolate, normalize

    from anomaly_vlm.methods.vl4ad.mask_decoder import pool

    masks = interpolate(decoded.masks[-1], size=dense.shape[-2:], mode="bilinear", align_corners=False)
    pooled = pool(masks, dense)
    if fixture.has("mid/clip_pooled"):
        fixture.check("mid/clip_pooled", pooled)
        embedded = normalize(method.clip.project(pooled.flatten(0, 1)), dim=-1).unflatten(0, pooled.shape[:2])
        fixture.check("mid/clip_mask_embed", embedded)
    if fixture.has(f"{group}/out_vocab_logits"):
        fixture.check(f"{group}/out_vocab_logits", method.clip_logits(decoded.masks[-1], dense, method.columns))


@contextmanager
def fixed_points(monkeypatch: pytest.MonkeyPatch, method: VL4AD, matcher: Tensor, masks: Tensor) -> Iterator[None]:
    """Every random draw of points gives these: one set [P, 2] an image for the matcher, then those of the matched masks."""
    draws = iter(matcher)
    assert method.matching is not None
    with monkeypatch.context() as patch:
        patch.setattr(torch, "rand", lambda *shape, **_: next(draws)[None])
        patch.setattr(method.matching.criterion, "sample_points_using_uncertainty", lambda *_: masks)
        yield


def check_training(fixture: Fixture, towers: Towers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Matching, terms and gradients of the last stage at the fixture's points; gradients in float64."""
    for dtype in (torch.float32, torch.float64):
        method = build(fixture, towers)
        x = method.clip.pad(images(fixture, method))
        with torch.no_grad():
            maps = [part.to(dtype) for part in method.clip.encode_image(x).maps]
        method.decoder.to(dtype)
        method.classifier.to(dtype)
        label_map = fixture.input("train/label_map")
        targets = [(classes, masks.to(dtype)) for classes, masks in segments(label_map)]
        points = [fixture.input(f"train/points_{name}").to(dtype) for name in ("matcher", "mask")]
        with fixed_points(monkeypatch, method, *points):
            decoded = method.decoder(maps)
            logits = method.class_logits(decoded, -1, method.train_columns)
            values = method.stage_losses(decoded.masks[-1], logits, targets)
        total = method.total_loss(values)
        if dtype == torch.float32:
            for key, name in (("ce", "class"), ("mask", "mask"), ("dice", "dice")):
                fixture.check(f"train/loss_{key}", values[name])
            fixture.check("train/total", total)
            with fixed_points(monkeypatch, method, *points):
                assert method.matching is not None
                matched = method.matching(decoded.masks[-1], logits, targets)
            for key in ("image", "query", "target"):
                fixture.check(f"train/match_{key}", getattr(matched, key))
        else:
            total.backward()
            named = {layout_of(method).key(method, name): p for name, p in method.learnable().items()}
            for key in [key for key in fixture.tensors if key.startswith("grad/")]:
                fixture.check(key, named[key.removeprefix("grad/")].grad, rtol=1e-3, atol=1e-4)


def check_components(fixture: Fixture) -> None:
    score, label = fixture.input("component/score"), fixture.input("component/label")
    pixel = PixelMetrics(aupro_limits=())
    pixel.update(score, label)
    found = pixel.compute()
    for key in ("pixel_ap", "pixel_auroc", "pixel_fpr95"):
        fixture.check(f"component/{key}", found[key])
    fixture.check("component/best_f1", found["pixel_f1_max"], atol=1e-9)
    fixture.check("component/threshold_ge", found["pixel_f1_max_threshold"], rtol=0, atol=0)
    exact = {"rtol": 0.0, "atol": 1e-9}
    for group in fixture.settings["groups"]:
        if not group.startswith("component/"):
            continue
        metric = ComponentMetrics(**fixture.options(group)["component"])
        for i in range(len(score)):
            metric.update(score[i], label[i], index=torch.tensor([i]))
        values, details = metric.compute(), metric.details()
        fixture.check("component/threshold_strict", values["threshold"], rtol=0, atol=0)
        for key in ("tp", "fn", "fp", "gt_per_frame", "pred_per_frame"):
            fixture.check(f"{group}/{key}", torch.from_numpy(details[key]), rtol=0, atol=0)
        for key, name in (("siou_gt", "siou"), ("ppv_pred", "ppv"), ("f1", "f1")):
            fixture.check(f"{group}/{key}", torch.from_numpy(details[name]), **exact)
        for key, name in (("mean_siou", "siou"), ("mean_ppv", "ppv"), ("mean_f1", "f1")):
            fixture.check(f"{group}/{key}", values[name], **exact)


def test_official_checkpoints_are_checked(tmp_path: Path) -> None:
    """Every key of the published layout has its place; FC-CLIP's own trunk and criterion are left out."""
    fixture = Fixture(settings_files()[0])
    towers = Towers(fixture, tmp_path)
    state = copy.deepcopy(fixture.inputs("ckpt/"))
    model = {**state, "backbone.clip_model.logit_scale": torch.ones(()), "criterion.empty_weight": torch.ones(3)}
    torch.save({"model": model, "iteration": 7}, tmp_path / "model_final.pth")
    method = build(fixture, towers)
    with torch.no_grad():
        method.classifier.void.zero_()
    load_published(method, tmp_path / "model_final.pth")
    assert torch.equal(method.classifier.void, state["void_embedding.weight"])
