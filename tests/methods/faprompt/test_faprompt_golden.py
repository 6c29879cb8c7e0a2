"""FAPrompt against the published implementation's numbers: sentences, both stages, maps, scores, losses, gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch
import torch.nn.functional as F

from anomaly_vlm.data.types import Batch
from anomaly_vlm.losses import build_terms, training_mask
from anomaly_vlm.methods.faprompt import FAPrompt
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
SELECT: dict[str, Literal["published", "paper"]] = {"first": "published", "topk": "paper"}  # words of the fixtures


def build(fixture: Fixture, group: str, folder: Path) -> FAPrompt:
    o = fixture.options(group)
    method = FAPrompt(
        backbone(fixture),
        normal_tokens=o["normal_tokens"],
        abnormal_tokens=o["abnormal_tokens"],
        abnormal_prompts=o["abnormal_prompts"],
        selected_patches=o["selected_patches"],
        select=SELECT[o["dap"]["select"]],
        losses=build_terms(loss_conf("faprompt")),
        **options(fixture),
    )
    return load(fixture, method, folder)


class Run:
    """One group of tensors; each output is compared where the fixture has it."""

    def __init__(self, fixture: Fixture, group: str, method: FAPrompt, batch: Batch) -> None:
        self.fixture, self.method, self.batch = fixture, method, batch
        self.prefix = f"{group}/" if group else ""

    def check(self, key: str, value: torch.Tensor) -> None:
        if self.fixture.has(self.prefix + key):
            self.fixture.check(self.prefix + key, value)

    def forward(self) -> None:
        method, batch = self.method, self.batch
        features, texts = method.frozen_features(batch), method.texts()
        pair, stages = texts.pair(), method.stages(features, texts)
        patches = features.patches[0]
        self.check("out/text_normal_raw", texts.normal[None])
        self.check("out/text_abnormal_raw", texts.abnormal)
        self.check("out/text_stage1", pair)
        self.check("out/patch_prob1", torch.stack([1 - stages.prob1, stages.prob1], dim=-1))
        self.check("out/max1", stages.prob1.amax(dim=1))
        selected = method.selected(patches, stages.prob1)
        self.check("out/selected", selected)
        self.check("out/omega", stages.offset)
        if self.fixture.has(self.prefix + "out/topk_index"):
            index = stages.prob1.topk(method.selected_patches, dim=1).indices
            assert torch.equal(index, self.fixture.tensors[self.prefix + "out/topk_index"].long())
            self.fixture.mark(self.prefix + "out/topk_index")
        adapted = method.adapted(stages.offset)
        pairs = method.adapted_pairs(texts, adapted)
        self.check("out/text_abnormal_dap_raw", adapted)
        self.check("out/text_stage2", pairs)
        self.check("out/patch_prob2", torch.stack([1 - stages.prob2, stages.prob2], dim=-1))
        self.check("out/max2", stages.prob2.amax(dim=1))
        self.check("out/cls_logits", torch.einsum("bc,bkc->bk", features.cls, pairs) / method.temperature)
        self.check("out/cls_prob", stages.cls)
        maps = method.maps(stages, features.grid, (batch.image.shape[-2], batch.image.shape[-1]))
        self.check("out/map1_abnormal", maps[0])
        self.check("out/map2_abnormal", maps[1])
        self.check("out/anomaly_map_raw", maps.mean(dim=0))
        prediction = method.predict(batch)  # the public way
        self.check("out/anomaly_map", prediction.map)
        self.check("out/image_score", prediction.score)
        self.check("loss/image_score_train", method.image_score(stages))

    def losses(self) -> None:
        method, batch, terms = self.method, self.batch, self.method.terms
        mask = training_mask(batch.mask, batch.path, method.terms)
        features = method.frozen_features(batch)
        maps = method.maps(method.stages(features, method.texts()), features.grid, (mask.shape[-2], mask.shape[-1]))
        for i, m in enumerate(maps, start=1):
            self.check(f"loss/dice_abnormal_map{i}", terms[f"dice_map{i}"](m, mask).mean())
            self.check(f"loss/dice_normal_map{i}", terms[f"dice_map{i}"](1 - m, 1 - mask).mean())
        values = method.losses(batch)
        self.check("loss/focal_map1", values["focal_map1"])
        self.check("loss/focal_map2", values["focal_map2"])
        self.check("loss/local", method.total_loss({k: v for k, v in values.items() if "_map" in k}))
        self.check("loss/image_ce", values["image"])
        self.check("loss/image_focal", values["image_focal"])
        self.check("loss/orthogonal", values["orthogonality"])
        self.check("loss/prior", values["prior"])
        total = method.total_loss(values)
        self.check("loss/total", total)
        total.backward()
        check_gradients(self.fixture, method, self.prefix)


@pytest.mark.parametrize("path", fixture_paths("faprompt"), ids=lambda path: path.stem)
def test_every_tensor(path: Path, tmp_path: Path) -> None:
    fixture = Fixture(path)
    batch = make_batch(fixture)
    for group in ["", *fixture.settings.get("groups", {})]:
        method = build(fixture, group, tmp_path)
        if not group:
            check_towers(fixture, method, batch)
            tokens = method.backbone.encode_image(batch.image, layers=method.layers, vv_from=method.vv_from)
            raw = method.backbone.project(tokens.tokens[0])
            fixture.check("out/patch_raw", raw)
            torch.testing.assert_close(F.normalize(raw[:, 1:], dim=-1), method.frozen_features(batch).patches[0])
            check_prompts(fixture, "out/prompts_normal", method.normal_prompt())
            check_prompts(fixture, "out/prompts_abnormal", method.abnormal_prompts())
        run = Run(fixture, group, method, batch)
        run.forward()
        run.losses()
    fixture.finish({**unused(fixture), "meta/no_grad_params": "a count of the reference's unused projections"})
