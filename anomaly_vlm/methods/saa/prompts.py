"""SAA's hybrid prompts (section 4): captions for the detector, and numbers that describe the objects of a category."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, NamedTuple

from anomaly_vlm.detectors import caption_of
from anomaly_vlm.errors import UserError
from anomaly_vlm.options import PositiveInt, Range
from anomaly_vlm.texts import table_key

log = logging.getLogger("anomaly_vlm")
Language = Literal["both", "general", "specific", "naive"]
NUMBERS = {"objects": int, "max_anomalies": int, "max_area": float}


@dataclass(frozen=True)
class ObjectNumbers:
    """Numbers that describe the objects of a category (property and confidence prompts).

    Args:
        objects: How many objects an image shows.
        max_anomalies: How many masks count.
        max_area: Limit of a defect's box, as a share of the largest object's.
    """

    objects: PositiveInt = 1
    max_anomalies: PositiveInt = 5
    max_area: Annotated[float, Range(low=0, high=1, open_low=True)] = 0.9


@dataclass(frozen=True)
class SaaPromptOptions:
    """Words and numbers of the prompts.

    Args:
        object_word: What the detector is asked for as the object. `published`: the word as the published code cuts it from a
            sentence, its comma included (`candle,`). `clean`: the word alone.
        naive_caption: The one caption where `language` is `naive`.
        generic: Numbers of categories that the table lacks.
    """

    object_word: Literal["published", "clean"] = "published"
    naive_caption: str = "anomaly"
    generic: ObjectNumbers = ObjectNumbers()


class SaaPlan(NamedTuple):
    """What is looked for in images of a category.

    Attributes:
        phrases: Captions of defects, each with a word whose presence in a box's phrase rules the box out ('' for none).
        target: Caption of the object.
        word: The object's plain name.
        objects: See `ObjectNumbers`.
        max_anomalies: See `ObjectNumbers`.
        max_area: See `ObjectNumbers`.
    """

    phrases: tuple[tuple[str, str], ...]
    target: str
    word: str
    objects: int
    max_anomalies: int
    max_area: float


class SaaPrompts:
    """Plans by category.

    Args:
        table: `general` phrases, and under `sets` the categories of each data set (`saa_prompts`).
        language: `both`: general and manual phrases (SAA+); `general`, `specific`: the ones or the others alone; `naive`:
            one caption (SAA).
        options: Words and numbers.

    Raises:
        UserError: The table has another form.
    """

    def __init__(
        self,
        table: Mapping[str, Any],
        *,
        language: Language = "both",
        options: SaaPromptOptions = SaaPromptOptions(),
    ) -> None:
        general, sets = table.get("general"), table.get("sets")
        if not isinstance(general, list) or not general or not isinstance(sets, dict):
            raise UserError(
                "table of SAA's prompts: expected {'general': [phrases with {}], 'sets': {set: {category: ...}}}"
            )
        self.language, self.options, self.general = language, options, general
        self.categories: dict[str, Mapping[str, Any]] = {}
        for name, members in sets.items():
            for category, entry in members.items():
                if reason := _fault(entry):
                    raise UserError(f"table of SAA's prompts, {name}, category '{category}': {reason}")
                if category in self.categories:
                    raise UserError(f"table of SAA's prompts: category '{category}' is in it twice: take one out")
                self.categories[category] = entry
        self._noticed = False

    def plan(self, category: str) -> SaaPlan:
        """The plan of a category. Where the table lacks it, it has general phrases and generic numbers, with one notice.

        Raises:
            UserError: The table lacks it, and manual phrases are asked for alone.
        """
        word = table_key(category)
        entry = self.categories.get(word)
        if entry is None:
            if self.language == "specific":
                listed = ", ".join(sorted(self.categories))
                raise UserError(
                    f"category '{category}' has no manual phrases (the table has: {listed}): add it to a table of yours"
                    " (method.texts=FILE), or take method.language=general"
                )
            self._notice(category)
            word, entry = category, {**asdict(self.options.generic), "object": category, "prompts": []}
        target = entry["object"]
        if self.options.object_word == "published":
            target = entry.get("object_word_as_parsed", target)
        asked: list[tuple[str, str]] = []
        if self.language == "naive":
            asked = [(self.options.naive_caption, "")]
        if self.language in ("general", "both"):
            asked += [(text.format(word), word) for text in self.general]
        if self.language in ("specific", "both"):
            asked += [(one["text"], one["filter"]) for one in entry["prompts"]]
        return SaaPlan(
            tuple((caption_of([text]), excluded.lower()) for text, excluded in asked),
            caption_of([target]),
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
                " method.texts=FILE)",
                category,
                ", ".join(f"{name} {value}" for name, value in asdict(self.options.generic).items()),
            )


def _fault(entry: Any) -> str:
    """What is wrong with a category's entry of a table, or ''."""
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
