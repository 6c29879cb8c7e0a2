"""SAA's parts by hand, its two passes, its switches, its words; boxes and masks come from stubs."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_vlm.backbone import TrunkBackbone, load_backbone, load_trunk
from anomaly_vlm.data.types import Batch
from anomaly_vlm.detectors import ComponentsDetector, Detector, Picture, Queries, Segmenter, no_detector
from anomaly_vlm.detectors.boxes_file import FileDetector
from anomaly_vlm.errors import UserError
from anomaly_vlm.methods.saa.method import ABLATIONS, SAA
from anomaly_vlm.methods.saa.prompts import ObjectNumbers, SaaPlan, SaaPromptOptions, SaaPrompts
from anomaly_vlm.methods.saa.proposals import BoxThresholds, fused, rescored, selected
from anomaly_vlm.methods.saa.saliency import unlike_the_others, unlike_the_rest
from anomaly_vlm.texts import load_texts
from tests.support.conf import method_conf
from tests.support.tiny import tiny_architecture

HEIGHT, WIDTH = 40, 60


class Asked(Detector):
    """Grounding DINO's place: answers are put into `method.detections` by the tests."""

    name = "transformers"

    def look(self, pictures: Sequence[Picture], captions: Sequence[str]) -> list[Queries]:
        raise AssertionError("a method never asks by itself")

    def identity(self) -> dict[str, Any]:
        return {}


class Filled(Segmenter):
    """The box itself is the mask; remembers what it saw."""

    name = "sam"

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, Tensor]] = []

    def look(self, image: Tensor, boxes: Tensor) -> Tensor:
        self.seen.append((image, boxes))
        masks = torch.zeros(len(boxes), *image.shape[1:], dtype=torch.bool)
        for mask, (left, top, right, bottom) in zip(masks, boxes.round().int().tolist(), strict=True):
            mask[max(0, top) : bottom, max(0, left) : right] = True
        return masks

    def identity(self) -> dict[str, Any]:
        return {}


@pytest.fixture(scope="module")
def trunk() -> TrunkBackbone:
    return load_trunk("test_resnet", random_seed=0)


def make(trunk: Any, **options: Any) -> SAA:
    """The shipped configuration with small sizes."""
    conf = method_conf("saa")
    for key in ("_target_", "seed", "eval_size"):
        conf.pop(key)
    conf |= {"saliency": {"size": 64, "objects_size": 128}}
    conf |= {"detector": Asked(), "segmenter": Filled()}
    return SAA(trunk, **{**conf, **options}).eval()


def images(count: int = 1) -> Tensor:
    return torch.randint(
        0, 256, (count, 3, HEIGHT, WIDTH), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def batch(method: SAA, category: str = "metal nut", count: int = 1) -> Batch:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (method.backbone.mean, method.backbone.std))
    names = [f"image {i}" for i in range(count)]
    pixels = (images(count).float() / 255 - mean) / std
    return Batch(pixels, torch.zeros(count).long(), None, [category] * count, names, torch.arange(count), list(names))


def say(
    method: SAA, answers: dict[str, list[tuple[float, float, float, float, float]]], category: str = "metal nut"
) -> None:
    """Boxes (cx, cy, w, h, score) for captions of 'image 0'; none for the others."""
    assert set(answers) <= set(method.captions(category))
    for caption in method.captions(category):
        rows = torch.tensor(answers.get(caption, []), dtype=torch.float32).view(-1, 5)
        method.detections["image 0", caption] = Queries(rows[:, :4], rows[:, 4], phrases=("defect",) * len(rows))


# ---- which boxes stay ------------------------------------------------------------------------------------------------


def test_limits_are_exclusive_and_words_are_parts_of_words() -> None:
    boxes = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.1, 0.1], [0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0.3, 0.3]])
    queries = Queries(boxes, torch.tensor([0.9, 0.8, 0.1, 0.7]), phrases=("scratch", "Peanut", "scratch", "on nut"))
    options = BoxThresholds()
    assert selected(queries, options).scores.tolist() == pytest.approx([0.9, 0.8, 0.7]), "a score of the threshold goes"
    assert selected(queries, options, "nut").scores.tolist() == pytest.approx([0.9])
    assert selected(queries, options, max_area=0.25).scores.tolist() == pytest.approx([0.8, 0.7])
    assert selected(queries, options, max_area=0.25, min_area=0.05).scores.tolist() == pytest.approx([0.7])
    assert len(selected(queries, options, "nut", max_area=0.01)) == 0
    stored = Queries(boxes, queries.scores, phrases=queries.phrases, floor=0.2)
    with pytest.raises(UserError, match=r"only queries with a score above 0\.2 were kept"):
        selected(stored, options)


def test_a_phrase_is_read_from_token_scores() -> None:
    probs = torch.tensor([[0.0, 0.05, 0.9, 0.05, 0.0], [0.0, 0.3, 0.9, 0.2, 0.0], [0.0, 0.3, 0.9, 0.05, 0.0]])
    queries = Queries(torch.full((3, 4), 0.5), probs.amax(dim=1), probs, ("[CLS]", "pc", "flaw", "##b", "[SEP]"))
    assert len(selected(queries, BoxThresholds(), "pc")) == 1
    split = Queries(queries.boxes, queries.scores, probs[:, [0, 2, 1, 3, 4]], ("[CLS]", "flaw", "pc", "##b", "[SEP]"))
    assert len(selected(split, BoxThresholds(), "pcb")) == 2, "word pieces are glued"


# ---- scores and fusion -----------------------------------------------------------------------------------------------


def test_scores_grow_with_mean_saliency() -> None:
    saliency = torch.tensor([[0.0, 0.2], [0.4, 0.6]])
    masks = torch.tensor([[[0, 1], [1, 0]], [[0, 0], [0, 0]]]).bool()
    after = rescored(torch.tensor([0.5, 0.3]), masks, saliency)
    torch.testing.assert_close(after, torch.tensor([0.5 * math.exp(0.9), 0.3]))
    torch.testing.assert_close(rescored(torch.tensor([0.5, 0.3]), masks, saliency, weight=0), torch.tensor([0.5, 0.3]))


def test_a_single_mask_counts_half() -> None:
    masks = torch.tensor([[[1, 1, 0]], [[0, 1, 0]]]).bool()
    scores = torch.tensor([0.6, 0.3])
    torch.testing.assert_close(fused(masks, scores), torch.tensor([[0.3, 0.3, 0.0]]))
    torch.testing.assert_close(fused(masks, scores, "mean"), torch.tensor([[0.6, 0.45, 0.0]]))
    assert fused(masks[:0], scores[:0]).eq(0).all()


# ---- saliency --------------------------------------------------------------------------------------------------------


def test_the_odd_position_is_salient() -> None:
    features = F.normalize(torch.tensor([[[1.0, 0], [1, 0], [1, 0]], [[1, 0], [0, 1], [1, 0]]]), dim=-1)
    all_six = unlike_the_rest(features)  # cosines: 1 with its like, 0 with the odd one
    torch.testing.assert_close(all_six[0, 0], torch.tensor(0.5 / 6))
    torch.testing.assert_close(all_six[1, 1], torch.tensor(5 * 0.5 / 6))
    torch.testing.assert_close(unlike_the_rest(features, farthest=2)[0, 0], torch.tensor(0.25))
    torch.testing.assert_close(unlike_the_rest(features, farthest=1), torch.full((2, 3), 0.5))
    torch.testing.assert_close(unlike_the_rest(features, memory_mb=1e-6), all_six)


def test_objects_are_compared_with_each_other() -> None:
    features = torch.tensor([[[1.0, 0], [1, 0], [0, 1], [-0.6, 0.8]]])
    objects = torch.tensor([[[1, 0, 0, 0]], [[0, 1, 1, 0]]]).bool()
    torch.testing.assert_close(unlike_the_others(features, objects), torch.tensor([[0, 0, 0.5, 0]]))
    opposite = torch.tensor([[[0, 1, 0, 0]], [[0, 0, 0, 1]]]).bool()
    torch.testing.assert_close(unlike_the_others(features, opposite), torch.tensor([[0, 0.8, 0, 0.8]]))
    overlap = torch.tensor([[[0, 1, 0, 1]], [[0, 1, 0, 0]]]).bool()  # cosine 0 where both lie, also above -0.6
    torch.testing.assert_close(unlike_the_others(features, overlap), torch.tensor([[0, 0.5, 0, 0.5]]))
    assert unlike_the_others(features, objects[:1]).eq(0).all() and unlike_the_others(features, objects[:0]).eq(0).all()


def test_object_masks_come_to_the_grid_by_the_nearest_pixel() -> None:
    features = torch.tensor([[[1.0, 0], [0, 1]]])
    masks = torch.zeros(2, 4, 8, dtype=torch.bool)
    masks[0, 0, 0], masks[1, 0, 4] = True, True  # pixels that the grid's two places take
    torch.testing.assert_close(unlike_the_others(features, masks), torch.tensor([[0.5, 0.5]]))
    assert unlike_the_others(features, masks.roll(1, dims=2)).eq(0).all()


# ---- words -----------------------------------------------------------------------------------------------------------


def prompts(language: Any = "both", table: dict[str, Any] | None = None, **options: Any) -> SaaPrompts:
    table = load_texts("saa_prompts") if table is None else table
    return SaaPrompts(table, language=language, options=SaaPromptOptions(**options))


def test_captions_of_a_category() -> None:
    general = (
        ("defect on metal_nut.", "metal_nut"),
        ("damage on metal_nut.", "metal_nut"),
        ("flaw on metal_nut.", "metal_nut"),
    )
    manual = (("blue defect. black defect. red defect. scratch.", "nut"),)
    assert prompts().plan("metal nut") == SaaPlan((*general, *manual), "metal_nut,.", "metal_nut", 1, 5, 1.0)
    assert prompts("general").plan("Metal_nut").phrases == general
    assert prompts("specific", object_word="clean").plan("metal nut")[:2] == (manual, "metal_nut.")
    assert prompts("naive", naive_caption="Defect").plan("metal nut").phrases == (("defect.", ""),)
    assert prompts().plan("chewinggum").target == "chewinggum.", "its sentence lacks the comma"
    capsules = prompts().plan("capsules")
    assert capsules.phrases[-1] == ("bubble.", "capsules") and (capsules.target, capsules.objects) == ("capsule,.", 20)


def test_every_category_of_the_table_has_a_plan() -> None:
    known = prompts()
    assert len(known.categories) == 29
    for category in known.categories:
        plan = known.plan(category)
        assert len(plan.phrases) >= 4 and all(text.endswith(".") and word for text, word in plan.phrases)


def test_an_unknown_category_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    known = prompts(generic=ObjectNumbers(max_anomalies=3))
    with caplog.at_level(logging.WARNING):
        plan = known.plan("brass gear")
        known.plan("axle")
    assert plan.phrases[0] == ("defect on brass gear.", "brass gear") and len(plan.phrases) == 3
    assert (plan.target, plan.objects, plan.max_anomalies, plan.max_area) == ("brass gear.", 1, 3, 0.9)
    assert len(caplog.records) == 1 and "'brass gear' is not in the table" in caplog.text
    with pytest.raises(
        UserError, match=r"'brass gear' has no manual phrases \(the table has: bottle.*method\.texts=FILE"
    ):
        prompts("specific").plan("brass gear")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({}, "objects is None"),
        ({"objects": 0}, "objects is 0: expected a count"),
        ({"objects": True}, "objects is True"),
        ({"max_area": 1.5}, "max_area is 1.5: expected a share"),
        ({"object": ""}, "no word 'object'"),
        ({"prompts": [{"text": "a"}]}, "prompts: expected a list"),
        ([], "expected prompts, object"),
    ],
)
def test_faults_of_a_table_are_named(entry: Any, message: str) -> None:
    right = {"prompts": [], "object": "gear", "objects": 1, "max_anomalies": 2, "max_area": 0.5}
    assert prompts(table={"general": ["defect on {}"], "sets": {"own": {"gear": right}}}).plan("gear").max_area == 0.5
    wrong = {**right, **entry} if entry else entry
    with pytest.raises(UserError, match=f"own, category 'gear': .*{message}"):
        prompts(table={"general": ["defect on {}"], "sets": {"own": {"gear": wrong}}})
    with pytest.raises(UserError, match="twice"):
        prompts(table={"general": ["{}"], "sets": {"a": {"gear": right}, "b": {"gear": right}}})
    with pytest.raises(UserError, match=r"expected \{'general'"):
        prompts(table={"sets": {}})


# ---- two passes ------------------------------------------------------------------------------------------------------


def test_the_object_limits_defects(trunk: TrunkBackbone) -> None:
    method = make(trunk, language="general", without=["saliency"])
    say(method, {
        "metal_nut,.": [(0.5, 0.5, 0.5, 0.4, 0.9), (0.5, 0.5, 0.1, 0.1, 0.9), (0.5, 0.5, 1.0, 1.0, 0.9)],  # A = 0.2
        "defect on metal_nut.": [(0.5, 0.5, 0.4, 0.4, 0.5), (0.5, 0.5, 0.5, 0.5, 0.8)],  # 0.16 stays, 0.25 goes
        "flaw on metal_nut.": [(0.5, 0.5, 0.4, 0.4, 0.5)],  # a duplicate stays
    })  # fmt: skip
    defects, objects = method.proposals("image 0", method.prompts.plan("metal nut"))
    assert len(objects) == 2 and defects.scores.tolist() == pytest.approx([0.5, 0.5])
    free = make(trunk, language="general", without=["property"])
    assert "metal_nut,." not in free.captions("metal nut")
    say(free, {"defect on metal_nut.": [(0.5, 0.5, 1.0, 1.0, 0.8)]})
    assert len(free.proposals("image 0", free.prompts.plan("metal nut"))[0]) == 1, "no limit at all"


def test_without_an_object_the_image_is_the_limit(trunk: TrunkBackbone) -> None:
    method = make(trunk, language="general")
    say(method, {"damage on bottle.": [(0.5, 0.5, 0.5, 0.5, 0.5), (0.5, 0.5, 0.6, 0.6, 0.5)]}, "bottle")  # max_area 0.3
    assert areas_of(method.proposals("image 0", method.prompts.plan("bottle"))[0]) == pytest.approx([0.25])


def areas_of(queries: Queries) -> list[float]:
    return (queries.boxes[:, 2] * queries.boxes[:, 3]).tolist()


def test_the_map_is_that_of_the_formulas(trunk: TrunkBackbone) -> None:
    method = make(trunk, language="general", eval_size=20)
    say(method, {"defect on metal_nut.": [(0.25, 0.5, 0.5, 1.0, 0.5), (0.5, 0.25, 1.0, 0.5, 0.4)]})
    made = method.predict(batch(method))
    (image,) = images()
    saliency = method.saliency_map(image)
    masks = torch.zeros(2, HEIGHT, WIDTH, dtype=torch.bool)
    masks[0, :, : WIDTH // 2], masks[1, : HEIGHT // 2] = True, True
    heat = fused(masks, rescored(torch.tensor([0.5, 0.4]), masks, saliency))
    expected = F.interpolate(heat[None, None], size=(20, 20), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(made.map, expected)
    torch.testing.assert_close(made.score, expected.flatten(1).amax(dim=1))
    drawn = sorted(box.tolist() for box in made.boxes[0])
    assert drawn == [pytest.approx([0, 0, 10, 20]), pytest.approx([0, 0, 20, 10])], "in pixels of the map"


def test_no_box_is_an_empty_map(trunk: TrunkBackbone) -> None:
    method = make(trunk)
    say(method, {})
    made = method.predict(batch(method)).checked(batch(method))
    assert made.map.shape == (1, HEIGHT, WIDTH) and made.map.eq(0).all() and made.score.tolist() == [0.0]


def test_only_the_best_masks_count(trunk: TrunkBackbone) -> None:
    answer = {"anomaly.": [(0.1 * i + 0.05, 0.5, 0.1, 1.0, 0.2 + 0.05 * i) for i in range(8)]}
    for confidence, count in ((True, 5), (False, 8)):
        without = ["property", "saliency", *([] if confidence else ["confidence"])]
        method = make(trunk, language="naive", without=without)
        say(method, answer)
        made = method.predict(batch(method))
        assert len(made.boxes[0]) == count
        assert made.map[0, 0, [3, 57 - 12]].tolist() == pytest.approx([0 if confidence else 0.1, 0.275])


def test_several_objects_are_compared(trunk: TrunkBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    method = make(trunk, language="general")
    targets = [
        (0.25, 0.25, 0.3, 0.3, 0.5),
        (0.75, 0.75, 0.3, 0.3, 0.6),
        (0.5, 0.5, 0.6, 0.6, 0.9),
    ]  # above a quarter goes
    say(method, {"candle,.": targets, "flaw on candle.": [(0.25, 0.25, 0.1, 0.1, 0.5)]}, "candle")
    given = []
    real = method.saliency_map
    monkeypatch.setattr(
        method, "saliency_map", lambda image, objects=None: given.append(objects) or real(image, objects)
    )
    made = method.predict(batch(method, "candle"))
    assert given[0].shape == (2, HEIGHT, WIDTH)
    saliency = real(images()[0], given[0])
    inside = saliency[8:12, 12:18].mean()
    assert saliency[30, 5] == 0 < inside, "nothing outside the objects"
    assert made.map.max() == pytest.approx(0.5 * math.exp(3 * saliency[made.map[0] > 0].mean().item()) / 2, rel=1e-5)
    without = make(trunk, language="general", without=["property"])
    say(without, {"flaw on candle.": [(0.25, 0.25, 0.1, 0.1, 0.5)]}, "candle")
    assert without.predict(batch(without, "candle")).map.max() != pytest.approx(made.map.max().item())


def test_channel_order(trunk: TrunkBackbone) -> None:
    answer = {"anomaly.": [(0.5, 0.5, 0.5, 0.5, 0.5)]}
    maps = {}
    for order in ("rgb", "published"):
        method = make(trunk, language="naive", channel_order=order)
        say(method, answer)
        maps[order] = method.predict(batch(method)).map
        seen = method.segmenter.seen[-1][0]  # type: ignore[union-attr]
        assert torch.equal(seen, images()[0] if order == "rgb" else images()[0].flip(0))
    assert not torch.equal(maps["rgb"], maps["published"])
    assert method.display_name("saa") == "saa+ (BGR)"


def test_pixels_come_back_exactly(trunk: TrunkBackbone) -> None:
    method = make(trunk)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (trunk.mean, trunk.std))
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert torch.equal(method.pixels((every.float() / 255 - mean) / std), every)


# ---- boxes from elsewhere --------------------------------------------------------------------------------------------


def test_boxes_from_the_saliency_map(trunk: TrunkBackbone) -> None:
    detector = ComponentsDetector(level=0.6, min_area=0.0)
    method = make(trunk, detector=detector)
    assert method.display_name("saa") == "saa+ (components)"
    made = method.predict(batch(method))
    (image,) = images()
    saliency = method.saliency_map(image)
    found = detector.boxes(saliency)
    masks = method.segmenter.masks(image, found.boxes)  # type: ignore[union-attr]
    torch.testing.assert_close(made.map[0], fused(masks, rescored(found.scores, masks, saliency)))
    assert made.score > 0
    strict = make(trunk, detector=detector, prompts={"generic": {"max_area": 1e-6}})
    assert strict.predict(batch(strict, "gear")).map.eq(0).all(), "boxes are limited by the image's share"


def test_phrases_of_a_file_tell_objects_from_defects(trunk: TrunkBackbone, tmp_path: Path) -> None:
    rows = {
        "boxes": [[0, 0, 0.5, 0.4], [0.1, 0.1, 0.2, 0.2], [0, 0, 0.9, 0.9]],
        "phrases": ["metal_nut", "scratch", "scratch"],
    }
    (tmp_path / "boxes.json").write_text(json.dumps({"format": 1, "size": "relative", "images": {"image 0": rows}}))
    detector = FileDetector(str(tmp_path / "boxes.json"))
    method = make(trunk, detector=detector)
    assert method.captions("metal nut") == ("anomaly.",), "asked once"
    method.detections["image 0", "anomaly."] = detector.queries([Picture("image 0", None)], ["anomaly."])[0]
    defects, objects = method.proposals("image 0", method.prompts.plan("metal nut"))
    assert areas_of(objects) == pytest.approx([0.2]) and areas_of(defects) == pytest.approx([0.01])
    free = make(trunk, detector=detector, without=["property"])
    free.detections = method.detections
    defects, objects = free.proposals("image 0", free.prompts.plan("metal nut"))
    assert len(objects) == 0 and areas_of(defects) == pytest.approx([0.01, 0.81])
    assert method.display_name("saa") == "saa+ (file)"


# ---- the whole -------------------------------------------------------------------------------------------------------


def test_names(trunk: TrunkBackbone) -> None:
    assert make(trunk, language="naive", without=ABLATIONS).display_name("saa") == "saa"
    assert make(trunk, language="naive", without=ABLATIONS[:2]).display_name("saa") == "saa+"


def test_nothing_is_learned_or_stored(trunk: TrunkBackbone) -> None:
    method = make(trunk)
    assert not method.learnable() and method.state_dict() == {}
    method.check_learned({}, "checkpoint")
    with pytest.raises(UserError, match="learns nothing"):
        method.losses(batch(method))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"detector": no_detector()}, "SAA is made of boxes: choose detector=transformers"),
        ({"segmenter": None}, "choose segmenter=sam or segmenter=contrast"),
        ({"language": "latin"}, "unknown method.language 'latin': choose one of both"),
        ({"prompts": {"object_word": "x"}}, "unknown method.prompts.object_word"),
        ({"without": ["sam"]}, r"unknown method.without\[0\] 'sam': choose one of confidence, property, saliency"),
        ({"fusion": "max"}, "unknown method.fusion 'max'"),
        ({"channel_order": "bgr"}, "unknown method.channel_order 'bgr': choose one of published, rgb"),
        ({"boxes": {"box_threshold": 1.0}}, "method.boxes.box_threshold is 1.0: give a finite number of at least 0"),
        ({"saliency": {"farthest": 0}}, "method.saliency.farthest is 0"),
        ({"saliency": {"weight": -1}}, "method.saliency.weight is -1"),
        ({"eval_size": 0}, "method.eval_size is 0"),
        (
            {"saliency": {"size": 100}},
            "image_size 100: test_resnet needs a positive multiple of its stride 16, such as 96",
        ),
        ({"prompts": {"generic": {"objects": 0}}}, "method.prompts.generic.objects is 0"),
        ({"saliency": {"memory_mb": 0}}, "method.saliency.memory_mb is 0"),
    ],
)
def test_wrong_options_are_rejected(trunk: TrunkBackbone, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        make(trunk, **options)
    assert "\n" not in str(error.value)


def test_other_backbones() -> None:
    tiny = tiny_architecture(text_width=32, embed_dim=32)
    clip = load_backbone("tiny", architecture=tiny, random_seed=0)
    with pytest.raises(UserError, match="SAA runs on a TrunkBackbone or ConvNextBackbone, not on backbone tiny"):
        make(clip)
