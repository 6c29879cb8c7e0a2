"""Errors that a user can mend: one line that says what was found, what was expected and how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Wrong input. The command line prints the message as its only line on standard error and exits with status 2."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def unknown_choice(kind: str, name: str, choices: Iterable[str]) -> UserError:
    """`unknown method 'adaclp': choose one of adaclip, faprompt (did you mean adaclip?)`, nearest choices first."""
    names = sorted(choices)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    ordered = near + [choice for choice in names if choice not in near]
    hint = f" (did you mean {near[0]}?)" if near else ""
    return UserError(f"unknown {kind} '{name}': choose one of {', '.join(ordered)}{hint}")
