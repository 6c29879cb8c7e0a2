"""`anomaly-vlm descriptions`: texts for new categories, from any language model, by way of two files."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from anomaly_vlm.cli.arguments import values_of
from anomaly_vlm.errors import UserError
from anomaly_vlm.files import expanded, write_text
from anomaly_vlm.runs.checks import writable_folder

HELP = """usage: anomaly-vlm descriptions method=NAME categories=[gear,button] [output=FILE]
           writes the prompt for a language model
       anomaly-vlm descriptions method=NAME categories=[gear,button] answers=FILE [table=NAME_or_FILE] [output=FILE]
           reads its answer, and writes the method's table with the new categories in it

table:  what the new entries are added to (default: the table that the suite ships for the method)
output: default outputs/descriptions/NAME_prompt.txt, outputs/descriptions/NAME.json
"""


def run(arguments: Sequence[str]) -> int:
    """Runs `anomaly-vlm descriptions` with its arguments; returns the exit status."""
    if any(word in ("-h", "--help") for word in arguments):
        from anomaly_vlm.texts.questionnaire import QUESTIONNAIRES

        sys.stdout.write(f"{HELP}\nmethods: {', '.join(sorted(QUESTIONNAIRES))}\n")
        return 0
    values = values_of("descriptions", arguments, ("method", "categories", "answers", "table", "output"))
    if values["method"] is None:
        raise UserError("no method given: add method=NAME, such as method=filo")
    categories = listed(values["categories"])
    execute(values["method"], categories, values["answers"], values["table"], values["output"])
    return 0


def listed(words: str | None) -> list[str]:
    """`[metal nut,gear]` or `metal nut,gear` -> the categories, each once."""
    found = [
        word.strip().strip("'\"").strip()
        for word in (words or "").strip().removeprefix("[").removesuffix("]").split(",")
    ]
    found = list(dict.fromkeys(word for word in found if word))
    if not found:
        raise UserError("no categories given: add categories=[gear,button], the words that the data set uses")
    return found


def execute(method: str, categories: Sequence[str], answers: str | None, table: str | None, output: str | None) -> None:
    """Writes the prompt, or the table."""
    from anomaly_vlm.reporting.console import say
    from anomaly_vlm.texts import load_texts
    from anomaly_vlm.texts.questionnaire import questionnaire

    asked = questionnaire(method)
    name = f"{method}_prompt.txt" if answers is None else f"{method}.json"
    path = expanded(output or Path("outputs") / "descriptions" / name)
    if path.is_dir():
        raise UserError(f"output={output} is a folder: give a file")
    if answers is None:
        text = asked.prompt(categories)
        hint = f"give it to a language model, save the answer, then: anomaly-vlm descriptions method={method} "
        hint += f"'categories=[{','.join(categories)}]' answers=FILE"
    else:
        source = expanded(answers)
        if not source.is_file():
            raise UserError(f"answers={answers}: no such file: give the file with the language model's answer")
        try:
            answer = source.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"answers={answers} is no UTF-8 text: save the model's answer as plain text") from error
        merged = asked.merge(load_texts(table or asked.table), asked.read(answer, categories))
        text = json.dumps(merged, indent=1, ensure_ascii=False) + "\n"
        hint = f"use it with method={method} method.{asked.option}={path}"
    writable_folder(path.parent)
    write_text(path, text)
    say(f"written: {path}")
    say(hint)
