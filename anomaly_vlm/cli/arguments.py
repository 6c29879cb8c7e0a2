"""What the commands share: reading their arguments."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from anomaly_vlm.errors import UserError

MULTIRUN = ("-m", "--multirun")  # Hydra's words for a sweep
CONFIG_DIR = ("-cd", "--config-dir")
# Hydra answers these, and nothing runs.
QUESTIONS = ("-c", "--cfg", "-i", "--info", "--hydra-help", "-sc", "--shell-completion")


def pop_key(arguments: Sequence[str], key: str) -> tuple[str | None, list[str]]:
    """The value of the last `key=value`, and the other arguments."""
    value, rest = None, []
    for word in arguments:
        if word.startswith(f"{key}="):
            value = word.partition("=")[2] or None
        else:
            rest.append(word)
    return value, rest


def values_of(command: str, arguments: Sequence[str], keys: Sequence[str]) -> dict[str, str | None]:
    """The value of each key, for a command that takes no other words; None where a key is not given.

    Raises:
        UserError: A word that is none of the keys.
    """
    values: dict[str, str | None] = {}
    rest = list(arguments)
    for key in keys:
        values[key], rest = pop_key(rest, key)
    if rest:
        raise UserError(f"'{rest[0]}' is no key of {command}: give {', '.join(f'{key}=' for key in keys)}")
    return values


def trusted_in(values: Mapping[str, str | None]) -> list[str]:
    """The packages that `trust=[...]` among these values names."""
    from anomaly_vlm.runs.configs import trusted_packages

    return [] if values["trust"] is None else trusted_packages([f"trust={values['trust']}"])


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
    from anomaly_vlm.runs.groups import describe_choices

    sys.stdout.write(f"{describe_choices(hydra_words(arguments))}\n")
    return True


def answered_by_hydra(arguments: Sequence[str]) -> bool:
    """Whether Hydra is asked about a configuration (`--cfg job --resolve`, `--info defaults`); it then answers."""
    if not any(word.partition("=")[0] in QUESTIONS for word in arguments):
        return False
    from anomaly_vlm.runs.compose import ask_hydra

    ask_hydra(hydra_words(arguments))
    return True


def hydra_words(arguments: Sequence[str]) -> list[str]:
    """The arguments as overrides that a run can store.

    `--multirun` is left out, `--config-dir FOLDER` becomes the override that it stands for, and values of environment
    variables take the place of `${oc.env:NAME}`.

    Raises:
        UserError: The folder or the variable is not there, or see `runs.interpolations.typed_values`.
    """
    from anomaly_vlm.runs.interpolations import typed_values

    words, rest = [], [word for word in arguments if word not in MULTIRUN]
    while rest:
        name, equals, value = (word := rest.pop(0)).partition("=")
        if name not in CONFIG_DIR:
            words.append(word)
            continue
        folder = Path(value if equals else rest.pop(0) if rest else "")
        if not folder.is_dir():
            raise UserError(
                f"{name} {folder}: no such folder: give one with configurations, in sub-folders named as in conf/"
            )
        words.append(f"hydra.searchpath=['file://{folder.resolve()}']")
    return typed_values(words)
