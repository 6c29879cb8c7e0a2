"""PromptAD as a part of a run: categories side by side, checkpoints without references, published files, options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from anomaly_vlm.backbone import ClipBackbone
from anomaly_vlm.errors import UserError
from anomaly_vlm.losses import build_terms
from anomaly_vlm.methods.base.published import load_published
from anomaly_vlm.methods.promptad import PromptAD
from anomaly_vlm.methods.promptad.prompt_learner import TextFamily, class_phrases
from anomaly_vlm.texts import load_texts
from tests.support.conf import loss_conf, method_conf
from tests.support.few_shot import make_batch, make_references, tiny_backbone

SIDE = 32
SKIPPED = ("_target_", "texts", "seed", "eval_size")  # what the run gives


@pytest.fixture(scope="module")
def tiny() -> ClipBackbone:
    return tiny_backbone()


def draw(count: int, seed: int) -> Tensor:
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def build(backbone: ClipBackbone, **options: Any) -> PromptAD:
    conf = {k: v for k, v in method_conf("promptad").items() if k not in SKIPPED}
    conf["contexts"] = {"length": 2}
    return PromptAD(
        backbone,
        losses=build_terms(loss_conf("promptad")),
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=5e-4),
        **{**conf, **options},
    )


def remembering(backbone: ClipBackbone, *categories: str, **options: Any) -> PromptAD:
    method = build(backbone, **options)
    method.fit_references([make_references(draw(2, seed), name) for seed, name in enumerate(categories)])
    return method


def step(method: PromptAD, category: str, images: Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    method.total_loss(method.losses(make_batch(images, category, name=f"{category} reference"))).backward()
    optimizer.step()


def test_defaults_are_the_published_codes(tiny: ClipBackbone) -> None:
    method = PromptAD(tiny)
    shipped = {k: v for k, v in method_conf("promptad").items() if k not in SKIPPED}
    same = PromptAD(tiny, **shipped)
    assert method.sizes == same.sizes
    assert method.sizes["cls"].count == 3
    assert method.factor == same.factor == tiny.logit_scale
    assert build(tiny, temperature=0.01).factor == pytest.approx(100)
    assert method.memory_layers == tuple(max(1, round(tiny.num_layers * share / 12)) for share in (3, 8))


def test_a_mixed_batch_equals_its_categories_alone(tiny: ClipBackbone) -> None:
    method, images = remembering(tiny, "bottle", "metal_nut"), draw(3, 9)
    mixed = method.predict(make_batch(images, ["metal_nut", "bottle", "metal_nut"]))
    alone = remembering(tiny, "metal_nut", "other")
    alone.fit_references([make_references(draw(2, 1), "metal_nut")])
    nut = alone.predict(make_batch(images[[0, 2]], "metal_nut"))
    torch.testing.assert_close(mixed.map[[0, 2]], nut.map)
    torch.testing.assert_close(mixed.score[[0, 2]], nut.score)


def test_both_tasks_side_by_side_equal_each_alone(tiny: ClipBackbone) -> None:
    images, test = draw(2, 0), make_batch(draw(2, 5), "bottle")
    found = {}
    for task in ("both", "seg", "cls"):
        method = remembering(tiny, "bottle", task=task)
        optimizer = method.configure_optimizers()
        for _ in range(3):
            step(method, "bottle", images, optimizer)
        found[task] = method.predict(test)
    torch.testing.assert_close(found["both"].map, found["seg"].map)
    torch.testing.assert_close(found["both"].score, found["cls"].score)
    assert not torch.equal(found["seg"].map, found["cls"].map)


def test_a_category_learns_as_if_alone(tiny: ClipBackbone) -> None:
    """One optimiser over all categories: others' steps neither move nor decay a category, nor touch its momentum."""
    together, alone = remembering(tiny, "bottle", "cable"), remembering(tiny, "bottle")
    both, one = together.configure_optimizers(), alone.configure_optimizers()
    before = {k: v.clone() for k, v in together.learnable().items() if "@cable" in k}
    for _ in range(2):
        step(together, "bottle", draw(2, 0), both)
        step(alone, "bottle", draw(2, 0), one)
    assert all(torch.equal(together.learnable()[k], v) for k, v in before.items())
    step(together, "cable", draw(2, 1), both)
    step(together, "bottle", draw(2, 0), both)
    step(alone, "bottle", draw(2, 0), one)
    for name, value in alone.learnable().items():
        torch.testing.assert_close(together.learnable()[name], value)
    assert not any(torch.equal(together.learnable()[k], v) for k, v in before.items())


def test_contexts_depend_on_seed_and_category_alone(tiny: ClipBackbone) -> None:
    name = "categories.@cable.learners.seg.normal_ctx"
    one, other = remembering(tiny, "bottle", "cable"), remembering(tiny, "cable")
    assert torch.equal(one.learnable()[name], other.learnable()[name])
    assert not torch.equal(remembering(tiny, "cable", seed=1).learnable()[name], other.learnable()[name])
    assert not torch.equal(one.learnable()["categories.@bottle.learners.seg.normal_ctx"], one.learnable()[name])


def test_a_checkpoint_needs_no_references(tiny: ClipBackbone) -> None:
    method = remembering(tiny, "bottle", "a.b/c")
    step(method, "bottle", draw(2, 0), method.configure_optimizers())
    batch = make_batch(draw(2, 7), ["a.b/c", "bottle"])
    checkpoint: dict[str, Any] = {"state_dict": method.state_dict()}
    method.on_save_checkpoint(checkpoint)  # as Lightning: the state first, then the hook
    expected = method.predict(batch)
    assert not any(key.startswith("backbone.") for key in checkpoint["state_dict"])
    fresh = build(tiny)
    fresh.on_load_checkpoint(checkpoint)
    fresh.load_state_dict(checkpoint["state_dict"], strict=False)
    found = fresh.predict(batch)
    assert torch.equal(found.map, expected.map)
    assert torch.equal(found.score, expected.score)
    stored = checkpoint["state_dict"]["categories.@bottle.learners.seg.features"]
    torch.testing.assert_close(stored, method.encode_learned(method.category("bottle").learner("seg")).detach())
    other = build(tiny, contexts={"length": 3})
    with pytest.raises(UserError, match="normal_ctx is"):
        other.check_learned(checkpoint["state_dict"], "checkpoint")


def test_references_after_a_checkpoint_bring_memory_and_leave_prompts(tiny: ClipBackbone) -> None:
    learned = remembering(tiny, "bottle")
    step(learned, "bottle", draw(2, 0), learned.configure_optimizers())
    method = build(tiny)
    method.load_state_dict(learned.state_dict(), strict=False)
    method.fit_references([make_references(draw(3, 8), "bottle")])
    name = "categories.@bottle.learners.cls.abnormal_ctx"
    assert torch.equal(method.learnable()[name], learned.learnable()[name])
    assert len(method.category("bottle").banks[0].bank) == 3 * 16


def test_features_follow_what_is_learned(tiny: ClipBackbone) -> None:
    method, batch = remembering(tiny, "bottle"), make_batch(draw(1, 7), "bottle")
    before = method.predict(batch)
    step(method, "bottle", draw(2, 0), method.configure_optimizers())
    assert not torch.equal(method.predict(batch).map, before.map)


def official(tiny: ClipBackbone, rows: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    unit = lambda *shape: torch.nn.functional.normalize(torch.randn(*shape, generator=generator), dim=-1)  # noqa: E731
    return {
        "feature_gallery1": unit(rows, tiny.width),
        "feature_gallery2": unit(rows, tiny.width),
        "text_features": unit(2, tiny.embed_dim),
    }


def test_published_folder(tiny: ClipBackbone, tmp_path: Path) -> None:
    for i, category in enumerate(("bottle", "metal_nut")):
        for j, task in enumerate(("SEG", "CLS")):
            state = official(tiny, 7 + i, 10 * i) | {"text_features": official(tiny, 1, 10 * i + j)["text_features"]}
            torch.save(state, tmp_path / f"{task}-Seed_111-{category}-check_point.pt")
    method = load_published(build(tiny), tmp_path)
    assert isinstance(method, PromptAD)
    assert len(method.category("metal_nut").memory[1].bank) == 8
    batch = make_batch(draw(2, 3), ["metal_nut", "bottle"])
    expected = method.predict(batch)
    seg = load_published(build(tiny, task="seg"), tmp_path)
    torch.testing.assert_close(seg.predict(batch).map, expected.map)
    assert not method.learnable()
    with pytest.raises(UserError, match="nothing to learn"):
        method.losses(make_batch(draw(1, 0), "bottle"))
    again = build(tiny)  # text features alone survive the suite's own checkpoints
    again.check_learned(method.state_dict(), "checkpoint")
    again.load_state_dict(method.state_dict(), strict=False)
    assert torch.equal(again.predict(batch).map, expected.map)


def test_published_file_of_one_category(tiny: ClipBackbone, tmp_path: Path) -> None:
    path = tmp_path / "renamed.pt"
    torch.save(official(tiny, 9, 0), path)
    for options, words in (
        ({"task": "seg"}, "set method.published_category"),
        ({"published_category": "bottle"}, "set method.task=seg or method.task=cls"),
    ):
        with pytest.raises(UserError, match=words):
            load_published(build(tiny, **options), path)
    method = load_published(build(tiny, task="seg", published_category="bottle"), path)
    assert method.predict(make_batch(draw(1, 0), "bottle")).map.shape == (1, SIDE, SIDE)
    told = load_published(remembering(tiny, "cable", task="cls"), path)  # the only category there is
    assert isinstance(told, PromptAD)
    assert len(told.category("cable").memory[0].bank) == 9


@pytest.mark.parametrize(
    ("file", "change", "options", "words"),
    [
        ("SEG-Seed_111-bottle-check_point.pt", {}, {"task": "cls"}, "is a seg model: set method.task=seg"),
        ("SEG-Seed_111-bottle-check_point.pt", {}, {}, "lack the cls model"),
        (
            "SEG-Seed_111-bottle-check_point.pt",
            {"extra": torch.zeros(1)},
            {"task": "seg"},
            "holds more than PromptAD's do: extra",
        ),
        ("SEG-Seed_111-bottle-check_point.pt", {"feature_gallery2": None}, {"task": "seg"}, "has no feature_gallery2"),
        (
            "SEG-Seed_111-bottle-check_point.pt",
            {"feature_gallery2": torch.zeros(4, 5)},
            {"task": "seg"},
            "bank is \\[4, 5\\]",
        ),
    ],
)
def test_published_files_that_do_not_fit(
    tiny: ClipBackbone, tmp_path: Path, file: str, change: dict[str, Any], options: dict[str, Any], words: str
) -> None:
    state = {key: value for key, value in (official(tiny, 4, 0) | change).items() if value is not None}
    torch.save(state, tmp_path / file)
    with pytest.raises(UserError, match=words):
        load_published(build(tiny, **options), tmp_path / file)


def test_words_of_categories(tiny: ClipBackbone) -> None:
    method = build(tiny)
    table = load_texts("promptad_prompts")
    assert class_phrases(table, "pcb1")[0] == class_phrases(table, "PCB1")[0] == "printed circuit board"
    assert class_phrases(table, "Metal nut") == class_phrases(table, "metal_nut")
    word, states = class_phrases(table, "my_gear")  # in no table
    assert (word, states) == ("my_gear", [state.format("my_gear") for state in table["generic_states"]])
    family = TextFamily(tiny, *class_phrases(table, "bottle"), method.sizes["cls"])
    assert family.manual.shape == (3 * (8 + 3), tiny.context_length)
    assert torch.equal(family.manual[3], family.manual[5])  # a state's rows stand together
    assert not torch.equal(family.manual[2], family.manual[3])


def test_unknown_category_and_foreign_training_images(tiny: ClipBackbone) -> None:
    method = remembering(tiny, "bottle", "cable")
    with pytest.raises(UserError, match=r"category 'grid' has no reference images .*it has: bottle, cable"):
        method.predict(make_batch(draw(1, 0), "grid"))
    with pytest.raises(UserError, match="train_on=references"):
        method.losses(make_batch(draw(1, 0), "bottle", name="another"))
    with pytest.raises(UserError, match="one category at a time"):
        method.losses(make_batch(draw(2, 0), ["bottle", "cable"]))


def test_bgr_test_images_against_rgb_references(tiny: ClipBackbone) -> None:
    plain, swapped = remembering(tiny, "bottle"), remembering(tiny, "bottle", bgr_test=True)
    assert swapped.cache_key() is None
    images = draw(2, 3)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (tiny.mean, tiny.std))
    pixels = images * std + mean
    bgr = (pixels[:, [2, 1, 0]] - mean) / std
    torch.testing.assert_close(
        swapped.predict(make_batch(images, "bottle")).map, plain.predict(make_batch(bgr, "bottle")).map
    )
    assert torch.equal(swapped.category("bottle").memory[0].bank, plain.category("bottle").memory[0].bank)


def test_options_that_change_the_numbers(tiny: ClipBackbone) -> None:
    batch = make_batch(draw(2, 3), "bottle")
    usual = remembering(tiny, "bottle").predict(batch)
    for options in (
        {"memory": {"tap": "paper"}},
        {"temperature": 0.01},
        {"memory": {"coreset": 0.2}},
        {"memory": {"layers": [1]}},
        {"sigma": 0.0},
    ):
        assert not torch.allclose(remembering(tiny, "bottle", **options).predict(batch).map, usual.map), options
    bounded = remembering(tiny, "bottle", memory={"memory_mb": 1e-4}).predict(batch)
    torch.testing.assert_close(bounded.map, usual.map)
    assert remembering(tiny, "bottle", eval_size=50).predict(batch).map.shape == (2, 50, 50)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"task": "pixels"}, "method.task"),
        ({"memory": {"tap": "both"}}, "unknown method.memory.tap 'both': choose one of paper, published"),
        ({"contexts": {"count": {"seg": 1, "clss": 2}}}, "method.contexts.count"),
        ({"contexts": {"count": {"seg": 0}}}, "method.contexts.count.seg is 0"),
        ({"contexts": {"length": 0}}, "method.contexts.length is 0"),
        ({"temperature": "raw"}, "method.temperature"),
        ({"eval_size": 0}, "method.eval_size"),
        ({"memory": {"layers": [99]}}, "layers"),
        ({"memory": {"layers": []}}, "method.memory.layers"),
        ({"memory": {"coreset": 2.0}}, "method.memory.coreset"),
    ],
)
def test_wrong_options(tiny: ClipBackbone, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        build(tiny, **options)
