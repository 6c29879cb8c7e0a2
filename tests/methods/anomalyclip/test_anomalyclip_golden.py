"""AnomalyCLIP against the published implementation's numbers: towers, sentences, maps, scores, losses, gradients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anomaly_vlm.data.transforms import normalise, resize_image, resize_mask
from anomaly_vlm.data.types import Batch, Preprocess
from anomaly_vlm.losses import build_terms, training_mask
from anomaly_vlm.methods.anomalyclip import AnomalyCLIP
from anomaly_vlm.methods.shared.maps import gaussian_smooth
from tests.support.conf import loss_conf
from tests.support.dual_path import (
    backbone,
    check_gradients,
    check_prompts,
    check_towers,
    load,
    make_batch,
    options,
    unused,
)
from tests.support.golden import Fixture, fixture_paths

pytestmark = pytest.mark.golden


def build(fixture: Fixture, layers: list[int], folder: Path) -> AnomalyCLIP:
    o = fixture.options()
    method = AnomalyCLIP(
        backbone(fixture),
        layers=layers,
        context_length=o["context_tokens"],
        losses=build_terms(loss_conf("anomalyclip")),
        **options(fixture),
    )
    return load(fixture, method, folder)


def check_outputs(fixture: Fixture, method: AnomalyCLIP, batch: Batch, group: str) -> None:
    clip, size = method.backbone, (batch.image.shape[-2], batch.image.shape[-1])
    raw_key = group + "out/patch_raw"
    count = len(fixture.tensors[raw_key])  # group `multi/` holds image 0 only
    tokens = clip.encode_image(batch.image[:count], layers=method.layers, vv_from=method.vv_from)
    fixture.check(raw_key, torch.stack([clip.project(layer) for layer in tokens.tokens], dim=1))
    features, text = method.frozen_features(batch), method.text_features()
    prob = method.patch_prob(features, text)
    maps = method.layer_maps(prob, features.grid, size)
    fixture.check(group + "out/patch_prob", prob.transpose(0, 1))
    fixture.check(group + "out/anomaly_map_raw", maps.sum(dim=0))
    prediction = method.predict(batch)
    fixture.check(group + "out/anomaly_map", prediction.map)
    torch.testing.assert_close(gaussian_smooth(maps.sum(dim=0), method.sigma).detach(), prediction.map)
    if group:
        return
    encoded = method.encode_sentences(*method.prompts())
    fixture.check("out/text_raw", encoded)
    fixture.check("out/text_features", text)
    check_prompts(fixture, "out/prompts", method.prompts())
    fixture.check("out/layer_maps", maps.transpose(0, 1))
    fixture.check("out/cls_logits", features.cls @ text.T / method.temperature)
    fixture.check("out/image_score", prediction.score)


def check_losses(fixture: Fixture, method: AnomalyCLIP, batch: Batch, group: str) -> None:
    mask = training_mask(batch.mask, batch.path, method.terms)
    features, text = method.frozen_features(batch), method.text_features()
    maps = method.layer_maps(method.patch_prob(features, text), features.grid, (mask.shape[-2], mask.shape[-1]))
    focal, dice = method.terms["focal"], method.terms["dice"]
    fixture.check(group + "loss/focal", torch.stack([focal(m, mask).mean() for m in maps]))
    fixture.check(group + "loss/dice_abnormal", torch.stack([dice(m, mask).mean() for m in maps]))
    fixture.check(group + "loss/dice_normal", torch.stack([dice(1 - m, 1 - mask).mean() for m in maps]))
    values = method.losses(batch)  # the public way, as training calls it
    fixture.check(group + "loss/image_ce", values["image"])
    local = {name: value for name, value in values.items() if name != "image"}
    fixture.check(group + "loss/local_weighted", method.total_loss(local))
    total = method.total_loss(values)
    fixture.check(group + "loss/total", total)
    total.backward()
    check_gradients(fixture, method, group)


def check_preprocessing(fixture: Fixture) -> None:
    """The zero-shot protocol's transform of an image and its mask."""
    clip = backbone(fixture)
    wanted = Preprocess(
        size=fixture.settings["image_size"], mean=clip.mean, std=clip.std, rgb="after", mask_resize="bilinear"
    )
    image = Image.fromarray(fixture.input("in/raw_image_uint8").numpy().astype(np.uint8))
    fixture.check("out/preprocessed_image", normalise(resize_image(image, wanted).float() / 255, wanted))
    mask = Image.fromarray(fixture.input("in/raw_mask_uint8").numpy().astype(np.uint8))
    expected = fixture.tensors["out/preprocessed_mask"][0] > 0.5
    assert torch.equal(resize_mask(mask, wanted).bool(), expected)
    fixture.mark("out/preprocessed_mask")


@pytest.mark.parametrize("path", fixture_paths("anomalyclip"), ids=lambda path: path.stem)
def test_every_tensor(path: Path, tmp_path: Path) -> None:
    fixture = Fixture(path)
    o = fixture.options()
    batch = make_batch(fixture)
    main = build(fixture, o["layers"], tmp_path)
    check_towers(fixture, main, batch)
    check_outputs(fixture, main, batch, "")
    check_losses(fixture, main, batch, "")
    if any(key.startswith("multi/") for key in fixture.tensors):
        several = build(fixture, o["multi_layers"][o["multi_layers_first_used"] :], tmp_path)
        check_outputs(fixture, several, batch, "multi/")
        check_losses(fixture, several, batch, "multi/")
    check_preprocessing(fixture)
    fixture.finish(unused(fixture))
