"""PromptAD against the published implementation's numbers: sentences, towers, memory, maps, scores, losses, one step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from anomaly_vlm.losses import build_terms
from anomaly_vlm.methods.promptad import PromptAD
from anomaly_vlm.methods.promptad.prompt_learner import class_phrases
from tests.support.conf import loss_conf
from tests.support.few_shot import (
    check_ids,
    check_maps,
    check_memory,
    check_towers,
    load_group,
    make_batch,
    make_references,
    options,
    towers,
)
from tests.support.golden import Fixture, fixture_paths

pytestmark = pytest.mark.golden


def build(fixture: Fixture, group: str) -> PromptAD:
    o, losses = fixture.options(group), loss_conf("promptad")
    losses["eam"] |= {"margin": o["margin"], "dim": o["eam_dim"]}
    losses["alignment"]["weight"] = o["lambda"]
    return PromptAD(towers(fixture), losses=build_terms(losses), **options(fixture, group))


class Run:
    """One group of tensors."""

    def __init__(self, fixture: Fixture, group: str, folder: Path) -> None:
        self.fixture, self.group, self.options = fixture, group, fixture.options(group)
        self.method = build(fixture, group)
        self.category: str = self.options["category"]
        self.test = make_batch(fixture.input(f"{group}/in/images"), self.category)
        self.shots = make_references(fixture.input(f"{group}/in/reference_images"), self.category)
        self.method.fit_references([self.shots])
        check_memory(fixture, group, self.method)
        load_group(fixture, group, self.method, folder)
        self.learner = self.method.category(self.category).learner(self.options["task"])

    def check(self, key: str, value: torch.Tensor) -> None:
        self.fixture.check(f"{self.group}/{key}", value)

    def sentences(self) -> None:
        word, states = class_phrases(self.method.table, self.category)
        assert (word, len(states)) == (self.options["class_word"], self.options["n_states"])
        ids: Any = self.learner.families["image"]
        clip = self.method.backbone
        for name, rows in (
            ("normal", ids.normal),
            ("abnormal_handle", ids.manual),
            ("abnormal_learned", ids.learned),
        ):
            check_ids(self.fixture, f"{self.group}/in/tokens_{name}", rows)
            embedded = self.learner.fill(clip, rows, abnormal=name == "abnormal_learned")
            if self.fixture.has(key := f"{self.group}/mid/{name}_prompt_embeddings"):
                self.fixture.check(key, embedded[:, : self.fixture.tensors[key].shape[1]])

    def texts(self) -> None:
        raw = self.method.sentence_features(self.learner)
        self.check("mid/train_normal_text_raw", raw.normal)
        self.check("mid/train_abnormal_handle_raw", raw.manual)
        self.check("mid/train_abnormal_learned_raw", raw.learned)
        self.check("ckpt/text_features", raw.pair())

    def losses(self) -> None:
        method = self.method
        values = method.losses(self.shots.batch)
        total = method.total_loss(values)
        self.check("loss/v2t", values["contrastive"][None])
        self.check("loss/triplet", values["eam"][None])
        self.check("loss/match_abnormal", values["alignment"][None])
        self.check("loss/total", total[None])
        total.backward()
        o = self.options
        sgd = torch.optim.SGD(
            method.learnable().values(), lr=o["lr"], momentum=o["momentum"], weight_decay=o["weight_decay"]
        )
        for name in ("normal_ctx", "abnormal_ctx"):
            self.check(f"grad/{name}", getattr(self.learner, name).grad)
        sgd.step()
        for name in ("normal_ctx", "abnormal_ctx"):
            self.check(f"step/{name}", getattr(self.learner, name))


@pytest.mark.parametrize("path", fixture_paths("promptad"), ids=lambda path: path.stem)
def test_every_tensor(path: Path, tmp_path: Path) -> None:
    fixture = Fixture(path)
    for group in fixture.settings["groups"]:
        run = Run(fixture, group, tmp_path)
        check_towers(fixture, group, run.method, run.test)
        run.sentences()
        run.texts()
        check_maps(fixture, group, run.method, run.test)
        run.losses()
    fixture.finish()
