"""Paths and names in overrides: whatever stands in one is taken as it is, without Hydra's quoting."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from anomaly_vlm.errors import UserError
from anomaly_vlm.files import expanded
from anomaly_vlm.names import split_list

PATH_KEYS = ("root", "output_dir", "weights", "folder", "shots_list", "answers", "file")  # last parts of keys
TEXT_KEYS = ("categories", "class_words", "defects", "normal")  # likewise, of texts or lists of them
PLAIN = re.compile(r"[A-Za-z_/.][\w/.-]*", re.ASCII)  # read by Hydra as the same text
FUNCTION = re.compile(r"(choice|range|interval|glob|sort|shuffle|tag|cast|extend_list)\(.*\)")
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


def _texts(value: str) -> str:
    """A text, or the texts of a list or of the values of `{key: text}`, in quotes where Hydra would read something else.

    Of several values of a sweep each by itself; functions of a sweep, such as `choice(...)`, stay as they are.
    """
    if FUNCTION.fullmatch(value):
        return value
    if len(several := split_list(value)) > 1 and value[0] in "[{":
        return ",".join(map(_texts, several))
    inside = value[1:-1]
    if value[0] + value[-1] == "[]":
        return f"[{','.join(map(_text, split_list(inside)))}]"
    if value[0] + value[-1] == "{}":
        pairs = (word.partition(":") for word in split_list(inside))
        return f"{{{','.join(f'{key}{colon} {_text(text.strip())}' if colon else key for key, colon, text in pairs)}}}"
    return value if "," in value or value == "null" else _text(value)


def _text(value: str) -> str:
    is_read = not value or value[0] in "'\"[{" or "${" in value
    return value if is_read or (PLAIN.fullmatch(value) and value.lower() not in WORDS) else quoted(value)
