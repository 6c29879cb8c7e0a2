"""SAA's hybrid prompts in words and numbers: what the detector is asked about a category, and what its objects are like."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

from anomaly_vlm.detectors import caption_of
from anomaly_vlm.errors import UserError, unknown_choice
from anomaly_vlm.texts import table_key

log = logging.getLogger("anomaly_vlm")
LANGUAGE = ("both", "general", "specific", "naive")
OBJECT_WORD = ("parsed", "clean")
NUMBERS = {"objects": int, "max_anomalies": int, "max_area": float}


class Plan(NamedTuple):
    """What is looked for in images of a category.

    Attributes:
        phrases: captions of defects, each with the word that rules a box out ('': none).
        target: caption of the object. word: the object's plain name.
        objects: how many an image shows. max_anomalies: masks kept. max_area: of a box, as a share of the largest object's.
    """

    phrases: tuple[tuple[str, str], ...]
    target: str
    word: str
    objects: int
    max_anomalies: int
    max_area: float


class HybridPrompts:
    """Plans by category.

    Args:
        table: `general` phrases, and under `sets` the categories of each data set (`saa_prompts`).
        language: `both`: general and manual phrases (SAA+); `general`, `specific`: these alone; `naive`: one caption (SAA).
        naive: the caption of `naive`.
        object_word: `parsed`: as the published code cuts it from a sentence, its comma included; `clean`.
        generic: `objects`, `max_anomalies`, `max_area` of categories that the table lacks.

    Raises:
        UserError: an unknown choice, or a table of another form.
    """

    def __init__(
        self, table: Mapping[str, Any], *, language: str, naive: str, object_word: str, generic: Mapping[str, Any]
    ) -> None:
        if language not in LANGUAGE:
            raise unknown_choice("method.language", str(language), LANGUAGE)
        if object_word not in OBJECT_WORD:
            raise unknown_choice("method.object_word", str(object_word), OBJECT_WORD)
        general, sets = table.get("general"), table.get("sets")
        if not isinstance(general, list) or not general or not isinstance(sets, dict):
            raise UserError(
                "table of SAA's prompts: expected {'general': [phrases with {}], 'sets': {set: {category: ...}}}"
            )
        self.language, self.naive, self.object_word, self.general = language, naive, object_word, general
        self.categories: dict[str, Mapping[str, Any]] = {}
        for name, members in sets.items():
            for category, entry in members.items():
                if reason := _fault(entry):
                    raise UserError(f"table of SAA's prompts, {name}, category '{category}': {reason}")
                if category in self.categories:
                    raise UserError(f"table of SAA's prompts: category '{category}' is in it twice: take one out")
                self.categories[category] = entry
        if reason := _fault({**generic, "object": "it", "prompts": []}):
            raise UserError(f"method.generic: {reason}")
        self.generic = dict(generic)
        self._noticed = False

    def plan(self, category: str) -> Plan:
        """The plan of a category; general phrases and generic numbers, with one notice, where the table lacks it.

        Raises:
            UserError: the table lacks it, and manual phrases are asked for alone.
        """
        word = table_key(category)
        entry = self.categories.get(word)
        if entry is None:
            if self.language == "specific":
                known = ", ".join(sorted(self.categories))
                raise UserError(
                    f"category '{category}' has no manual phrases (the table has: {known}): add it to a table of yours"
                    " (method.texts.table=FILE), or take method.language=general"
                )
            self._notice(category)
            word, entry = category, {**self.generic, "object": category, "prompts": []}
        parsed = entry["object"] if self.object_word == "clean" else entry.get("object_word_as_parsed", entry["object"])
        asked: list[tuple[str, str]] = []
        if self.language == "naive":
            asked = [(self.naive, "")]
        if self.language in ("general", "both"):
            asked += [(text.format(word), word) for text in self.general]
        if self.language in ("specific", "both"):
            asked += [(one["text"], one["filter"]) for one in entry["prompts"]]
        return Plan(
            tuple((caption_of([text]), banned.lower()) for text, banned in asked),
            caption_of([parsed]),
            entry["object"],
            entry["objects"],
            entry["max_anomalies"],
            entry["max_area"],
        )

    def _notice(self, category: str) -> None:
        if not self._noticed:
            self._noticed = True
            log.warning(
                "category '%s' is not in the table of SAA's prompts: general phrases, %s (said once; a table of yours:"
                " method.texts.table=FILE)",
                category,
                ", ".join(f"{name} {value}" for name, value in self.generic.items()),
            )


def _fault(entry: Any) -> str:
    """What is wrong with a category's entry, or ''."""
    if not isinstance(entry, Mapping):
        return "no object: expected prompts, object, objects, max_anomalies, max_area"
    for name, kind in NUMBERS.items():
        value: Any = entry.get(name)
        number = isinstance(value, int | kind) and not isinstance(value, bool)
        if not number or not (value >= 1 if kind is int else 0 < value <= 1):
            return (
                f"{name} is {value!r}: expected {'a count from 1 on' if kind is int else 'a share above 0, at most 1'}"
            )
    if not isinstance(entry.get("object"), str) or not entry["object"]:
        return "no word 'object'"
    prompts = entry.get("prompts")
    texts = isinstance(prompts, list) and all(
        isinstance(one, Mapping) and all(isinstance(one.get(key), str) and one[key] for key in ("text", "filter"))
        for one in prompts
    )
    return "" if texts else "prompts: expected a list of {'text': phrases, 'filter': word}"
