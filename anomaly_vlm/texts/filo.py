"""FiLo's descriptions of defects: how a table of them is read, and what a language model is asked for more."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from anomaly_vlm.errors import UserError
from anomaly_vlm.texts.questionnaire import Questionnaire, entry_of, json_object

OWN = "own"  # list of a table that holds what a user added
QUESTION = """\
A visual inspection system compares photographs with short descriptions of defects. For each product below, list the defects
that a camera can see on it.

Products:
{products}

Rules for each product:
- 5 to 10 descriptions, each of 1 to 6 words, such as "frayed edges" or "scratches on the surface".
- Describe what the defect looks like or where it is; leave out causes, smells, sounds and inner faults.
- Lower case, no full stop, no comma, no product name, each different from the others.

Answer with one JSON object and nothing else, in this form:
{form}
"""


class FiloQuestionnaire(Questionnaire):
    """Entries are lists of short descriptions; they serve the prompts and the detector alike."""

    table: ClassVar[str] = "filo_descriptions"

    def prompt(self, categories: Sequence[str]) -> str:
        """The question to a language model about some categories."""
        words = [category.replace("_", " ") for category in categories]
        form = json.dumps({word: ["first defect", "second defect", "..."] for word in words}, indent=1)
        return QUESTION.format(products="\n".join(f"- {word}" for word in words), form=form)

    def read(self, answer: str, categories: Sequence[str]) -> dict[str, list[str]]:
        """The descriptions of each category in a language model's answer.

        Raises:
            UserError: An entry is missing or not a list of texts.
        """
        found, entries = json_object(answer), {}
        for category in categories:
            given = entry_of(found, category)
            if not isinstance(given, list) or not given or not all(isinstance(text, str) for text in given):
                raise UserError(
                    f"the answer's entry '{category}' is no list of texts: expected 5 to 10 short descriptions"
                )
            cleaned = [" ".join(text.lower().rstrip(" .").split()) for text in given]
            entries[category.replace("_", " ")] = list(dict.fromkeys(text for text in cleaned if text))
            if not entries[category.replace("_", " ")]:
                raise UserError(f"the answer's entry '{category}' holds empty texts only: ask for it again")
        return entries

    def merge(self, table: Mapping[str, Any], entries: Mapping[str, Any]) -> dict[str, Any]:
        """The table with new entries; the table that is given is not changed."""
        out = copy.deepcopy(dict(table))
        if is_flat(out):
            return {**out, **entries}
        own = out.setdefault(OWN, {"class_order": [], "descriptions": {}, "detector_descriptions": {}})
        own["class_order"] += [name for name in entries if name not in own["class_order"]]
        for kind in ("descriptions", "detector_descriptions"):
            own[kind].update(entries)
        return out


def is_flat(table: Mapping[str, Any]) -> bool:
    """Whether a table is a user's plain one, `{category: [descriptions]}`."""
    return all(
        isinstance(entry, list) and all(isinstance(text, str) for text in entry) for entry in table.values()
    ) and not ({"normal_states", "positions"} & table.keys())
