"""FineGrainedAD's questionnaire: what it asks, what it takes and refuses, and the table that the method then reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from anomaly_vlm.cli import main
from anomaly_vlm.errors import UserError
from anomaly_vlm.methods.finegrainedad.captions import Captions
from anomaly_vlm.texts import load_texts
from anomaly_vlm.texts.questionnaire import questionnaire


def entry(**changes: Any) -> dict[str, Any]:
    full: dict[str, Any] = {
        "level_1": {"foreground": "gear", "background": "grey table"},
        "level_2": {
            "entity": ["teeth", "hub"],
            "number": ["multiple", "1"],
            "location": ["corners", "center"],
            "relation": "The teeth surround the hub.",
        },
        "level_3": {
            "direction": ["None", "None"],
            "color": ["silver", "silver"],
            "texture": ["smooth", "smooth"],
            "shape": ["rectangular", "circular"],
            "entity_caption": ["Silver teeth at the corners.", "A  silver hub in the center."],
        },
        "caption": "A silver gear on a grey table.",
        "abnormal_states": ["{} with worn tooth", "cracked {}"],
    }
    for name, value in changes.items():
        level, _, inside = name.rpartition("__")
        (full[level] if level else full)[inside] = value
    return full


def test_the_question_goes_level_by_level() -> None:
    prompt = questionnaire("finegrainedad").prompt(["gear", "metal_nut"])
    assert "1. gear\n2. metal nut\n" in prompt
    assert prompt.index("Level 1") < prompt.index("Level 2") < prompt.index("Level 3") < prompt.index("- caption")
    assert "evenly distributed" in prompt
    assert "various shades of brown" in prompt
    assert '"{} with scratch"' in prompt
    form = json.loads(prompt[prompt.index("in this form:") + 13 :])
    assert set(form["gear"]) == set(entry())
    for level in ("level_1", "level_2", "level_3"):
        assert set(form["metal nut"][level]) == set(entry()[level])


def test_question_then_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["descriptions", "method=finegrainedad", "categories=[my_gear]"]) == 0
    assert "1. my gear" in Path("outputs/descriptions/finegrainedad_prompt.txt").read_text()
    Path("answer.txt").write_text(f"Here:\n```json\n{json.dumps({'My gear': entry()})}\n```")
    assert main(["descriptions", "method=finegrainedad", "categories=[my_gear]", "answers=answer.txt"]) == 0
    assert "method.captions=outputs/descriptions/finegrainedad.json" in capsys.readouterr().out
    table = load_texts("outputs/descriptions/finegrainedad.json")
    assert table["classes"]["bottle"] == load_texts("mfsc_captions")["classes"]["bottle"]
    texts = Captions(table, load_texts("promptad_prompts")).texts("my_gear")
    assert texts.image.abnormal[0] == "A silver gear with worn tooth on a grey table."
    assert texts.entities[1].normal == "A silver hub in the center."
    assert texts.groups["color"].normal == "silver.silver"


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"level_2": "none"}, "has no level_2"),
        ({"level_1__background": " "}, "no text under level_1.background"),
        ({"level_3__color": "silver"}, "no list under level_3.color"),
        ({"level_3__texture": ["smooth", 3]}, "no text under level_3.texture"),
        ({"level_2__location": ["center"]}, "2 entities, 1 locations and 2 captions"),
        ({"abnormal_states": ["worn"]}, "abnormal state 'worn' needs {} once"),
        ({"abnormal_states": ["{}"]}, "abnormal state '{}' needs {} once"),
        ({"caption": "A cog."}, "does not name the foreground 'gear'"),
        ({"level_2__entity": ["teeth", "Hub"]}, "caption of entity 'Hub'"),
    ],
)
def test_answers_of_another_form(changed: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as error:
        questionnaire("finegrainedad").read(json.dumps({"gear": entry(**changed)}), ["gear"])
    assert told in str(error.value)
    assert "'gear'" in str(error.value)


def test_shipped_captions_have_the_form_that_is_asked_for() -> None:
    """But for four categories, in whose captions a component is not named word by word."""
    table, asked, refused = load_texts("mfsc_captions"), questionnaire("finegrainedad"), set()
    for category, levels in table["classes"].items():
        whole = {**levels, "abnormal_states": table["abnormal_states"][category]}
        try:
            asked.read(json.dumps({category: whole}), [category])
        except UserError as error:
            assert "does not name it" in str(error)
            refused.add(category)
    assert refused == {"grid", "leather", "pcb3", "pcb4"}
