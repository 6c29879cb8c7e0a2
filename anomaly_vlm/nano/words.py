"""Words of the nano CLIP: labelled captions for training, and the token rows that its file stores."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from open_clip.tokenizer import SimpleTokenizer

from anomaly_vlm.data.drawn.products.captions import DAMAGED, DAMAGED_TAILS, GENERIC, NORMAL, NORMAL_TAILS
from anomaly_vlm.data.drawn.products.defects.catalogue import KINDS
from anomaly_vlm.data.drawn.products.families import FAMILIES
from anomaly_vlm.nano.teacher import classes

COMMON_MERGES = 6000  # CLIP's tokens are numbered by frequency: the first merges are the commonest words
FALLBACK = "thing"  # every token without a row of its own reads as this one

NOUNS = tuple(sorted(name for name, family in FAMILIES.items() if family.side == "train"))  # the classes of a noun ..
GENERIC_NOUN = len(NOUNS)  # .. and the class of all others
STATES = ("good", "damaged", *KINDS)  # of a caption: flawless, damaged in general, or by one kind of defect

_NORMAL = (*NORMAL, "clean", "undamaged", "faultless")
_NORMAL_TAILS = (*NORMAL_TAILS, "without anomalies", "without blemish", "with no defects")
_DAMAGED = (*DAMAGED, "abnormal", "anomalous", "imperfect", "broken")
_DAMAGED_TAILS = (*DAMAGED_TAILS, "with an anomaly", "with defects", "with something wrong")
_TEMPLATES = (
    "{}", "{}.", "a photo of {}.", "a photo of {}", "a photo of the {}.", "this is {}.", "a close-up photo of {}.",
    "a cropped photo of {}.", "a blurry photo of {}.", "a bright photo of {}.", "a dark photo of {}.", "an image of {}.",
    "a picture of {} for visual inspection.", "a low resolution photo of {}.", "a black and white photo of {}.",
    "a jpeg corrupted photo of {}.", "there is {} in the scene.", "a photo of one {}.", "a photo of my {}.",
    "{} for anomaly detection.", "{} in the center.", "a good photo of {}.", "a bad photo of {}.",
)  # fmt: skip


# What a caption of a picture may add, in words: its main colour, what is around an object, and where its damage is.
COLOURS: dict[str, tuple[float, float, float]] = {
    "black": (0.07, 0.07, 0.07), "grey": (0.5, 0.5, 0.5), "white": (0.93, 0.93, 0.93), "red": (0.75, 0.15, 0.15),
    "orange": (0.9, 0.5, 0.15), "brown": (0.45, 0.3, 0.18), "beige": (0.82, 0.72, 0.55), "yellow": (0.9, 0.85, 0.2),
    "green": (0.2, 0.6, 0.25), "blue": (0.2, 0.35, 0.75), "purple": (0.5, 0.25, 0.6), "pink": (0.9, 0.55, 0.65),
}  # fmt: skip
PLACES = (
    "in the upper left corner", "at the top", "in the upper right corner",
    "on the left", "in the middle", "on the right",
    "in the lower left corner", "at the bottom", "in the lower right corner",
)  # fmt: skip
_SURROUNDINGS = ("on a {} background", "on {} ground", "in front of {}")


@dataclass(frozen=True)
class Caption:
    """A sentence and what it says. noun: index into `NOUNS`, or `GENERIC_NOUN`. state: index into `STATES`."""

    text: str
    noun: int
    state: int


@cache
def prompt_words() -> tuple[str, ...]:
    """Words of the methods' prompt lists and of the data sets' categories, sorted."""
    return tuple((Path(__file__).parent / "words.txt").read_text().split())


@cache
def _foreign() -> tuple[str, ...]:
    """Words that name no family of the training side: nouns of unknown things."""
    known = {word for name in NOUNS for noun in FAMILIES[name].nouns for word in noun.split()}
    said = " ".join([*_NORMAL, *_NORMAL_TAILS, *_DAMAGED, *_DAMAGED_TAILS, *_TEMPLATES])
    said += " " + " ".join(COLOURS)
    said += " " + " ".join(word for kind in KINDS.values() for word in (*kind.words, *kind.states))
    known |= set(re.findall("[a-z]+", said))
    held_out = {
        word for family in FAMILIES.values() if family.side == "test" for noun in family.nouns for word in noun.split()
    }
    return tuple(word for word in prompt_words() if len(word) > 2 and word not in known and word not in held_out)


def draw_caption(
    rng: np.random.Generator,
    noun: int,
    state: int | None,
    *,
    colour: str | None = None,
    around: str | None = None,
    place: int | None = None,
) -> str:
    """Draws a sentence on a picture.

    Args:
        rng: Draws the words.
        noun: Class of what the picture shows.
        state: Flawless or a kind of damage; None where the sentence does not tell it.
        colour: Word for the picture's colour; None where the sentence does not tell it.
        around: Word for the background's colour; None where the sentence does not tell it.
        place: Index into `PLACES`, where the damage is; None where the sentence does not tell it.
    """
    if noun == GENERIC_NOUN:
        word = _pick(rng, GENERIC["object"] + GENERIC["texture"]) if rng.random() < 0.5 else _nonsense(rng)
    else:
        word = _pick(rng, FAMILIES[NOUNS[noun]].nouns)
    if colour is not None:
        word = f"{colour} {word}"
    name = None if state is None else STATES[state]
    if name is None:
        words = word
    elif name == "good":
        words = _with_state(rng, word, _NORMAL, _NORMAL_TAILS)
    elif name == "damaged":
        words = _with_state(rng, word, _DAMAGED, _DAMAGED_TAILS)
    else:
        kind = KINDS[name]
        words = _with_state(rng, word, kind.states, tuple(f"with {phrase}" for phrase in kind.words))
    if place is not None:
        words = f"{words} {PLACES[place]}"
    if around is not None:
        words = f"{words} {_pick(rng, _SURROUNDINGS).format(around)}"
    article = "" if rng.random() < 0.4 else ("an " if words[0] in "aeiou" else "a ")
    return _pick(rng, _TEMPLATES).format(article + words)


def class_caption(rng: np.random.Generator, name: str) -> str:
    """A sentence on a picture of one of the teacher's classes."""
    return _pick(rng, _TEMPLATES).format(name if rng.random() < 0.4 else f"a {name}")


def random_caption(rng: np.random.Generator) -> Caption:
    """A sentence with labels: nouns evenly, one in five generic; half of them flawless."""
    noun = GENERIC_NOUN if rng.random() < 0.2 else int(rng.integers(len(NOUNS)))
    state = 0 if rng.random() < 0.5 else 1 if rng.random() < 0.4 else int(rng.integers(2, len(STATES)))
    return Caption(draw_caption(rng, noun, state), noun, state)


def _nonsense(rng: np.random.Generator) -> str:
    return " ".join(_pick(rng, _foreign()) for _ in range(1 + (rng.random() < 0.3)))


def _with_state(rng: np.random.Generator, word: str, states: tuple[str, ...], tails: tuple[str, ...]) -> str:
    return f"{_pick(rng, states)} {word}" if rng.random() < 0.5 else f"{word} {_pick(rng, tails)}"


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def token_rows() -> np.ndarray:
    """Ids of the tokens that the file stores, ascending.

    These are single characters, the commonest words, the words of all captions, prompt lists and the teacher's classes, and
    the two marks.
    """
    tokenizer = SimpleTokenizer()
    ids = set(range(512 + COMMON_MERGES)) | {tokenizer.sot_token_id, tokenizer.eot_token_id}
    texts = [*prompt_words(), FALLBACK, *_NORMAL, *_NORMAL_TAILS, *_DAMAGED, *_DAMAGED_TAILS]
    texts += [template.replace("{}", " ") for template in _TEMPLATES]
    texts += [noun for family in FAMILIES.values() for noun in family.nouns]
    texts += [phrase for kind in KINDS.values() for phrase in (*kind.words, *kind.states)]
    texts += [*COLOURS, *PLACES, *classes(), *(phrase.replace("{}", " ") for phrase in _SURROUNDINGS)]
    for text in texts:
        ids.update(tokenizer.encode(text))
    return np.array(sorted(ids), np.int64)
