"""Configurations of older checkpoints under today's names.

A checkpoint carries the configuration of its run. Where an option has been renamed since, or one of its values, the tables
here say how; nothing else accepts the old names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# method name -> {old dotted key below `method` -> new one}; None where the option is gone
TEXTS: dict[str, str | None] = {"texts.table": "texts", "texts._target_": None}  # a table is given by its name
METHOD_KEYS: dict[str, dict[str, str | None]] = {
    "april_gan": TEXTS,
    "winclip": TEXTS,
}
# method name -> {new dotted key below `method` -> {old value -> new one}}
METHOD_VALUES: dict[str, dict[str, dict[Any, Any]]] = {
    "adaclip": {
        "prompts.text_mode": {"overwrite": "published", "insert": "paper"},
        "hsf.mode": {"code": "published"},
        "score_without_hsf": {"cls": "published", "map_max": "paper"},
        "projection": {None: "linear"},
    },
    "anomalyclip": {"layers": {None: "last"}},
    "faprompt": {
        "layers": {None: "last"},
        "select": {"first": "published", "topk": "paper"},
        "score": {"code": "published"},
    },
    "winclip": {"variant": {"anomalib": "paper", "cao": "published"}},
}
# old dotted key at the top of a configuration -> new one
TOP_KEYS: dict[str, str | None] = {"backbone.aligned_patches": None}
# old class or function under a key `_target_` -> new one
TARGETS: dict[str, str] = {
    "anomaly_vlm.data.procedural.ProceduralSource": "anomaly_vlm.data.drawn.products.ProceduralSource",
    "anomaly_vlm.data.procedural_road.ProceduralRoadSource": "anomaly_vlm.data.drawn.roads.ProceduralRoadSource",
}


def migrated(config: Mapping[str, Any]) -> dict[str, Any]:
    """A stored configuration, as plain containers, under today's names.

    Args:
        config: As a checkpoint holds it, of any version of the suite. It is not changed.
    """
    flat = _flat(config)
    name = str(config.get("name", ""))
    keys = {**TOP_KEYS, **{f"method.{old}": new and f"method.{new}" for old, new in METHOD_KEYS.get(name, {}).items()}}
    moved: dict[str, Any] = {}
    for key, value in flat.items():
        new = _renamed(key, keys)
        if new is not None:
            moved[new] = TARGETS.get(value, value) if new.endswith("._target_") else value
    for key, values in METHOD_VALUES.get(name, {}).items():
        full = f"method.{key}"
        if full in moved and _hashable(moved[full]) and moved[full] in values:
            moved[full] = values[moved[full]]
    return _nested(moved)


def _renamed(key: str, keys: Mapping[str, str | None]) -> str | None:
    """The new name of a dotted key; whole branches move with their parent. None: gone."""
    parts = key.split(".")
    for end in range(len(parts), 0, -1):
        parent = ".".join(parts[:end])
        if parent in keys:
            new = keys[parent]
            return None if new is None else ".".join([new, *parts[end:]])
    return key


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves by dotted key; lists and empty mappings are leaves."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value and all(isinstance(k, str) and "." not in k for k in value):
            found.update(_flat(value, f"{prefix}{key}."))
        else:
            found[f"{prefix}{key}"] = value
    return found


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    config: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, last = key.split(".")
        node = config
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return config


def _hashable(value: Any) -> bool:
    return isinstance(value, str | int | float | bool | None)
