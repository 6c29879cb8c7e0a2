"""Sentences changed on purpose, for asking whether a method needs what its texts say."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Literal

from anomaly_vlm.errors import UserError, unknown_choice

Rewriting = Literal["as_written", "nameless", "swapped", "random"]
MODES: tuple[Rewriting, ...] = ("as_written", "nameless", "swapped", "random")
WORD = re.compile(r"[A-Za-z][A-Za-z'-]*")
PLACEHOLDER = "X"  # stands for a learned vector in the sentences of several methods
NAMELESS = "object"
OPPOSITES = (  # of states, in the tables that the suite ships
    ("with", "without"),
    ("normal", "abnormal"),
    ("perfect", "imperfect"),
    ("flawless", "flawed"),
    ("unblemished", "blemished"),
    ("undamaged", "damaged"),
    ("unbroken", "broken"),
    ("intact", "defective"),
)
SWAPPED = {one: other for pair in OPPOSITES for one, other in (pair, pair[::-1])}


def rewriter(mode: Rewriting, names: Sequence[str] | None = None) -> Callable[[str], str] | None:
    """The change that a mode makes to every sentence before it is tokenised; None for none.

    Args:
        mode: `as_written`; `nameless`: the class word is `object`; `swapped`: words of damage become words of soundness and
            the other way round; `random`: every word becomes another one of CLIP's vocabulary, always the same one.
        names: Class words, for `nameless`. Words that a method's table gives in their place stay.

    Raises:
        UserError: An unknown mode, or `nameless` without names.
    """
    if mode not in MODES:
        raise unknown_choice("texts", mode, MODES)
    if mode == "as_written":
        return None
    if mode == "swapped":
        return functools.partial(WORD.sub, lambda found: SWAPPED.get(found[0].lower(), found[0]))
    if mode == "random":
        return functools.partial(WORD.sub, lambda found: found[0] if found[0] == PLACEHOLDER else random_word(found[0]))
    if not names:
        raise UserError("texts=nameless needs the names of the categories: evaluate on a data set")
    words = sorted({name.replace("_", " ") for name in names} | set(names), key=len, reverse=True)
    name = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, words))})(?!\w)", re.IGNORECASE)
    return functools.partial(name.sub, NAMELESS)


@functools.cache
def random_word(word: str) -> str:
    """A word of CLIP's vocabulary that depends on this word alone."""
    words = _vocabulary()
    digest = hashlib.blake2b(word.lower().encode(), digest_size=8).digest()
    return words[int.from_bytes(digest, "big") % len(words)]


@functools.cache
def _vocabulary() -> list[str]:
    """All words of four letters and more that are one token."""
    from open_clip.tokenizer import SimpleTokenizer

    entries = (entry.removesuffix("</w>") for entry in SimpleTokenizer().encoder if entry.endswith("</w>"))
    return sorted(word for word in entries if len(word) > 3 and word.isascii() and word.isalpha())
