"""FiLo's fine-grained descriptions (FG-Des, section 3.2): states of each category, from a table of its defects."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from anomaly_vlm.errors import UserError, unknown_choice
from anomaly_vlm.options import PositiveInt

log = logging.getLogger("anomaly_vlm")

# What a plain table of the user's, `{category: [descriptions]}`, leaves out: WinCLIP's states, FiLo's sentences.
DEFAULTS: dict[str, Any] = {
    "normal_states": ["{}", "flawless {}", "perfect {}", "unblemished {}", "{} without flaw", "{} without defect",
                      "{} without damage"],
    "abnormal_states": ["damaged {}", "broken {}", "{} with flaw", "{} with defect", "{} with damage"],
    "description_template": "abnormal {} with DESCRIPTION",
    "position_template": "STATE at POSITION.",
    "positions": ["top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right"],
    "class_word": {},
    "detector": {"general": ["anomaly", "damage", "broken", "defect", "contamination"], "separator": " . "},
}  # fmt: skip
# Descriptions of a category that the table lacks; this project's, as the published code stops there.
GENERIC = (
    "scratches on the surface",
    "cracks",
    "dents",
    "stains",
    "discoloration",
    "holes",
    "foreign material on the surface",
    "broken or missing parts",
)


@dataclass(frozen=True)
class TextOptions:
    """How descriptions become the text features of a category.

    Args:
        class_list: List of the table to look in; None for all of them, the last one first.
        class_text: Which descriptions a category gets. `published`: those of its class word, where the class that is listed
            last wins (macaroni1 is described by macaroni2's). `paper`: its own.
        generic: Descriptions of a category that the table lacks. Empty: it has the general states alone.
        context_length: Number of learned tokens in front of each sentence.
        pair_norm: `published`: the two text features of an image are also divided by their common norm, sqrt(2). `paper`:
            they have unit norm.
    """

    class_list: str | None = None
    class_text: Literal["published", "paper"] = "published"
    generic: Sequence[str] = GENERIC
    context_length: PositiveInt = 12
    pair_norm: Literal["published", "paper"] = "published"


class DefectTexts:
    """States and detector words of each category, from a table of descriptions.

    Args:
        table: `{list: {class_order, descriptions, detector_descriptions}}` beside sentences and words as the shipped table
            has them, or plainly `{category: [descriptions]}`.
        options: Which of them are used.
        fine_grained: False leaves the descriptions out of the sentences (the paper's "without FG-Des"). The detector keeps
            its own.

    Raises:
        UserError: The table has another form, or lacks the list that `options` names.
    """

    def __init__(
        self,
        table: Mapping[str, Any],
        options: TextOptions = TextOptions(),
        *,
        fine_grained: bool = True,
    ) -> None:
        lists = {name: entry for name, entry in table.items() if isinstance(entry, Mapping) and "descriptions" in entry}
        if not lists:
            plain = {name: entry for name, entry in table.items() if name not in DEFAULTS}
            if wrong := [name for name, entry in plain.items() if not _is_list_of_texts(entry)]:
                raise UserError(
                    f"descriptions: entry '{wrong[0]}' is no list of texts: expected {{category: [descriptions]}}"
                )
            lists = {"own": {"class_order": list(plain), "descriptions": plain, "detector_descriptions": plain}}
        if options.class_list is not None and options.class_list not in lists:
            raise unknown_choice("method.texts.class_list", options.class_list, lists)
        self.words = {**DEFAULTS, **{key: table[key] for key in DEFAULTS if key in table}}
        if len(self.words["positions"]) != 9:
            raise UserError("descriptions: 'positions' needs nine phrases, row by row from the top left")
        self.class_words = {_plain(name): word for name, word in self.words["class_word"].items()}
        self.options, self.fine_grained = options, fine_grained
        self.lists = list(lists.values()) if options.class_list is None else [lists[options.class_list]]
        self._noticed: set[str] = set()

    def word(self, category: str) -> str:
        """The class word of a category: `pcb3` -> `pcb`, `metal_nut` -> `metal nut`."""
        return str(self.class_words.get(_plain(category), category.replace("_", " ")))

    def descriptions(self, category: str) -> Sequence[str]:
        """Fine-grained descriptions of a category, for its sentences."""
        if (entry := self._list_of(category)) is None:
            return self._generic(category)
        by_name: dict[str, Sequence[str]] = {_plain(name): texts for name, texts in entry["descriptions"].items()}
        if self.options.class_text == "paper":
            return by_name[_plain(category)]
        order = [_plain(name) for name in entry.get("class_order", entry["descriptions"])]
        return {self.word(name): by_name[name] for name in order if name in by_name}[self.word(_plain(category))]

    def states(self, category: str) -> tuple[list[str], list[str]]:
        """Normal and abnormal states of a category, descriptions first."""
        word = self.word(category)
        template = self.words["description_template"].format(word)
        fine = (
            [template.replace("DESCRIPTION", text) for text in self.descriptions(category)] if self.fine_grained else []
        )
        normal, abnormal = (
            [state.format(word) for state in self.words[f"{kind}_states"]] for kind in ("normal", "abnormal")
        )
        return normal, [*fine, *abnormal]

    def sentence(self, state: str, position: str | None) -> str:
        """`STATE at POSITION.`, or `STATE.` without a position."""
        if position is None:
            return f"{state}."
        return str(self.words["position_template"]).replace("STATE", state).replace("POSITION", position)

    def detector_words(self, category: str) -> list[str]:
        """General words and the category's own descriptions for the detector's caption, as spelled there."""
        entry = self._list_of(category)
        if entry is None:
            return [*self.words["detector"]["general"], *self._generic(category)]
        described = entry.get("detector_descriptions", entry["descriptions"])
        by_name = {_plain(name): texts for name, texts in described.items()}
        return [*self.words["detector"]["general"], *by_name.get(_plain(category), ())]

    def _list_of(self, category: str) -> Mapping[str, Any] | None:
        name = _plain(category)
        for entry in reversed(self.lists):
            if any(_plain(key) == name for key in entry["descriptions"]):
                return entry
        return None

    def _generic(self, category: str) -> Sequence[str]:
        if not self._noticed and self.options.generic:
            log.warning(
                "no defect descriptions for category '%s': %d generic ones are used, here and wherever the table lacks a"
                " category; 'anomaly-vlm descriptions method=filo' makes better ones",
                category,
                len(self.options.generic),
            )
        self._noticed.add(category)
        return self.options.generic


def _plain(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").split())


def _is_list_of_texts(entry: Any) -> bool:
    return isinstance(entry, Sequence) and not isinstance(entry, str) and all(isinstance(text, str) for text in entry)
