"""FineGrainedAD's texts: captions of a normal image on three levels (MFSC), and abnormal ones made of them by replacement.

Fan et al., arXiv 2510.26464, sections on MFSC and MLLP; published code.
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


class Texts(NamedTuple):
    """What is said of one thing: the normal text, and the abnormal ones."""

    normal: str
    abnormal: list[str]


class CaptionTexts(NamedTuple):
    """All texts of a category: `image`, the groups added to it (`relation` and the attributes that it has), `entities` in
    order, `background`."""

    image: Texts
    groups: dict[str, Texts]
    entities: list[Texts]
    background: Texts


class Captions:
    """A table of captions, as texts by category.

    Args:
        table: `classes` (category -> levels), `vocabulary` (words by field) and `abnormal_states` (category -> states with
            `{}` for the word), as the shipped `mfsc_captions` has them.
        prompts: PromptAD's table, for class words and for the states of a category that has none.
        seed: of the abnormal entities' states and places.

    Raises:
        UserError: the table lacks a part.
    """

    def __init__(self, table: Mapping[str, Any], prompts: Mapping[str, Any], *, seed: int = 111) -> None:
        for part, inside in (("classes", ()), ("vocabulary", (*ATTRIBUTES, "location"))):
            if part not in table or any(name not in table[part] for name in inside):
                raise UserError(
                    f"the table of captions has no {part}{' of ' + ', '.join(inside) if inside else ''}: take"
                    " mfsc_captions.json as the pattern"
                )
        self.table, self.prompts, self.seed = table, prompts, seed
        self._noticed = False

    def levels(self, category: str) -> dict[str, Any]:
        """The table's entry of a category; one from a template where it has none, with one notice."""
        known = self.table["classes"].get(table_key(category))
        if known is not None:
            return known
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
        own = self.table.get("abnormal_states", {}).get(table_key(category))
        return list(own or self.prompts["generic_states"])

    def texts(self, category: str) -> CaptionTexts:
        """Normal and abnormal texts of all levels."""
        levels, states, vocabulary = self.levels(category), self.states(category), self.table["vocabulary"]
        first, second, third = (levels[f"level_{i}"] for i in (1, 2, 3))
        word, caption = first["foreground"], levels["caption"]
        image = Texts(caption, [caption.replace(word, state.format(word)) for state in states])
        groups = {"relation": Texts(second["relation"], [_relation(second, state) for state in states])}
        for name in ATTRIBUTES:
            if own := third[name]:
                groups[name] = Texts(".".join(own), [other for other in vocabulary[name] if other not in own])
        behind = f"{first['background']} background"
        background = Texts(behind, [state.format(behind) for state in states])
        draws = random.Random(self.seed)
        entities = [
            Texts(text, [_abnormal_entity(text, name, place, states, vocabulary["location"], draws)])
            for name, place, text in zip(second["entity"], second["location"], third["entity_caption"], strict=True)
        ]
        return CaptionTexts(
            image, {name: group for name, group in groups.items() if group.abnormal}, entities, background
        )


def _relation(level: Mapping[str, Any], state: str) -> str:
    """The sentence with each entity's name in turn replaced by its abnormal form: a name that occurs twice in the list is
    replaced within what replaced it before, as published."""
    text = level["relation"]
    for name in level["entity"]:
        text = text.replace(name, state.format(name))
    return text


def _abnormal_entity(
    caption: str, name: str, place: str, states: Sequence[str], places: Sequence[str], draws: random.Random
) -> str:
    """A caption with a drawn state behind the entity's name, and its place replaced by another drawn one.

    Both are drawn even where nothing is replaced. The caption is lower-cased, the names are not: those with capitals never
    match.
    """
    caption = caption.lower()
    state = draws.choice(states)
    other = draws.choice([word for word in places if word != place])
    if not name.endswith("s") and f"{name}s" in caption:
        name = f"{name}s"
    caption = caption.replace(name, state.format(name))
    if place == "center":
        caption = caption.replace("centrally", other)
    return caption.replace(place, other)


def template(word: str) -> dict[str, Any]:
    """Levels of a category of which nothing but its word is known."""
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
