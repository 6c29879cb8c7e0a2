"""Types of configuration values: what each key must hold, whether typed, composed or read from a file."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from anomaly_vlm.errors import UserError

Check = Callable[[Any], bool]


def text(value: Any) -> bool:
    """Text that is not empty."""
    return isinstance(value, str) and value != ""


def group(value: Any) -> bool:
    """Keys with values."""
    return isinstance(value, Mapping)


def node(value: Any) -> bool:
    """Keys with values, one of which names what is built of the others."""
    return isinstance(value, Mapping) and text(value.get("_target_"))


def number(value: Any) -> bool:
    """A finite number above 0."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def counts(value: Any) -> bool:
    """Whole numbers above 0, at least one."""
    return isinstance(value, list) and value != [] and all(type(entry) is int and entry > 0 for entry in value)


def texts(value: Any) -> bool:
    """A list of texts."""
    return isinstance(value, list) and all(text(entry) for entry in value)


def nodes(value: Any) -> bool:
    """A list of nodes."""
    return isinstance(value, list) and all(node(entry) for entry in value)


def flag(value: Any) -> bool:
    """True or false."""
    return isinstance(value, bool)


def some(value: Any) -> bool:
    """Any value but null; its range is checked elsewhere."""
    return value is not None


def entries(value: Any) -> bool:
    """A list."""
    return isinstance(value, list)


def groups_of_choices(value: Any) -> bool:
    """By group what was chosen of it: one name, several, or none."""
    return isinstance(value, Mapping) and all(v is None or text(v) or texts(v) for v in value.values())


EXPECTED: dict[Check, str] = {
    text: "a text",
    group: "keys with values",
    node: "keys with values and a _target_",
    number: "a number above 0",
    counts: "a list of whole numbers above 0",
    texts: "a list of texts",
    nodes: "a list of entries with a _target_ each",
    flag: "true or false",
    some: "a value",
    entries: "a list",
    groups_of_choices: "groups with what was chosen",
}
REQUIRED: dict[str, Check] = {
    "name": text,
    "output_dir": text,
    "method": node,
    "backbone": node,
    "trainer": node,
    **dict.fromkeys(("loss", "logger", "callbacks", "dataset", "as_published", "pixels", "augment", "cache"), group),
    **dict.fromkeys(("metrics", "pictures", "checkpoint"), group),
    "callbacks.extra": nodes,
    "augment.operations": nodes,
    "augment.mosaic": some,
    "cache.folder": text,
    "cache.tokens": text,
    "metrics.aupro_limits": entries,
    "selection_metric": text,
}
OR_NULL: dict[str, Check] = {
    **dict.fromkeys(("optimizer", "scheduler", "detector", "segmenter"), node),
    "shots_list": text,
    "init": text,
    "compare_untrained": flag,
    "gradient_clip": number,
    "augment.mosaic_on": texts,
    "augment.crop": group,
    "epochs_on": group,
    "head_rates": group,
}
OPTIONAL: dict[str, Check] = {  # absent in files of older versions
    "augment.class_aware_grids": counts,
    "cache.pixels": flag,
    "choices": groups_of_choices,
    "trust": texts,
    "sweep_overrides": texts,
}
OPTIONAL_OR_NULL = dict.fromkeys(("dataset.train", "dataset.val", "dataset.test"), node)
ABSENT = object()


def check_types(cfg: DictConfig, *, source: str = "") -> None:
    """Checks that all required keys are present and that every value has the expected type.

    Args:
        cfg: The configuration.
        source: In front of messages, such as the file that it comes from.

    Raises:
        UserError: One line that names the first key that does not.
    """
    content = OmegaConf.to_container(cfg, resolve=True)
    tables = (
        (REQUIRED, True, False),
        (OR_NULL, True, True),
        (OPTIONAL, False, False),
        (OPTIONAL_OR_NULL, False, True),
    )
    for table, needed, null in tables:
        for key, check in table.items():
            value = _at(content, key)
            if value is ABSENT and needed:
                raise UserError(
                    f"{source}the configuration has no '{key}': it was written by a run, or composed, with it"
                )
            if value is ABSENT or (value is None and null) or check(value):
                continue
            raise UserError(f"{source}{key} is {_shown(value)}: give {EXPECTED[check]}{', or null' if null else ''}")


def _at(content: Any, key: str) -> Any:
    """The value of a dotted key; `ABSENT` where it is not there."""
    for part in key.split("."):
        if not isinstance(content, Mapping) or part not in content:
            return ABSENT
        content = content[part]
    return content


def _shown(value: Any) -> str:
    """A value, cut where it is long."""
    whole = repr(value)
    return whole if len(whole) <= 80 else f"{whole[:80]}..."
