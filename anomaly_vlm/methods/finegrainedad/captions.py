"""FineGrainedAD's texts: captions of a normal image on three levels (MFSC), and abnormal ones made of them by replacement.

Fan et al., arXiv 2510.26464, the sections on MFSC and MLLP; published code.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from anomaly_vlm.errors import UserError
from anomaly_vlm.methods.promptad.prompt_learner import class_phrases
from anomaly_vlm.texts import table_key

log = logging.getLogger("anomaly_vlm")
ATTRIBUTES = ("color", "texture", "shape")


class FamilyTexts(NamedTuple):
    """Texts of one thing: the normal one, and the abnormal ones."""

    normal: str
    abnormal: list[str]


class CaptionTexts(NamedTuple):
    """All texts of a category.

    Attributes:
        image: Of the whole image.
        groups: Added to those of the image: `relation`, and the attributes that the table has.
        entities: Of the entities, in order.
        background: Of the background.
    """

    image: FamilyTexts
    groups: dict[str, FamilyTexts]
    entities: list[FamilyTexts]
    background: FamilyTexts


class Captions:
    """A table of captions, as texts by category.

    Args:
        table: `classes` (category -> levels), `vocabulary` (words by field) and `abnormal_states` (category -> states with
            `{}` for the word), as the shipped `mfsc_captions` has them.
        prompts: PromptAD's table, for class words and for the states of a category that has none.
        seed: Of the draws of the abnormal entities' states and locations.

    Raises:
        UserError: The table lacks an entry.
    """

    def __init__(self, table: Mapping[str, Any], prompts: Mapping[str, Any], *, seed: int = 111) -> None:
        for entry, inside in (("classes", ()), ("vocabulary", (*ATTRIBUTES, "location"))):
            if entry not in table or any(name not in table[entry] for name in inside):
                raise UserError(
                    f"the table of captions has no {entry}{' of ' + ', '.join(inside) if inside else ''}: take"
                    " mfsc_captions.json as the pattern"
                )
        self.table, self.prompts, self.seed = table, prompts, seed
        self._noticed = False

    def levels(self, category: str) -> dict[str, Any]:
        """The table's entry of a category; one from a template where it has none, with one notice."""
        entry: dict[str, Any] | None = self.table["classes"].get(table_key(category))
        if entry is not None:
            return entry
        if not self._noticed:
            self._noticed = True
            log.warning(
                "no captions for category '%s': a template's are used, here and wherever the table lacks a category;"
                " 'anomaly-vlm descriptions method=finegrainedad' makes better ones",
                category,
            )
        return template(class_phrases(self.prompts, category)[0])

    def states(self, category: str) -> list[str]:
        """Abnormal states of a category, with `{}` for the word."""
        states = self.table.get("abnormal_states", {}).get(table_key(category))
        return list(states or self.prompts["generic_states"])

    def texts(self, category: str) -> CaptionTexts:
        """Normal and abnormal texts of all levels."""
        levels, states, vocabulary = self.levels(category), self.states(category), self.table["vocabulary"]
        first, second, third = (levels[f"level_{i}"] for i in (1, 2, 3))
        word, caption = first["foreground"], levels["caption"]
        image = FamilyTexts(caption, [caption.replace(word, state.format(word)) for state in states])
        groups = {"relation": FamilyTexts(second["relation"], [_relation(second, state) for state in states])}
        for name in ATTRIBUTES:
            if words := third[name]:
                groups[name] = FamilyTexts(".".join(words), [other for other in vocabulary[name] if other not in words])
        behind = f"{first['background']} background"
        background = FamilyTexts(behind, [state.format(behind) for state in states])
        draws = random.Random(self.seed)
        entities = [
            FamilyTexts(text, [_abnormal_entity(text, name, location, states, vocabulary["location"], draws)])
            for name, location, text in zip(second["entity"], second["location"], third["entity_caption"], strict=True)
        ]
        return CaptionTexts(
            image, {name: group for name, group in groups.items() if group.abnormal}, entities, background
        )


def _relation(level: Mapping[str, Any], state: str) -> str:
    """The sentence of level 2 with each entity's name replaced by its abnormal form.

    The names are replaced one after the other, as published: one that is twice in the list is replaced within its own
    replacement.
    """
    text: str = level["relation"]
    for name in level["entity"]:
        text = text.replace(name, state.format(name))
    return text


def _abnormal_entity(
    caption: str, name: str, location: str, states: Sequence[str], locations: Sequence[str], draws: random.Random
) -> str:
    """An entity's caption with a drawn state at its name, and its location replaced by another drawn one.

    Both are drawn even where nothing is replaced. The caption is lower-cased and the names are not, so that those with
    capitals never match, as published.
    """
    caption = caption.lower()
    state = draws.choice(states)
    other = draws.choice([word for word in locations if word != location])
    if not name.endswith("s") and f"{name}s" in caption:
        name = f"{name}s"
    caption = caption.replace(name, state.format(name))
    if location == "center":
        caption = caption.replace("centrally", other)
    return caption.replace(location, other)


def template(word: str) -> dict[str, Any]:
    """Levels of a category for which there is a class word alone."""
    return {
        "level_1": {"foreground": word, "background": "none"},
        "level_2": {
            "entity": [word],
            "number": ["one"],
            "location": ["center"],
            "relation": f"one {word} in the center",
        },
        "level_3": {"color": [], "texture": [], "shape": [], "entity_caption": [f"a {word} in the center"]},
        "caption": f"a photo of one {word}",
    }
