"""Configurations of the user's own beside those of the suite, as Hydra's search path or an installed package names them."""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path

from anomaly_vlm.errors import UserError

KEY = "hydra.searchpath="


def search_path(overrides: Sequence[str]) -> list[str]:
    """The places that overrides name (`file://FOLDER`, `pkg://PACKAGE`), and behind them those of installed packages."""
    named = [place for word in overrides if word.lstrip("+").startswith(KEY) for place in _places(word)]
    return list(dict.fromkeys([*named, *(f"file://{folder}" for folder in installed_conf())]))


def with_search_path(overrides: Sequence[str]) -> list[str]:
    """Overrides whose search paths are one: Hydra takes the last alone, and knows no installed ones."""
    places = search_path(overrides)
    rest = [word for word in overrides if not word.lstrip("+").startswith(KEY)]
    quoted = ",".join("'" + place.replace("'", "\\'") + "'" for place in places)
    return [f"{KEY}[{quoted}]", *rest] if places else rest


def own_folders(overrides: Sequence[str]) -> list[Path]:
    """The folders of `search_path` that are there."""
    found = []
    for place in search_path(overrides):
        if place.startswith("pkg://"):
            folder = _package_folder(place.removeprefix("pkg://").strip("/").replace("/", "."))
        else:
            folder = Path(place.removeprefix("file://"))
        if folder is not None and folder.is_dir():
            found.append(folder)
    return found


def check_search_path(overrides: Sequence[str]) -> None:
    """Raises a `UserError` where a place on the search path is none; Hydra would only warn, and miss the choice."""
    for place in search_path(overrides):
        if not own_folders([f"{KEY}[{place}]"]):
            raise UserError(
                f"hydra.searchpath names '{place}', which is no folder: give file://FOLDER or pkg://PACKAGE with"
                " configurations, in sub-folders named as in conf/"
            )


@functools.cache
def installed_conf() -> tuple[Path, ...]:
    """The folders `conf/` of packages that declare them by the entry point group `anomaly_vlm.conf`."""
    places = [_package_folder(point.value) for point in entry_points(group="anomaly_vlm.conf")]
    return tuple(place / "conf" for place in places if place is not None and (place / "conf").is_dir())


def _places(word: str) -> list[str]:
    """`hydra.searchpath=[file://a,'pkg://b']` -> `["file://a", "pkg://b"]`."""
    inside = word.partition("=")[2].strip().removeprefix("[").removesuffix("]")
    return [
        place for part in re.split(r",(?=\s*['\"]?(?:file|pkg)://)", inside) if (place := part.strip().strip("'\""))
    ]


def _package_folder(name: str) -> Path | None:
    """The folder of a package, without importing it; None where it is not installed."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    return Path(next(iter(spec.submodule_search_locations))) if spec and spec.submodule_search_locations else None
