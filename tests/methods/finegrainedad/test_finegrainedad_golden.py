"""FineGrainedAD against the published implementation's numbers: texts, regions, losses, two steps, scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from anomaly_vlm.losses import build_terms
from anomaly_vlm.methods.finegrainedad.levels import LevelPrompts
from anomaly_vlm.methods.finegrainedad.method import FineGrainedAD
from anomaly_vlm.methods.finegrainedad.published import WEIGHTS
from anomaly_vlm.methods.finegrainedad.regions import (
    Clusters,
    EntityRegions,
    density_peaks,
    find_regions,
    pool_weights,
    stage2_neighbours,
)
from anomaly_vlm.methods.promptad.prompt_learner import FamilyFeatures
from anomaly_vlm.runs.migrate import migrated
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

NAMES = {"normal": "normal", "manual": "handle", "learned": "learned"}  # ours -> the fixture's
SHORT = {"normal": "n", "manual": "h", "learned": "l"}


def build(fixture: Fixture, group: str) -> FineGrainedAD:
    o, losses = fixture.options(group), loss_conf("finegrainedad")
    losses["triplet"]["margin"] = o["margin"]
    for name, weight in o["weights"].items():
        losses[name]["weight"] = weight
    region = migrated({"name": "finegrainedad", "method": {"region": o["region"]}})["method"]["region"]
    return FineGrainedAD(
        towers(fixture),
        losses=build_terms(losses),
        region=region,
        match=o["match"],
        score=o["score"],
        seed=o["seed"],
        **options(fixture, group),
    )


class Run:
    """One group of tensors."""

    def __init__(self, fixture: Fixture, group: str, folder: Path) -> None:
        self.fixture, self.group, self.options = fixture, group, fixture.options(group)
        self.method = build(fixture, group)
        self.category: str = self.options["category"]
        self.task: str = self.options["task"]
        clip, larger = self.method.backbone, None
        if self.has("in/cluster_images_uint8"):
            mean, std = (torch.tensor(values).view(3, 1, 1) for values in (clip.mean, clip.std))
            larger = (fixture.input(f"{group}/in/cluster_images_uint8").float() / 255 - mean) / std
        self.shots = make_references(fixture.input(f"{group}/in/reference_images"), self.category, larger)
        self.side = self.shots.batch.size[0]
        load_group(fixture, group, self.method, folder)
        self.prepare = self.method.prepare
        self.method.prepare = lambda *_: None  # type: ignore[method-assign]  # the regions follow, with the fixture's noise
        self.method.fit_references([self.shots])
        check_memory(fixture, group, self.method)
        self.learner = self.learner_of(self.method)
        assert len(self.learner.components) == self.options["n_entities"] + 1

    def learner_of(self, method: FineGrainedAD) -> LevelPrompts:
        learner = method.category(self.category).learner(self.task)
        assert isinstance(learner, LevelPrompts)
        return learner

    def has(self, key: str) -> bool:
        return self.fixture.has(f"{self.group}/{key}")

    def check(self, key: str, value: torch.Tensor) -> None:
        if self.has(key):
            self.fixture.check(f"{self.group}/{key}", value)

    def sentences(self) -> None:
        families = self.learner.families
        entities: list[Any] = [families[name] for name in self.learner.components[:-1]]
        for ours, theirs in NAMES.items():
            for name, stored in [("image", "normal"), *((n, n) for n in (*self.learner.groups, "background"))]:
                if self.has(key := f"in/tokens_{stored}_{theirs}"):
                    check_ids(self.fixture, f"{self.group}/{key}", getattr(families[name], ours))
            key = f"{self.group}/in/tokens_entity_{theirs}"
            if self.fixture.has(key):
                check_ids(self.fixture, key, torch.stack([getattr(entity, ours) for entity in entities]))

    def texts(self) -> None:
        method, learner = self.method, self.learner
        clip = method.backbone
        _, embedded = learner.image_sentences(clip)
        for rows, theirs in zip(embedded, NAMES.values(), strict=True):
            if self.has(key := f"mid/prompt_embeddings_{theirs}"):
                full = f"{self.group}/{key}"
                expected = self.fixture.tensors[full][:, : rows.shape[1]]  # behind it nothing is read
                torch.testing.assert_close(rows[: len(expected)].detach(), expected, rtol=1e-4, atol=1e-5)
                self.fixture.mark(full)
        for group in learner.groups:
            self.check(f"mid/topk_{group}", learner.ranked(clip, group, len(embedded[1])))
        texts = dict(zip(method.family_names(learner), method.sentence_features(learner), strict=True))
        entities = [texts[name] for name in learner.components[:-1]]
        stacked = FamilyFeatures(*(torch.stack(part) for part in zip(*entities, strict=True)))
        for ours, theirs in NAMES.items():
            self.check(f"mid/text_raw_{theirs}", getattr(texts["image"], ours))
            self.check(f"mid/text_raw_bg_{SHORT[ours]}", getattr(texts["background"], ours))
            self.check(f"mid/text_raw_ent_{SHORT[ours]}", getattr(stacked, ours))
        features = method.encode_learned(learner)
        self.check("ckpt/entity_features_list", features[:-2])
        self.check("ckpt/text_features", features[-2])
        self.check("ckpt/background_features", features[-1])

    def regions(self) -> None:
        method, learner = self.method, self.learner
        noise = [self.fixture.input(f"{self.group}/in/noise{i}") for i in (1, 2)]
        centres = self.centres()
        if self.has("in/cluster_images_uint8"):
            fine = method.fine_features(self.shots.at_size(self.side * method.region.side_factor), self.side)
            self.check("mid/cluster_features", fine)
            with torch.no_grad():
                entities = method.entity_features(learner)
            found = find_regions(fine, entities, method.region, (noise[0], noise[1]), centres)
            self.check_regions(found)
            weights = found.fine
        else:
            self.check_stages(noise, centres)
            weights = self.fixture.input(f"{self.group}/mid/fine_weights")
        learner.rescale = method.pooled(weights, self.side)
        self.check("mid/rescale", learner.rescale)
        grid = self.side // method.backbone.patch_size
        self.check("mid/rescale_spatial", pool_weights(weights, (grid, grid), method.region.side_factor, "spatial"))

    def centres(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Those of stage 1, a choice among tied scores; of stage 2 as well where one neighbour makes the density, too."""
        first, second = (self.fixture.tensors[f"{self.group}/mid/stage{i}_centres"].long() for i in (1, 2))
        self.fixture.input(f"{self.group}/mid/stage1_centres")
        return first, second if stage2_neighbours(len(self.learner.components)) == 1 else None

    def check_stages(self, noise: list[torch.Tensor], centres: tuple[torch.Tensor, torch.Tensor | None]) -> None:
        """Both clusterings of the fixture's own similarities, where it has no fine images."""
        similarity = self.fixture.input(f"{self.group}/mid/similarity")
        foreground = self.fixture.input(f"{self.group}/mid/foreground").bool()
        first = density_peaks(similarity, 2, self.method.region.density_k, noise[0], centres=centres[0])
        self.check("mid/stage1_assignment", first.assignment)
        count = len(self.learner.components)
        neighbours = stage2_neighbours(count)
        self.check_second(
            density_peaks(similarity, count, neighbours, noise[1], foreground=foreground, centres=centres[1])
        )
        self.fixture.input(f"{self.group}/mid/region")

    def check_regions(self, found: EntityRegions) -> None:
        self.check("mid/similarity", found.similarity)
        self.check("mid/stage1_assignment", found.first.assignment)
        self.check("mid/stage1_background_dot", found.background_dot)
        self.check("mid/foreground", found.foreground.int())
        self.check_second(found.second)
        self.check("mid/region", found.region)
        self.check("mid/cluster_mean", found.means)
        self.check("mid/entity_cluster_sim", found.match_similarity)
        self.check("mid/entity_cluster", found.match)
        self.check("mid/fine_weights", found.fine)

    def check_second(self, found: Clusters) -> None:
        self.check("mid/stage2_density", found.density)
        key = f"{self.group}/mid/stage2_score"  # depends on the order of nearly equal densities
        close = torch.isclose(found.score, self.fixture.input(key), rtol=1e-4, atol=1e-5)
        assert (~close).float().mean() <= 0.005, key
        self.fixture.mark(key)
        self.check("mid/stage2_centres", found.centres)
        self.check("mid/stage2_raw_assignment", found.assignment)

    def scores(self) -> None:
        """By the published file's features, `match_normal` as well."""
        test = make_batch(self.fixture.input(f"{self.group}/in/images"), self.category)
        check_towers(self.fixture, self.group, self.method, test)
        self.score_one(self.method, test, "out/")
        check_maps(self.fixture, self.group, self.method, test)
        self.method.fusion = "mean"
        self.check("out/image_score_mean", self.method.predict(test).score)
        self.method.fusion = self.options["score"]

    def score_one(self, method: FineGrainedAD, test: Any, prefix: str) -> None:
        texts = method.text_features(method.category(self.category), self.task).detach()
        tokens = method.frozen_tokens(test)
        self.check(f"{prefix}intrinsic", method.intrinsic(texts))
        self.check(f"{prefix}patch_match", method.nearest_family(tokens["patches"], texts))
        self.check(f"{prefix}image_match", method.nearest_family(tokens["cls"], texts))

    def match_group(self, group: str, folder: Path) -> None:
        """Another choice of the family, on the same tensors."""
        other = build(self.fixture, group)
        load_group(self.fixture, self.group, other, folder)
        test = make_batch(self.fixture.input(f"{self.group}/in/images"), self.category)
        prefix = f"{group.removeprefix(self.group + '/')}/out/"
        self.score_one(other, test, prefix)
        check_maps(self.fixture, self.group, other, test, prefix)

    def losses(self) -> None:
        method, learner, batch = self.method, self.learner, self.shots.batch
        features = method.frozen_tokens(batch)["patches" if self.task == "seg" else "cls"]
        rows = method.category(self.category).rows(batch.path)
        values = method.family_losses(self.task, learner, features, rows)
        self.check("loss/v2t", values["v2t"][0][None])
        self.check("loss/triplet", values["triplet"][0][None])
        self.check("loss/match_abnormal", values["match"][0][None])
        self.check("loss/entity_v2t", torch.stack(values["v2t"][1:]))
        self.check("loss/entity_triplet", torch.stack(values["triplet"][1:]))
        self.check("loss/entity_match", torch.stack(values["match"][1:]))
        assert len(values["reg"]) == int(self.task == "seg")
        if values["reg"]:
            self.check("loss/reg", values["reg"][0][None])
        o = self.options
        sgd = torch.optim.SGD(
            method.learnable().values(), lr=o["lr"], momentum=o["momentum"], weight_decay=o["weight_decay"]
        )
        for i in ("", "2"):
            sgd.zero_grad()
            total = method.total_loss(method.losses(batch))
            self.check(f"loss{i}/total", total[None])
            total.backward()
            if not i:
                self.parameters("grad", {k: p.grad for k, p in learner.named_parameters(recurse=False)})
                drawn = (
                    [p for p in method.query_former.parameters() if p.grad is not None] if method.query_former else []
                )
                self.check("meta/q_former_params_with_grad", torch.tensor([len(drawn)]))
            sgd.step()
            self.parameters(f"step{i}", dict(learner.named_parameters(recurse=False)))

    def parameters(self, kind: str, values: dict[str, Any]) -> None:
        for name in ("normal_ctx", "abnormal_ctx"):
            self.check(f"{kind}/{name}", values[name])
        for name, value in zip(WEIGHTS, values["weights"].flatten(), strict=True):
            self.check(f"{kind}/{name}", value[None])


@pytest.mark.parametrize("path", fixture_paths("finegrainedad"), ids=lambda path: path.stem)
def test_every_tensor(path: Path, tmp_path: Path) -> None:
    fixture = Fixture(path)
    groups = list(fixture.settings["groups"])
    for group in [name for name in groups if "/" not in name]:
        run = Run(fixture, group, tmp_path)
        run.sentences()
        run.texts()
        run.scores()
        for other in [name for name in groups if name.startswith(f"{group}/")]:
            run.match_group(other, tmp_path)
        if run.task == "seg":
            run.regions()
        run.losses()
    fixture.finish()
