"""What a configuration may instantiate, and how a configuration from a file is read.

A checkpoint or a run's folder that a user was sent must not be able to run code. So a `_target_` is looked up only where it
is one that `conf/` ships, a class of a few libraries, or lies in a package that the user trusts: `trust=[mypackage]` on the
command line, or an installed entry point of the group `anomaly_vlm.trusted`. A file never says whom to trust.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from anomaly_vlm.errors import UserError
from anomaly_vlm.runs.groups import conf_dir
from anomaly_vlm.runs.interpolations import is_storable
from anomaly_vlm.runs.migrate import migrated

# Classes that lie directly in these modules. A prefix would not do: Hydra follows attributes (`torch.optim.adam.os.system`).
LIBRARY_CLASS = re.compile(
    r"(torch\.optim|torch\.optim\.lr_scheduler|kornia\.augmentation|lightning\.pytorch|lightning\.pytorch\.callbacks"
    r"|lightning\.pytorch\.loggers|lightning\.pytorch\.profilers)\.[A-Z]\w*"
)
MAX_BYTES = 1_000_000  # of a configuration file; a run's own has about 10,000
MAX_DEPTH = 40


def check_target(target: Any, *, source: str, trusted: Sequence[str] = ()) -> None:
    """Raises a `UserError` where a `_target_` may not be looked up.

    Args:
        target: What the configuration names.
        source: Where it stands, for the message.
        trusted: Packages that the user trusts.
    """
    name = str(target)
    if name in shipped_targets() or LIBRARY_CLASS.fullmatch(name):
        return
    package = name.partition(".")[0]
    if re.fullmatch(r"\w+(\.\w+)+", name) and package in {*trusted, *installed_trust()}:
        return
    raise UserError(
        f"{source} asks to run '{name}', which is no part of this suite: use files that you trust, and name a package of"
        f" your own with trust=[{package if package.isidentifier() else 'PACKAGE'}]"
    )


def check_targets(container: Any, *, source: str, trusted: Sequence[str] = ()) -> None:
    """Checks every `_target_` in nested containers of any kind, see `check_target`."""
    for node in _nodes(container):
        if isinstance(node, Mapping) and "_target_" in node:
            check_target(node["_target_"], source=source, trusted=trusted)


@functools.cache
def shipped_targets() -> frozenset[str]:
    """All `_target_`s in the suite's own configuration files."""
    found = set()
    for path in conf_dir().rglob("*.yaml"):
        for line in path.read_text(encoding="utf-8").splitlines():
            for match in re.finditer(r"_target_: *([\w.]+)", line.split("#")[0]):
                found.add(match[1])
    return frozenset(found)


@functools.cache
def installed_trust() -> frozenset[str]:
    """Packages that declare themselves as parts of this suite by an entry point, which takes an installation."""
    return frozenset(
        point.value.partition(":")[0].partition(".")[0] for point in entry_points(group="anomaly_vlm.trusted")
    )


def foreign_config(content: Any, *, source: str, trusted: Sequence[str] = ()) -> DictConfig:
    """A configuration that came out of a file.

    Args:
        content: Plain containers, as read from the file.
        source: The file, for messages.
        trusted: Packages that the user trusts.

    Raises:
        UserError: It is no mapping of plain values, is nested too deeply, uses an interpolation that can do more than name a
            key, does not resolve, or names a target that is not allowed.
    """
    ready = _plain(content, source, 0)
    if not isinstance(ready, dict):
        raise UserError(f"{source} holds no configuration of a run: give a file that 'train' wrote")
    ready["trust"] = list(trusted)
    try:
        config = DictConfig(ready)
        resolved = OmegaConf.to_container(config, resolve=True)
    except (OmegaConfBaseException, RecursionError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{source} holds a configuration that does not resolve ({reason}): use another file") from error
    check_targets(resolved, source=source, trusted=trusted)
    return config


def read_config(path: Path, *, trusted: Sequence[str] = ()) -> DictConfig:
    """The configuration file of a run's folder, of any version of the suite, under today's names.

    Raises:
        UserError: It cannot be read, is no YAML of a configuration, or see `foreign_config`.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise UserError(f"'{path}' cannot be read ({error.strerror or error}): give a run's folder") from error
    if len(text) > MAX_BYTES:
        raise UserError(f"'{path}' has {len(text):,} bytes: no run writes a configuration of more than {MAX_BYTES:,}")
    try:
        _check_events(text, path)
        content = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"'{path}' is no YAML ({reason}): use another file") from error
    return foreign_config(migrated(content), source=f"'{path}'", trusted=trusted)


def _check_events(text: bytes, path: Path) -> None:
    """Raises a `UserError` for what takes a YAML reader for ever: aliases that multiply, and deep nests."""
    depth = 0
    for event in yaml.parse(text):
        if isinstance(event, yaml.AliasEvent):
            raise UserError(f"'{path}' uses YAML aliases, which no run writes: use another file")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise UserError(f"'{path}' nests its configuration more than {MAX_DEPTH} deep: use another file")


def _plain(value: Any, source: str, depth: int) -> Any:
    """Nested containers as dicts and lists of plain values, their interpolations checked."""
    if depth > MAX_DEPTH:
        raise UserError(f"{source} nests its configuration more than {MAX_DEPTH} deep: use another file")
    if isinstance(value, Mapping):
        if wrong := [key for key in value if not isinstance(key, str | int | float | bool)]:
            raise UserError(f"{source} has a key {wrong[0]!r} in its configuration: use another file")
        return {key: _plain(entry, source, depth + 1) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(entry, source, depth + 1) for entry in value]
    if isinstance(value, str):
        if not is_storable(value):
            raise UserError(f"{source} has '{value[:80]}' in its configuration: only names of keys are read there")
        return value
    if value is None or isinstance(value, int | float | bool):
        return value
    raise UserError(f"{source} has a {type(value).__name__} in its configuration: use another file")


def _nodes(container: Any) -> Iterator[Any]:
    """All nested containers, the outermost first."""
    if isinstance(container, Mapping):
        yield container
        for entry in container.values():
            yield from _nodes(entry)
    elif isinstance(container, list | tuple | set | frozenset):
        for entry in container:
            yield from _nodes(entry)
