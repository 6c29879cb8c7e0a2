"""Interpolations: which ones a stored configuration may hold, and the others replaced by their values.

A configuration that is read from a file computes nothing: it may name keys, no environment variables. So what a user's words
or YAMLs compute is computed once, when the command begins; the run's files hold the value, and a resumed run or a job of a
sweep has the same one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from anomaly_vlm.errors import UserError

# Interpolations that a file may use: a key, `oc.select` of a key with a plain default, the time.
STORED = re.compile(r"\$\{(?:\.*[\w.@/]+|oc\.select:[\w.@/]+(?:,[\w.\-]*)?|now:[%\w\-: ]+)\}")
ENVIRONMENT = re.compile(r"\$\{oc\.env:\s*(\w+)\s*(?:,([^${}]*))?\}")


def is_storable(text: str) -> bool:
    """Whether every interpolation in a text is one that a file may use."""
    before = ""
    while before != text:  # the innermost first; a key's name is left in the place of each
        before, text = text, STORED.sub("key", text)
    return "${" not in text


def typed_values(words: Sequence[str]) -> list[str]:
    """Overrides with the values of environment variables in the place of `${oc.env:NAME}` and `${oc.env:NAME,DEFAULT}`.

    Args:
        words: As on the command line. Those of `hydra.` are left to Hydra, as no run stores them.

    Raises:
        UserError: A variable that is not set and has no default, or another interpolation that computes a value.
    """
    return [word if word.startswith("hydra.") else _typed_value(word) for word in words]


def _typed_value(word: str) -> str:
    def value(found: re.Match[str]) -> str:
        name, default = found[1], found[2]
        if name not in os.environ and default is None:
            raise UserError(
                f"'{word}': there is no environment variable {name}: set it, or give a default, ${{oc.env:{name},VALUE}}"
            )
        return os.environ.get(name, (default or "").strip())

    before, text = "", word
    while before != text:
        before, text = text, ENVIRONMENT.sub(value, text, count=1)
    if re.search(r"\$\{[\w.]+:", text) and not is_storable(text):
        raise UserError(
            f"'{word}' computes a value: give the value itself; only keys, ${{oc.env:NAME}}, ${{oc.select:KEY,DEFAULT}} and"
            " ${now:...} are read"
        )
    return text


def resolve_computed(cfg: DictConfig) -> None:
    """Replaces interpolations that a file may not use, such as `oc.env` in a YAML of the user's own, by their values."""
    with open_dict(cfg):
        for path in list(_computed(OmegaConf.to_container(cfg, resolve=False))):
            *parents, last = path
            node: Any = cfg
            for key in parents:
                node = node[key]
            node[last] = node[last]


def _computed(container: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where texts that are not storable stand in nested containers, as tuples of keys."""
    if isinstance(container, str):
        if not is_storable(container):
            yield path
    elif isinstance(container, dict | list):
        for key, entry in container.items() if isinstance(container, dict) else enumerate(container):
            yield from _computed(entry, (*path, key))
