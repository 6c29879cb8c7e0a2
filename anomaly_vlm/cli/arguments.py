"""What the commands share: reading their arguments."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def pop_key(arguments: Sequence[str], key: str) -> tuple[str | None, list[str]]:
    """The value of the last `key=value`, and the other arguments."""
    value, rest = None, []
    for word in arguments:
        if word.startswith(f"{key}="):
            value = word.partition("=")[2] or None
        else:
            rest.append(word)
    return value, rest


def asks_for_help(arguments: Sequence[str], text: str) -> bool:
    """Whether `-h` or `--help` is among the arguments; the text is then shown."""
    if any(word in ("-h", "--help") for word in arguments):
        sys.stdout.write(text)
        return True
    return False


def help_with_choices(arguments: Sequence[str], text: str) -> bool:
    """As `asks_for_help`, with the groups and keys of the configuration below the text."""
    if not asks_for_help(arguments, f"{text}\n"):
        return False
    from anomaly_vlm.runs.compose import describe_choices

    sys.stdout.write(f"{describe_choices()}\n")
    return True
