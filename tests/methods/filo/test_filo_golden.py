"""FiLo against the published implementation's numbers: tokens, sentences, boxes, maps, scores, losses, gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from anomaly_vlm.losses import training_mask
from anomaly_vlm.methods.base.published import layout_of
from anomaly_vlm.methods.filo.maps import blurred, joined, probabilities
from anomaly_vlm.methods.filo.method import FiLo
from anomaly_vlm.methods.filo.sentences import embed
from tests.support.filo import build, give_detections, info, make_batch
from tests.support.golden import Fixture, fixture_paths

pytestmark = pytest.mark.golden


class Run:
    """One group of tensors; each output is compared where the fixture has it, under the names that groups use."""

    def __init__(self, fixture: Fixture, group: str, method: FiLo) -> None:
        self.fixture, self.method, self.batch = fixture, method, make_batch(fixture)
        self.prefix = f"{group}/" if group else ""

    def check(self, key: str, value: Tensor) -> None:
        """Maps are stored every so many pixels, as their shape says."""
        short = key.removeprefix("out/").removeprefix("loss/dice_") if self.prefix else key  # `noposition/anomaly_map`
        for name in dict.fromkeys((key, short)):
            full = self.prefix + name
            if not self.fixture.has(full):
                continue
            side = self.fixture.tensors[full].shape[-1] if "map" in name else 0
            if side and value.shape[-1] != side:
                step = -(-value.shape[-1] // side)
                value = value[..., ::step, ::step]
            self.fixture.check(full, value)

    def forward(self) -> None:
        method, batch = self.method, self.batch
        tokens, grid = method.frozen_tokens(batch), method.grid(batch)
        cls = tokens["cls"]
        feature = method.feature(cls, adapted=True)
        self.check("out/cls_raw", cls)
        assert method.adapter is not None
        self.check("out/adapted", method.adapter(cls))
        places = method.located(batch) if method.detector is not None else None
        positions = None if places is None else [place.position for place in places]
        pairs = method.pairs(method.sentence_features(batch.category, feature, positions))
        self.check("out/text_probs", method.similarity(feature, pairs))
        maps = probabilities(method.map_logits(method.heads(tokens, grid), pairs, grid, batch.size))
        smooth = blurred(maps, method.map_options)
        self.check("out/layer_maps_blurred", smooth.transpose(0, 1))
        self.check("out/layer_maps_blurred_image0", smooth[:, 0])
        self.check("out/anomaly_map_before_boxes", joined(maps, method.map_options))
        torch.testing.assert_close(joined(maps, method.map_options), smooth.mean(dim=0))
        prediction = method.predict(batch)  # the public way
        self.check("out/anomaly_map", prediction.map)
        self.check("out/image_score", prediction.score)
        for i, raw in enumerate(method.sentence_features(batch.category, feature)):
            self.check(f"text/{i}/normal_raw", raw.normal)
            rows = raw.abnormal.flatten(0, 1)
            if self.fixture.has(f"{self.prefix}text/{i}/abnormal_raw"):
                rows = rows[: len(self.fixture.tensors[f"{self.prefix}text/{i}/abnormal_raw"])]
            self.check(f"text/{i}/abnormal_raw", rows)

    def stage1(self) -> None:
        method, batch = self.method, self.batch
        mask, tokens, grid = (
            training_mask(batch.mask, batch.path, method.terms),
            method.frozen_tokens(batch),
            method.grid(batch),
        )
        feature = method.feature(tokens["cls"], adapted=False)
        pairs = method.pairs(method.sentence_features(batch.category, feature))
        self.check("train/text_probs", method.similarity(feature, pairs))
        maps = probabilities(method.map_logits(method.heads(tokens, grid), pairs, grid, batch.size))
        self.check("train/maps_abnormal", maps.transpose(0, 1))
        terms = method.terms
        self.check("loss/focal", torch.stack([terms["focal"](m, mask) for m in maps], dim=1))
        self.check("loss/dice_abnormal", torch.stack([terms["dice"](m, mask) for m in maps], dim=1))
        self.check("loss/dice_normal", torch.stack([terms["dice"](1 - m, 1 - mask) for m in maps], dim=1))
        local = []
        for i in range(len(batch)):
            method.zero_grad(set_to_none=True)
            one = make_batch(self.fixture, slice(i, i + 1))
            total = method.total_loss(method.losses(one))  # the public way: the first epoch
            total.backward()
            local.append(total.detach())
            self.gradients(f"{i}/")
            missing = [name for name, p in method.learnable().items() if p.grad is None]
            if self.fixture.has(f"{self.prefix}meta/stage1_no_grad"):
                assert len(missing) == int(self.fixture.tensors[f"{self.prefix}meta/stage1_no_grad"])
                self.fixture.mark(f"{self.prefix}meta/stage1_no_grad")
        self.check("loss/local", torch.stack(local))

    def gradients(self, image: str) -> None:
        for name, parameter in self.method.learnable().items():
            key = f"{image}{layout_of(self.method).key(self.method, name)}"
            if parameter.grad is None:
                assert not self.fixture.has(f"{self.prefix}grad/{key}")
                continue
            self.check(f"grad/{key}", parameter.grad)
            self.check(f"grad_norm/{key}", parameter.grad.norm())
            if self.fixture.has(f"{self.prefix}grad_slice/{key}"):
                shape = self.fixture.tensors[f"{self.prefix}grad_slice/{key}"].shape
                self.check(f"grad_slice/{key}", parameter.grad[tuple(slice(0, n) for n in shape)])

    def stage2(self) -> None:
        method, entropy = self.method, []
        for i in range(len(self.batch)):
            method.zero_grad(set_to_none=True)
            total = method.total_loss(method.image_term(make_batch(self.fixture, slice(i, i + 1)), through_text=False))
            total.backward()
            entropy.append(total.detach())
            for name, parameter in method.learnable().items():
                if name.startswith("adapter."):
                    assert parameter.grad is not None
                    self.check(f"grad_adapter/{i}/{layout_of(method).key(method, name)}", parameter.grad)
                else:
                    assert parameter.grad is None, name
        self.check("loss/adapter_ce", torch.stack(entropy))

    def towers(self) -> None:
        """Image 0: position grid, the list of tokens, the ordinary path's end."""
        method, image = self.method, self.batch.image[:1]
        clip = method.backbone
        out = clip.encode_image(image, layers=[clip.num_layers], vv_from=method.token_list.n_plain)
        self.check("mid/pos_embed_resized", clip.positions(out.grid))
        self.check("mid/tokens_projected", clip.project(out.ordinary[0]))
        kept = method.encode_frozen(image)
        for j, name in enumerate(method.token_list.names):
            if self.fixture.has(f"mid/tokens.{j}"):  # stored with the class token, which no head reads
                expected = self.fixture.tensors[f"mid/tokens.{j}"][:, 1:]
                torch.testing.assert_close(
                    kept[name], expected, rtol=1e-4, atol=1e-5, msg=lambda m, j=j: f"entry {j}: {m}"
                )
                self.fixture.mark(f"mid/tokens.{j}")
            elif method.token_list.as_published:
                assert name == "v"

    def sentences(self) -> None:
        """Image 0: token ids, and embeddings before positions up to each sentence's end token."""
        method, category = self.method, self.batch.category[0]
        feature = method.feature(method.encode_frozen(self.batch.image[:1])["cls"], adapted=True)
        for kind, learner in (("normal", method.normal), ("abnormal", method.abnormal)):
            tree = method.sentences.tree(method.backbone, category, kind)
            if self.fixture.has(f"text/0/{kind}_tokens"):
                expected = self.fixture.tensors[f"text/0/{kind}_tokens"].long()
                ours, ends = tree.ids.flatten()[tree.paths], tree.depth.flatten()[tree.paths[:, -1]]
                for row, theirs, end in zip(ours, expected, ends.tolist(), strict=True):
                    assert torch.equal(row[: end + 1], theirs[: end + 1]) and not theirs[end + 1 :].any()
                self.fixture.mark(f"text/0/{kind}_tokens")
            if self.fixture.has(f"text/0/prompt_{kind}"):
                expected = self.fixture.tensors[f"text/0/prompt_{kind}"]
                nodes = embed(method.backbone, tree, learner(feature))[0].flatten(0, 1)
                for path, theirs, end in zip(
                    tree.paths, expected, tree.depth.flatten()[tree.paths[:, -1]].tolist(), strict=False
                ):
                    length = min(end + 1, len(theirs))
                    torch.testing.assert_close(nodes[path[:length]], theirs[:length], rtol=1e-4, atol=1e-5)
                self.fixture.mark(f"text/0/prompt_{kind}")

    def boxes(self, words: dict[str, Any]) -> None:
        """Boxes kept, their phrases and cut scores, validity, and the position chosen."""
        method, names = self.method, self.method.texts.words["positions"]
        for i, place in enumerate(method.located(self.batch)):
            found = place.found
            listed = [
                f"{phrase}({str(score)[:4]}){'' if valid else '#$%'}"
                for phrase, score, valid in zip(found.phrases, found.scores.tolist(), found.valid.tolist(), strict=True)
            ]
            assert listed == words["phrases"][i]
            assert ([] if place.position is None else [names[place.position]]) == words["positions"][i]
            key = f"out/boxes_kept.{i}"
            if self.fixture.has(key):  # rows of invalid boxes are stored in other units
                expected = self.fixture.tensors[key]
                assert len(expected) == len(found)
                torch.testing.assert_close(found.boxes[found.valid], expected[found.valid], rtol=1e-4, atol=1e-5)
                self.fixture.mark(key)


@pytest.mark.parametrize("path", fixture_paths("filo"), ids=lambda path: path.stem)
def test_every_tensor(path: Path, tmp_path: Path) -> None:
    fixture = Fixture(path)
    words = info(fixture, path)
    ignored = {}
    if fixture.has("in/mask_raw"):
        assert torch.equal((fixture.input("in/mask_raw") > 0.5).float(), fixture.input("in/mask").float())
    for group in ["", *fixture.settings.get("groups", {})]:
        method = build(fixture, group, tmp_path)
        run = Run(fixture, group, method)
        if method.detector is not None:
            give_detections(method, fixture, words)
        with torch.no_grad():
            if not group:
                run.towers()
                run.sentences()
            if not group and method.detector is not None:
                run.boxes(words)
            run.forward()
        run.stage1()
        run.stage2()
    fixture.finish(ignored)
