"""FineGrainedAD's texts from a table of captions, and from the template where the table lacks a category."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from anomaly_vlm.errors import UserError
from anomaly_vlm.methods.finegrainedad.captions import Captions
from anomaly_vlm.texts import load_texts


def captions(seed: int = 111, **changes: Any) -> Captions:
    return Captions({**load_texts("mfsc_captions"), **changes}, load_texts("promptad_prompts"), seed=seed)


def table(**entry: Any) -> dict[str, Any]:
    """One category `widget` with the given parts."""
    levels = {
        "level_1": {"foreground": "widget", "background": "steel"},
        "level_2": {
            "entity": ["bolt", "pins"],
            "number": ["1", "2"],
            "location": ["center", "top"],
            "relation": "A bolt.",
        },
        "level_3": {"color": ["gray"], "texture": [], "shape": ["flat"], "entity_caption": ["A bolt", "Two pins"]},
        "caption": "A widget on steel, a Widget.",
    }
    states = {"widget": ["{} with dent", "broken {}"]}
    return {"classes": {"widget": {**levels, **entry}}, "abnormal_states": states}


def test_replacement_in_each_level() -> None:
    texts = captions(**table()).texts("Widget")
    assert texts.image.abnormal == ["A widget with dent on steel, a Widget.", "A broken widget on steel, a Widget."]
    assert texts.groups["relation"].abnormal == ["A bolt with dent.", "A broken bolt."]
    assert texts.groups["color"].normal == "gray"
    assert "gray" not in texts.groups["color"].abnormal
    assert "grey" in texts.groups["color"].abnormal
    assert set(texts.groups) == {"relation", "color", "shape"}  # an empty list is left out
    assert texts.background.normal == "steel background"
    assert texts.background.abnormal[0] == "steel background with dent"
    assert [entity.normal for entity in texts.entities] == ["A bolt", "Two pins"]


def test_a_repeated_entity_is_replaced_repeatedly() -> None:
    relation = captions().texts("macaroni1").groups["relation"]
    assert relation.abnormal[0].count("with color spot") == 4


def test_drawn_states_and_places_of_entities() -> None:
    """The check line of the specification: macaroni1, seed 111."""
    found = [entity.abnormal[0] for entity in captions().texts("macaroni1").entities]
    draws = [
        ("small chip around edge", "right center"),
        ("breakage", "entire image"),
        ("breakage", "top center"),
        ("cracks", "entire image"),
    ]
    end = "with crescent shape and smooth texture."
    assert found == [f"a piece of yellow macaroni with {state} on the {place} {end}" for state, place in draws]
    assert captions().texts("macaroni1") == captions().texts("macaroni1")
    assert captions(seed=1).texts("macaroni1").entities != captions().texts("macaroni1").entities


def test_plural_capitals_and_center() -> None:
    level_2 = {"entity": ["bolt", "LED"], "number": ["2", "1"], "location": ["center", "top"], "relation": "-"}
    level_3 = {
        "color": [],
        "texture": [],
        "shape": [],
        "entity_caption": ["Bolts centrally in the center", "An LED on top"],
    }
    first, second = captions(**table(level_2=level_2, level_3=level_3)).texts("widget").entities
    words = first.abnormal[0].split()
    assert {"bolts", "in", "the"} <= set(words)
    assert "center" not in words
    assert "centrally" not in words
    assert "with dent" not in second.abnormal[0]
    assert "broken" not in second.abnormal[0]  # capitals never match the lower-cased caption


def test_every_shipped_category_has_enough_attribute_words() -> None:
    own = captions()
    for category in own.table["classes"]:
        texts = own.texts(category)
        assert texts.entities
        for name in ("color", "texture", "shape"):
            assert len(texts.groups[name].abnormal) >= len(own.states(category)), (category, name)


def test_template_with_one_notice(caplog: pytest.LogCaptureFixture) -> None:
    own = captions()
    with caplog.at_level(logging.WARNING, logger="anomaly_vlm"):
        texts = own.texts("gear")
        own.texts("my_part")
    assert len(caplog.records) == 1
    assert "no captions for category 'gear'" in caplog.text
    assert texts.image.normal == "a photo of one gear"
    assert "a photo of one damaged gear" in texts.image.abnormal
    assert "a photo of one gear with flaw" in texts.image.abnormal
    assert set(texts.groups) == {"relation"}
    assert len(texts.entities) == 1
    assert texts.entities[0].normal == "a gear in the center"
    assert "center" not in texts.entities[0].abnormal[0].split()[:3]
    assert (
        own.texts("PCB1").image.normal.startswith("The image shows") or own.texts("PCB1").entities
    )  # found in the table
    assert len(caplog.records) == 1


@pytest.mark.parametrize("broken", [{"classes": 0}, {"vocabulary": {"color": []}}])
def test_incomplete_tables(broken: dict[str, Any]) -> None:
    full = {**load_texts("mfsc_captions"), **broken}
    if broken.get("classes") == 0:
        del full["classes"]
    with pytest.raises(UserError, match="the table of captions has no"):
        Captions(full, load_texts("promptad_prompts"))
