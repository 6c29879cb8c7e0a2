"""Mistakes in overrides as one line each, with the nearest choices."""

from __future__ import annotations

import re
from collections.abc import Sequence

import hydra
from omegaconf import DictConfig

from anomaly_vlm.errors import UserError, unknown_choice
from anomaly_vlm.runs.groups import GROUPS, WITHOUT_MASKS, choices, conf_dir, own_launchers_and_sweepers
from anomaly_vlm.runs.own_conf import KEY, with_search_path


def translate(error: Exception, overrides: Sequence[str]) -> UserError:
    """Hydra's and OmegaConf's errors, often several lines, as one line with the nearest choices."""
    text = str(error)
    if found := re.search(r"Could not find '([\w@.]+)/([^']+)'", text) or re.search(
        r"Could not load '([\w@.]+)/([^']+)'", text
    ):
        group, name = found[1].split("@")[0], found[2]
        if f"{group}/{name}".startswith(WITHOUT_MASKS):
            return _needs_masks(f"{group}/{name}".removeprefix(WITHOUT_MASKS))
        title = {"dataset": "data set", "source": "data set"}.get(group, group)
        return unknown_choice(title, name, choices(group, overrides))
    if found := re.search(r"You must specify '(\w+)'", text):
        return UserError(f"no {found[1]} given: add {found[1]}=NAME, one of {', '.join(choices(found[1], overrides))}")
    if found := re.search(r"Could not override '([\w@./]+)'", text):
        return _unknown_key(found[1], overrides)
    if found := re.search(r"(?:full_key|Key '[^']*' is not in struct).*?full_key: ([\w.@]+)", text, re.S):
        return _unknown_key(found[1], overrides)
    if "Multi-value" in text or "sweep" in text.lower():
        return several_values(overrides)
    return UserError(f"the overrides do not fit: {text.splitlines()[0]}")


def several_values(overrides: Sequence[str]) -> UserError:
    """The error where overrides of one run have several values for a key, as those of a sweep."""
    return UserError(f"several values in one run ({' '.join(overrides)}): use 'anomaly-vlm sweep' for that")


def _needs_masks(method: str) -> UserError:
    """The error where a method's loss has no terms of whole images."""
    able = [name.removeprefix("image_only/") for name in choices("loss") if name.startswith("image_only/")]
    return UserError(
        f"loss=image_only: {method} learns from pixel masks, from good images alone, or not at all: leave loss out, or"
        f" choose one of {', '.join(able)}"
    )


def _unknown_key(key: str, overrides: Sequence[str]) -> UserError:
    """Names the nearest keys of the configuration that the chosen groups compose."""
    group = key.split("@")[0]
    if group in ("detector", "segmenter"):
        return UserError(f"{key}: the method takes no {group}: leave it out")
    if group in GROUPS:
        return unknown_choice("data side", key, [f"source@dataset.{side}" for side in ("train", "test", "val")])
    chosen = [word for word in overrides if word.split("=")[0].split("@")[0] in GROUPS]
    method = [] if any(word.startswith("method=") for word in chosen) else [f"method={choices('method')[0]}"]
    own_launchers_and_sweepers()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        keys = flat_keys(hydra.compose("train", with_search_path([*method, *chosen, *search_words(overrides)])))
    return unknown_choice_short(key, [*keys, *GROUPS])


def search_words(overrides: Sequence[str]) -> list[str]:
    """The overrides that name folders with configurations of the user's own."""
    return [word for word in overrides if word.lstrip("+").startswith(KEY)]


def unknown_choice_short(key: str, keys: Sequence[str]) -> UserError:
    """As `unknown_choice`, listing only the nearest of many."""
    import difflib

    near = difflib.get_close_matches(key, keys, n=3, cutoff=0.4)
    last = [k for k in keys if k.split(".")[-1] == key.split(".")[-1]][:3]
    hint = ", ".join(dict.fromkeys([*near, *last])) or "see 'anomaly-vlm train --help'"
    return UserError(f"unknown key '{key}': nearest are {hint}; to add a new key write +{key}=VALUE")


def flat_keys(cfg: DictConfig, prefix: str = "") -> list[str]:
    """Dotted names of all keys, inner nodes included."""
    keys: list[str] = []
    for key in map(str, cfg):
        keys.append(f"{prefix}{key}")
        node = cfg._get_node(key)
        if isinstance(node, DictConfig) and not node._is_missing() and not node._is_none():
            keys += flat_keys(node, f"{prefix}{key}.")
    return keys
