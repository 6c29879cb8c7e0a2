"""What a method asks a language model about categories that its table of texts lacks, and how the answer enters the table.

Nothing here talks to a model: a questionnaire writes a prompt for any model that the user has, and reads the answer as text.
"""

from __future__ import annotations

import importlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from anomaly_vlm.errors import UserError, unknown_choice

QUESTIONNAIRES = {  # method -> its class
    "filo": "anomaly_vlm.texts.filo:FiloQuestionnaire",
    "finegrainedad": "anomaly_vlm.texts.finegrainedad:FineGrainedADQuestionnaire",
}


class Questionnaire(ABC):
    """One method's questions. `table` is the shipped table that its answers extend, `option` the method's that names it."""

    table: ClassVar[str]
    option: ClassVar[str] = "descriptions"

    @abstractmethod
    def prompt(self, categories: Sequence[str]) -> str:
        """The whole text for the language model: what is asked of each category, and the form of the answer."""

    @abstractmethod
    def read(self, answer: str, categories: Sequence[str]) -> dict[str, Any]:
        """Entries by category from the model's answer.

        Raises:
            UserError: The answer lacks a category, or an entry has another form than asked.
        """

    @abstractmethod
    def merge(self, table: Mapping[str, Any], entries: Mapping[str, Any]) -> dict[str, Any]:
        """`table`, as the method reads it, with these entries added; entries of the same category are replaced."""


def questionnaire(method: str) -> Questionnaire:
    """The questionnaire of a method, or a `UserError` where it has none."""
    if method not in QUESTIONNAIRES:
        raise unknown_choice("method with descriptions", method, QUESTIONNAIRES)
    module, _, name = QUESTIONNAIRES[method].partition(":")
    questionnaire: Questionnaire = getattr(importlib.import_module(module), name)()
    return questionnaire


def json_object(answer: str) -> dict[str, Any]:
    """The JSON object in a model's answer, which may stand in a code fence or between sentences.

    Raises:
        UserError: There is none.
    """
    fenced = re.search(r"```(?:json)?\s*(\{.*\})\s*```", answer, re.S)
    text = fenced[1] if fenced else answer[answer.find("{") : answer.rfind("}") + 1]
    try:
        found = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(
            f"the answer holds no JSON object ({error}): save the model's answer with the object that the prompt asks for"
        ) from error
    if not isinstance(found, dict):
        raise UserError(f"the answer holds a {type(found).__name__}: expected one JSON object, category to entry")
    return found


def entry_of(found: Mapping[str, Any], category: str) -> Any:
    """The entry of a category, whose name the model may have written otherwise (`Metal nut`, `metal_nut`).

    Raises:
        UserError: There is none.
    """
    names = {str(name).strip().lower().replace("_", " "): entry for name, entry in found.items()}
    wanted = category.strip().lower().replace("_", " ")
    if wanted not in names:
        raise UserError(
            f"the answer has no entry '{category}' (it has {', '.join(found)}): ask for it again, or rename it"
        )
    return names[wanted]
