"""The names that users write are frozen: options of methods, keys of a run, groups. A change is seen here before it is made.

After a change that is meant: `python -m tests.test_option_names` writes the list anew, and `runs/migrate.py` maps old names.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from pathlib import Path
from typing import Any

import yaml

from anomaly_vlm.methods.base.method import COLLABORATORS
from anomaly_vlm.options import option_names
from anomaly_vlm.runs.groups import GROUPS, choices
from anomaly_vlm.runs.instantiate import method_class
from tests.support.conf import CONF

FILE = Path(__file__).parent / "frozen" / "options.json"


def names() -> dict[str, Any]:
    """Options by method, groups of options spelled out; top-level keys; groups of the configuration."""
    methods = {}
    for name in choices("method"):
        node = yaml.safe_load((CONF / "method" / f"{name}.yaml").read_text(encoding="utf-8")).get("method", {})
        if "_target_" in node:
            methods[name] = sorted(options_of(method_class(node)))
    keys = yaml.safe_load((CONF / "train.yaml").read_text(encoding="utf-8"))
    top = sorted(key for key in keys if key not in ("defaults", "hydra"))
    return {"methods": methods, "keys": top, "groups": sorted(GROUPS)}


def options_of(cls: Any) -> list[str]:
    found = []
    for name in option_names(cls):
        if name in COLLABORATORS:
            continue
        group = next((kind for kind in kinds(cls, name) if dataclasses.is_dataclass(kind)), None)
        fields = [] if group is None else [f"{name}.{field.name}" for field in dataclasses.fields(group)]
        found += fields or [name]
    return found


def kinds(cls: Any, name: str) -> list[Any]:
    """The annotation of an option, and the members of a union."""
    for base in cls.__mro__:
        init = base.__dict__.get("__init__")
        while init is not None and hasattr(init, "__wrapped__"):
            init = init.__wrapped__
        if init is not None and name in getattr(init, "__annotations__", {}):
            hint = typing.get_type_hints(init)[name]
            return [hint, *typing.get_args(hint)]
    return []


def test_names_are_as_frozen() -> None:
    assert names() == json.loads(FILE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    FILE.write_text(json.dumps(names(), indent=1) + "\n", encoding="utf-8")
