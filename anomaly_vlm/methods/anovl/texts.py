"""AnoVL's sentences: templates of the domain (objects, or textures) with states of the category (section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anomaly_vlm.errors import UserError, unknown_choice
from anomaly_vlm.texts import table_key

TEXTURES = ("carpet", "leather", "grid", "tile", "wood")  # MVTec AD's
TABLE = ("normal_states", "anomalous_states", "templates", "object_templates", "texture_templates")


def checked_table(table: Mapping[str, Any]) -> Mapping[str, Any]:
    """A table of texts, or a `UserError` where it lacks an entry or names templates that it does not have."""
    if missing := [name for name in TABLE if not table.get(name)]:
        raise UserError(f"table of texts has no '{missing[0]}': give a table in the form of anovl_prompts.json")
    for domain in ("object_templates", "texture_templates"):
        if unknown := [name for name in table[domain] if name not in table["templates"]]:
            raise unknown_choice(f"list of templates in {domain}", str(unknown[0]), table["templates"])
    return table


def sentences(table: Mapping[str, Any], category: str, *, texture: bool) -> list[list[str]]:
    """All normal and all anomalous sentences on a category; the templates are the outer loop.

    Args:
        table: States and templates.
        category: Name of the category.
        texture: Whether it has the templates on textures and surfaces.
    """
    word = table.get("rename", {}).get(table_key(category), category)
    lists = table["texture_templates" if texture else "object_templates"]
    templates = [template for name in lists for template in table["templates"][name]]
    sides = (table["normal_states"], table["anomalous_states"])
    return [[template.format(state.format(word)) for template in templates for state in states] for states in sides]
