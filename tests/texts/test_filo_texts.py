"""FiLo's tables: by class word, by name, generic ones with a notice, a user's own."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from anomaly_vlm.errors import UserError
from anomaly_vlm.methods.filo.sentences import Sentences
from anomaly_vlm.methods.filo.texts import DefectTexts, TextOptions
from anomaly_vlm.texts import load_texts


@pytest.fixture(scope="module")
def table() -> dict[str, Any]:
    return load_texts("filo_descriptions")


def test_sentences_of_a_published_category(table: dict[str, Any]) -> None:
    texts = DefectTexts(table)
    normal, abnormal = texts.states("metal_nut")
    assert normal[:2] == ["metal nut", "flawless metal nut"] and len(normal) == 7
    assert abnormal[0] == "abnormal metal nut with cracks" and abnormal[-5] == "damaged metal nut"
    assert len(abnormal) == 8 + 5
    first, rows = Sentences(texts, 12).lines("metal nut")
    assert first[0] == "metal nut." and rows[0] == "abnormal metal nut with cracks at top left."
    assert rows[8] == "abnormal metal nut with cracks at bottom right." and len(rows) == 13 * 9
    assert Sentences(texts, 12).lines("metal nut", 4)[1][1] == "abnormal metal nut with irregular threading at center."


def test_the_class_registered_last_wins(table: dict[str, Any]) -> None:
    last, own = DefectTexts(table), DefectTexts(table, TextOptions(class_text="paper"))
    one, two = (table["visa"]["descriptions"][f"macaroni{i}"] for i in (1, 2))
    assert one != two
    assert last.descriptions("macaroni1") == two and own.descriptions("macaroni1") == one
    assert last.word("macaroni1") == "macaroni" and last.word("pcb3") == "pcb"
    assert last.detector_words("macaroni1")[5:] == table["visa"]["detector_descriptions"]["macaroni1"]


def test_the_detectors_spelling_is_its_own(table: dict[str, Any]) -> None:
    texts = DefectTexts(table)
    assert texts.descriptions("hazelnut") != texts.detector_words("hazelnut")[5:]
    assert [text.lower() for text in texts.descriptions("hazelnut")] == texts.detector_words("hazelnut")[5:]
    assert texts.detector_words("hazelnut")[:5] == ["anomaly", "damage", "broken", "defect", "contamination"]


def test_categories_that_the_table_lacks(table: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    texts = DefectTexts(table, TextOptions(generic=["scratches", "dents"]))
    with caplog.at_level(logging.WARNING, logger="anomaly_vlm"):
        for category in ("gear", "gear", "button"):
            assert texts.states(category)[1][0] == f"abnormal {category} with scratches"
        assert texts.detector_words("gear")[5:] == ["scratches", "dents"]
    notices = [record.getMessage() for record in caplog.records]
    assert len(notices) == 1 and "'gear'" in notices[0] and "2 generic ones" in notices[0]
    assert DefectTexts(table, TextOptions(generic=())).states("gear")[1] == [
        "damaged gear", "broken gear", "gear with flaw", "gear with defect", "gear with damage",
    ]  # fmt: skip


def test_without_descriptions(table: dict[str, Any]) -> None:
    assert len(DefectTexts(table, fine_grained=False).states("carpet")[1]) == 5


def test_a_users_plain_table() -> None:
    texts = DefectTexts({"gear": ["worn tooth"], "metal nut": ["bent"]})
    assert texts.states("Gear")[1][0] == "abnormal Gear with worn tooth"
    assert texts.detector_words("metal_nut")[-1] == "bent" and len(texts.states("gear")[0]) == 7


def test_lists_that_were_added_come_first(table: dict[str, Any]) -> None:
    own = {"class_order": ["carpet"], "descriptions": {"carpet": ["loose pile"]}}
    texts = DefectTexts({**table, "own": own})
    assert texts.descriptions("carpet") == ["loose pile"] and texts.detector_words("carpet")[-1] == "loose pile"
    assert DefectTexts({**table, "own": own}, TextOptions(class_list="mvtec")).descriptions("carpet") != ["loose pile"]


@pytest.mark.parametrize(
    ("wrong", "told"), [({"gear": "worn"}, "entry 'gear' is no list"), ({"gear": [1]}, "entry 'gear' is no list")]
)
def test_wrong_tables(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        DefectTexts(wrong)


def test_positions_are_nine(table: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="needs nine"):
        DefectTexts({**table, "positions": ["top"]})
