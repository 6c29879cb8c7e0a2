"""FineGrainedAD's captions of new categories: what a model is asked about one normal picture of each, level by level."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from anomaly_vlm.errors import UserError
from anomaly_vlm.texts import load_texts, table_key
from anomaly_vlm.texts.questionnaire import Questionnaire, entry_of, json_object

QUESTION = """\
Attach one picture of a normal, faultless sample of each product, in this order:
{pictures}

A visual inspection system compares photographs with descriptions of what is normal. Describe each picture on three levels,
one after the other: each level looks closer at what the level before it named.

Level 1, the whole picture:
- foreground: the product, one noun or noun phrase in the singular, without article.
- background: what is behind it, a short phrase; "none" where the product fills the picture.
Level 2, the foreground:
- entity: its 1 to 5 visible components, a noun phrase each, lower case; the product itself where it has no components.
- number: how many of each: {number}.
- location: where each is, in the order of entity: {location}.
- relation: one sentence on how the components lie to each other; it names each as entity has it, word by word.
Level 3, each component, in the order of entity:
- direction: where it points, or "None".
- color, texture, shape: one value a component; prefer these words:
  color: {color}
  texture: {texture}
  shape: {shape}
- entity_caption: one sentence a component, with its name as entity has it, colour, texture, shape and location.
Then, with all of this in view:
- caption: two to four sentences on the whole picture, at most 60 words; they name the product as foreground has it.
- abnormal_states: 3 to 8 defects that a camera could see on such a product, each with {{}} in place of its name, such as
  "{{}} with scratch" or "broken {{}}".

Answer with one JSON object and nothing else, in this form:
{form}
"""
LISTS = {
    "level_2": ("entity", "number", "location"),
    "level_3": ("direction", "color", "texture", "shape", "entity_caption"),
}
WORDS = {"level_1": ("foreground", "background"), "level_2": ("relation",)}


class FineGrainedADQuestionnaire(Questionnaire):
    """Entries have the levels of the shipped table, and the category's abnormal states beside them."""

    table: ClassVar[str] = "mfsc_captions"
    option: ClassVar[str] = "captions"

    def prompt(self, categories: Sequence[str]) -> str:
        """The question to a language model about some categories."""
        words = [category.replace("_", " ") for category in categories]
        vocabulary = {name: ", ".join(values) for name, values in load_texts(self.table)["vocabulary"].items()}
        blank: dict[str, Any] = {level: dict.fromkeys(names, "...") for level, names in WORDS.items()}
        for level, names in LISTS.items():
            blank[level] = {**{name: ["..."] for name in names}, **blank.get(level, {})}
        blank |= {"caption": "...", "abnormal_states": ["{} with ..."]}
        return QUESTION.format(
            pictures="\n".join(f"{i}. {word}" for i, word in enumerate(words, start=1)),
            form=json.dumps(dict.fromkeys(words, blank), indent=1),
            **{name: vocabulary[name] for name in ("number", "location", "color", "texture", "shape")},
        )

    def read(self, answer: str, categories: Sequence[str]) -> dict[str, Any]:
        """The checked entry of each category in a language model's answer.

        Raises:
            UserError: An entry is missing or incomplete.
        """
        found = json_object(answer)
        return {category: checked_entry(category, entry_of(found, category)) for category in categories}

    def merge(self, table: Mapping[str, Any], entries: Mapping[str, Any]) -> dict[str, Any]:
        """The table with new entries; the table that is given is not changed."""
        out = copy.deepcopy(dict(table))
        for category, entry in entries.items():
            levels = dict(entry)
            out.setdefault("abnormal_states", {})[table_key(category)] = levels.pop("abnormal_states")
            out.setdefault("classes", {})[table_key(category)] = levels
        return out


def checked_entry(category: str, entry: Any) -> dict[str, Any]:
    """An entry of the answer with its texts stripped.

    Raises:
        UserError: a part is missing or of another form, lists of components differ in length, or a name does not stand in
            the text in which the method replaces it.
    """
    told = f"the answer's entry '{category}'"
    if not isinstance(entry, Mapping):
        raise UserError(f"{told} is no object: expected level_1, level_2, level_3, caption and abnormal_states")
    out: dict[str, Any] = {}
    for level in ("level_1", "level_2", "level_3"):
        given = entry.get(level)
        if not isinstance(given, Mapping):
            raise UserError(f"{told} has no {level}: ask for it again")
        out[level] = {name: _text(told, f"{level}.{name}", given.get(name)) for name in WORDS.get(level, ())}
        out[level] |= {name: _texts(told, f"{level}.{name}", given.get(name)) for name in LISTS.get(level, ())}
    out["caption"] = _text(told, "caption", entry.get("caption"))
    out["abnormal_states"] = _texts(told, "abnormal_states", entry.get("abnormal_states"))
    entities, captions = out["level_2"]["entity"], out["level_3"]["entity_caption"]
    if not len(entities) == len(out["level_2"]["location"]) == len(captions):
        raise UserError(
            f"{told} has {len(entities)} entities, {len(out['level_2']['location'])} locations and {len(captions)}"
            " captions of entities: expected one of each"
        )
    if wrong := [state for state in out["abnormal_states"] if state.count("{}") != 1 or state.strip() == "{}"]:
        raise UserError(
            f"{told}: abnormal state '{wrong[0]}' needs {{}} once, in place of the name, and words beside it"
        )
    if out["level_1"]["foreground"] not in out["caption"]:
        raise UserError(
            f"{told}: its caption does not name the foreground '{out['level_1']['foreground']}' word by word"
        )
    for name, caption in zip(entities, captions, strict=True):
        if name not in caption.lower():
            raise UserError(f"{told}: the caption of entity '{name}' does not name it in lower case, word by word")
    return out


def _text(told: str, name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{told} has no text under {name}: ask for it again")
    return " ".join(value.split())


def _texts(told: str, name: str, value: Any) -> list[str]:
    if not isinstance(value, list) or not value:
        raise UserError(f"{told} has no list under {name}: ask for it again")
    return [_text(told, name, text) for text in value]
