"""Paths and names in overrides: whatever stands in one is taken as it is, without Hydra's quoting."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from anomaly_vlm.errors import UserError
from anomaly_vlm.files import expanded

PATH_KEYS = ("root", "output_dir", "weights", "folder", "shots_list", "answers", "file")  # last parts of keys
TEXT_KEYS = ("categories", "class_words", "defects", "normal")  # likewise, of texts or lists of them
PLAIN = re.compile(r"[A-Za-z_/.][\w/.-]*", re.ASCII)  # read by Hydra as the same text
WORDS = ("null", "true", "false", "yes", "no", "on", "off", "nan", "inf")  # read by Hydra as values


def literal_paths(overrides: Sequence[str], *, sweep: bool = False) -> list[str]:
    """Overrides with their paths in quotes, where Hydra's grammar would read them as something else.

    The value of a key for paths is quoted, and that of any key where it is the name of an existing file or folder; so are
    the elements of `TEXT_KEYS`. Values that are quoted already, interpolations, and lists of several values for a sweep stay
    as they are.

    Args:
        overrides: Words as on the command line, `key=value`.
        sweep: Whether a comma may stand between several values of a key.

    Raises:
        UserError: A path that exists has a name that reads as an interpolation.
    """
    return [_literal(word, sweep) for word in overrides]


def _literal(word: str, sweep: bool) -> str:
    key, _, value = word.partition("=")
    if not value or (PLAIN.fullmatch(value) and value.lower() not in WORDS):
        return word
    if value[0] in "'\"":
        return word
    if key.rpartition(".")[2] in TEXT_KEYS and not is_place(value):
        return f"{key}={_texts(value)}"
    if "${" in value:
        if any("${" in str(place) and is_place(str(place)) for place in (Path(value), *Path(value).parents)):
            raise UserError(
                f"{word}: a configuration reads ${{...}} in a path as the name of a key: rename the folder, or give a link"
                " to it of another name"
            )
        return word
    of_path = key.rpartition(".")[2] in PATH_KEYS and value.lower() not in WORDS
    several = sweep and "," in value and not is_place(str(Path(value).parent))  # values of a sweep
    return f"{key}={quoted(value)}" if (of_path and not several) or is_place(value) else word


def is_place(value: str) -> bool:
    """Whether a text is the name of an existing file or folder, other than `.`."""
    try:
        return value != "." and expanded(value).exists()
    except (OSError, ValueError):  # too long for a name, or with a null character
        return False


def quoted(value: str) -> str:
    """A text in Hydra's quotes: quotes in it, and the backslashes before them, are escaped."""
    escaped = re.sub(r"(\\*)'", lambda found: found[1] * 2 + r"\'", value)
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    return "'" + escaped + "\\" * trailing + "'"


def elements(text: str) -> list[str]:
    """The elements of a list, at the commas outside quotes and brackets; each without the quotes around it."""
    return [word[1:-1] if word[:1] in ("'", '"') and word[-1:] == word[:1] else word for word in _split(text)]


def _split(text: str) -> list[str]:
    found, depth, quote = [""], 0, ""
    for character in text:
        if character in "'\"" and (quote == character or (not quote and (found[-1].strip() or ",")[-1] in ",:[{(")):
            quote = "" if quote else character  # a quote inside a word is part of it
        depth += 0 if quote else (character in "[{(") - (character in "]})")
        if character == "," and not quote and depth <= 0:
            found.append("")
        else:
            found[-1] += character
    return [word.strip() for word in found]


def _texts(value: str) -> str:
    """A text, or the texts of a list or of the values of `{key: text}`, in quotes where Hydra would read something else."""
    inside = value[1:-1]
    if value[0] + value[-1] == "[]":
        return f"[{','.join(map(_text, _split(inside)))}]"
    if value[0] + value[-1] == "{}":
        pairs = (word.partition(":") for word in _split(inside))
        return f"{{{','.join(f'{key}{colon} {_text(text.strip())}' if colon else key for key, colon, text in pairs)}}}"
    return value if "," in value or value == "null" else _text(value)


def _text(value: str) -> str:
    is_read = not value or value[0] in "'\"[{" or "${" in value
    return value if is_read or (PLAIN.fullmatch(value) and value.lower() not in WORDS) else quoted(value)
