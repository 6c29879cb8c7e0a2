"""Texts that methods fill into prompts: tables by category, as JSON files that a user can copy, extend and name instead.

Shipped tables are named without a path (`filo_descriptions`); what has a `/` or ends in `.json` is a file of the user's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anomaly_vlm.errors import UserError, unknown_choice
from anomaly_vlm.files import expanded, read_json

_FOLDER = Path(__file__).parent


def shipped() -> list[str]:
    """The tables that the package brings."""
    return sorted(path.stem for path in _FOLDER.glob("*.json"))


def load_texts(table: str | Mapping[str, Any]) -> dict[str, Any]:
    """A table of texts.

    Args:
        table: Name of a shipped table, path of a JSON file, or the table itself.

    Raises:
        UserError: There is no such table or file, or the file is no JSON object.
    """
    if isinstance(table, Mapping):
        return dict(table)
    if not isinstance(table, str):
        raise UserError(
            f"texts is {table!r}: give the name of a table ({shipped()}), a .json file, or categories with texts"
        )
    is_path = "/" in table or table.endswith(".json")
    path = expanded(table) if is_path else _FOLDER / f"{table}.json"
    if not is_path and not path.is_file():
        raise unknown_choice("table of texts", table, shipped())
    if not path.is_file():
        raise UserError(f"texts file '{table}' does not exist: give an existing .json file, or one of {shipped()}")
    content = read_json(path, what="table of texts")
    if not isinstance(content, dict):
        raise UserError(f"texts file '{table}' holds a {type(content).__name__}: expected an object, category to texts")
    return content


def table_key(category: str) -> str:
    """How tables name a category: `Metal nut` -> `metal_nut`."""
    return category.strip().lower().replace(" ", "_")
