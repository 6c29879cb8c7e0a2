"""Configurations of older checkpoints under today's names.

A checkpoint carries the configuration of its run. Where an option has been renamed since, or one of its values, the tables
here say how; nothing else accepts the old names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TEXTS: dict[str, str | None] = {"texts.table": "texts", "texts._target_": None}  # a table is given by its name
# method name -> {old dotted key below `method` -> new one}; None where the option is gone
METHOD_KEYS: dict[str, dict[str, str | None]] = {
    "april_gan": TEXTS,
    "winclip": TEXTS,
    "promptad": {"official_category": "published_category"},
    "finegrainedad": {"official_category": "published_category"},
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
# old last part of a dotted key below `dataset`, on whichever side or in whichever member of a union -> new one
DATASET_KEYS = {"official_categories": "published_categories"}
# beginning of an old `_target_` -> new one
TARGETS = {
    "anomaly_vlm.data.procedural_road.": "anomaly_vlm.data.drawn.roads.",
    "anomaly_vlm.data.procedural.": "anomaly_vlm.data.drawn.products.",
}
# keys that came later, with the value that says what older versions did
ADDED: dict[str, Any] = dict.fromkeys(("gradient_clip", "epochs_on", "head_rates", "detector", "segmenter"))


def migrated(config: Any) -> Any:
    """A stored configuration, as plain containers, under today's names.

    Args:
        config: As a checkpoint holds it, of any version of the suite. It is not changed. What is no mapping is handed
            back as it is, for `runs.trust.foreign_config` to tell.
    """
    if not isinstance(config, Mapping):
        return config
    flat = _flat(config)
    name = str(config.get("name", ""))
    keys = {**TOP_KEYS, **{f"method.{old}": new and f"method.{new}" for old, new in METHOD_KEYS.get(name, {}).items()}}
    moved: dict[str, Any] = {}
    for key, value in flat.items():
        new = _renamed(_renamed_of_dataset(key), keys)
        if new is not None:
            moved[new] = value
    for key, values in METHOD_VALUES.get(name, {}).items():
        full = f"method.{key}"
        if full in moved and _hashable(moved[full]) and moved[full] in values:
            moved[full] = values[moved[full]]
    for key, value in moved.items():
        if isinstance(value, str) and "${oc.env:" in value:
            moved[key] = "auto"  # a folder of this machine, not of the one that wrote the file
        if key.rpartition(".")[2] == "_target_" and isinstance(value, str):
            moved[key] = _moved_target(value)
    return {**ADDED, **_nested(moved)}


def _moved_target(target: str) -> str:
    """The name of a target today."""
    for old, new in TARGETS.items():
        if target.startswith(old):
            return new + target.removeprefix(old)
    return target


def _renamed_of_dataset(key: str) -> str:
    """The new name of a dotted key whose last part is an option of a data source."""
    parent, _, last = key.rpartition(".")
    return f"{parent}.{DATASET_KEYS[last]}" if key.startswith("dataset.") and last in DATASET_KEYS else key


def _renamed(key: str, keys: Mapping[str, str | None]) -> str | None:
    """The new name of a dotted key; whole branches move with their parent. None: gone."""
    names = key.split(".")
    for end in range(len(names), 0, -1):
        parent = ".".join(names[:end])
        if parent in keys:
            new = keys[parent]
            return None if new is None else ".".join([new, *names[end:]])
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
