"""`anomaly-vlm descriptions`: the prompt out, the answer in, mistakes in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from anomaly_vlm.cli import main
from anomaly_vlm.cli.descriptions import listed
from anomaly_vlm.texts import load_texts

ANSWER = (
    'Here it is:\n```json\n{"gear": ["Worn tooth.", "crack  in the hub", "worn tooth"], "Metal Nut": ["bent"]}\n```\n'
)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_prompt_then_answer(capsys: pytest.CaptureFixture) -> None:
    assert main(["descriptions", "method=filo", "categories=[gear,metal_nut]"]) == 0
    prompt = Path("outputs/descriptions/filo_prompt.txt").read_text()
    assert "- gear\n- metal nut\n" in prompt and '"metal nut": [' in prompt
    assert "answers=FILE" in capsys.readouterr().out
    Path("answer.txt").write_text(ANSWER)
    assert main(["descriptions", "method=filo", "categories=[gear,metal_nut]", "answers=answer.txt"]) == 0
    assert "method.descriptions=outputs/descriptions/filo.json" in capsys.readouterr().out
    table = load_texts("outputs/descriptions/filo.json")
    assert table["own"]["descriptions"] == {"gear": ["worn tooth", "crack in the hub"], "metal nut": ["bent"]}
    assert table["mvtec"] == load_texts("filo_descriptions")["mvtec"]


def test_a_users_plain_table_is_extended() -> None:
    Path("mine.json").write_text('{"bolt": ["rust"]}')
    Path("answer.txt").write_text('{"gear": ["worn tooth"]}')
    words = ["method=filo", "categories=gear", "answers=answer.txt", "table=./mine.json", "output=new.json"]
    assert main(["descriptions", *words]) == 0
    assert json.loads(Path("new.json").read_text()) == {"bolt": ["rust"], "gear": ["worn tooth"]}


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ("no object", "holds no JSON object"),
        ('{"nut": ["bent"]}', "no entry 'gear'"),
        ('{"gear": "bent"}', "is no list of texts"),
        ('{"gear": [" . "]}', "empty texts only"),
    ],
)
def test_wrong_answers(answer: str, told: str, capsys: pytest.CaptureFixture) -> None:
    Path("answer.txt").write_text(answer)
    assert main(["descriptions", "method=filo", "categories=[gear]", "answers=answer.txt"]) == 2
    err = capsys.readouterr().err
    assert told in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["categories=gear"], "no method given"),
        (["method=filo"], "no categories given"),
        (["method=adaclip", "categories=gear"], "unknown method with descriptions 'adaclip'"),
        (["method=filo", "categories=gear", "answers=absent.txt"], "no such file"),
        (["method=filo", "categories=gear", "colour=red"], "is no key of descriptions"),
    ],
)
def test_wrong_words(words: list[str], told: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["descriptions", *words]) == 2
    assert told in capsys.readouterr().err


def test_lists_of_categories() -> None:
    assert listed("[metal nut, 'gear',gear]") == ["metal nut", "gear"]
