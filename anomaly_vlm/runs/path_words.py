"""Paths in overrides: whatever a file system allows in a name is taken as it stands, without Hydra's quoting."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from anomaly_vlm.files import expanded

PATH_KEYS = ("root", "output_dir", "weights", "folder", "shots_list", "answers", "file")  # last parts of keys
PLAIN = re.compile(r"[A-Za-z_/.][\w/.-]*", re.ASCII)  # read by Hydra as the same text
WORDS = ("null", "true", "false", "yes", "no", "on", "off", "nan", "inf")  # read by Hydra as values


def literal_paths(overrides: Sequence[str]) -> list[str]:
    """Overrides with their paths in quotes, where Hydra's grammar would read them as something else.

    The value of a key for paths is quoted, and that of any key where it is the name of an existing file or folder. Values
    that are quoted already, interpolations, and lists of several values for a sweep stay as they are.

    Args:
        overrides: Words as on the command line, `key=value`.
    """
    return [_literal(word) for word in overrides]


def _literal(word: str) -> str:
    key, _, value = word.partition("=")
    if not value or (PLAIN.fullmatch(value) and value.lower() not in WORDS):
        return word
    if value[0] in "'\"" or "${" in value:
        return word
    of_path = key.rpartition(".")[2] in PATH_KEYS and value.lower() not in WORDS
    several = "," in value and not _exists(str(Path(value).parent))  # values of a sweep
    return f"{key}={quoted(value)}" if (of_path and not several) or _exists(value) else word


def _exists(value: str) -> bool:
    try:
        return value != "." and expanded(value).exists()
    except (OSError, ValueError):  # too long for a name, or with a null character
        return False


def quoted(value: str) -> str:
    """A text in Hydra's quotes: quotes in it, and the backslashes before them, are escaped."""
    escaped = re.sub(r"(\\*)'", lambda found: found[1] * 2 + r"\'", value)
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    return "'" + escaped + "\\" * trailing + "'"
