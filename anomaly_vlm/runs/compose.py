"""Composing configurations with Hydra, with every mistake reported in one line. Imports neither torch nor Lightning."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

import anomaly_vlm
from anomaly_vlm.errors import UserError, unknown_choice
from anomaly_vlm.files import expanded
from anomaly_vlm.runs.own_conf import KEY, check_search_path, own_folders, with_search_path
from anomaly_vlm.runs.path_words import literal_paths

GROUPS = (
    "method",
    "dataset",
    "source",
    "loss",
    "optimizer",
    "scheduler",
    "backbone",
    "trainer",
    "logger",
    "callbacks",
    "detector",
    "segmenter",
    "preset",
    "experiment",
    "debug",
    "hparams_search",
)
WITHOUT_MASKS = "loss/image_only/"  # a loss for each method that can do without pixel masks
# Nodes whose constructors know more keys than their YAMLs list.
ADDABLE = ("method.", "trainer.", "optimizer.", "scheduler.", "callbacks.")


def conf_dir() -> Path:
    """The folder `conf/`: inside the installed package, or at the root of a clone."""
    package = Path(anomaly_vlm.__file__).parent
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


def choices(group: str, overrides: Sequence[str] = ()) -> list[str]:
    """The names that a group offers, sub-folders included (`adaclip/prompts`), with the user's own.

    Args:
        group: Name of the group.
        overrides: Of the command line, which may name folders of the user's own, see `runs.own_conf`.
    """
    roots = [folder / group for folder in (conf_dir(), *own_folders(overrides))]
    return sorted(
        {path.relative_to(root).with_suffix("").as_posix() for root in roots for path in root.rglob("*.yaml")}
    )


def compose(overrides: Sequence[str], *, config: str = "train") -> DictConfig:
    """Composes `conf/CONFIG.yaml` with command-line overrides.

    The node `choices` of the result maps each group to the choice made.

    Raises:
        UserError: Unknown group choice, misspelt key, or an override that does not parse.
    """
    return _without_hydra(_compose(overrides, config), overrides)


def compose_job(overrides: Sequence[str], number: int = 0) -> tuple[DictConfig, dict[str, Any]]:
    """One job of a sweep as `compose` gives it, and beside it what Hydra's own node says about sweeps.

    Args:
        overrides: Of this job alone, one value a key.
        number: Of the job in its sweep.

    Returns:
        The configuration, and plain containers: `subdir` (folder of the job), `launcher` and `sweeper`.
    """
    cfg = _compose(overrides, "train")
    with open_dict(cfg):
        cfg.hydra.job.num = number
    try:
        settings = {
            "subdir": str(cfg.hydra.sweep.subdir),
            "launcher": OmegaConf.to_container(cfg.hydra.launcher, resolve=True),
            "sweeper": OmegaConf.to_container(cfg.hydra.sweeper, resolve=True),
        }
    except OmegaConfBaseException as error:
        raise translate(error, overrides) from error
    return _without_hydra(cfg, overrides), settings


def _without_hydra(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """What a run needs of a composed configuration, with the choices made."""
    made = {k: v for k, v in cfg.hydra.runtime.choices.items() if v is not None and not k.startswith("hydra")}
    presets = choices("preset", overrides)
    if made.get("preset") not in (None, *presets):
        if any(word.startswith("preset=") for word in overrides):
            raise unknown_choice("preset", made["preset"], presets)
        del made["preset"]  # this backbone has none for this method
    with open_dict(cfg):
        del cfg["hydra"]
        cfg.choices = made
        try:
            if isinstance(cfg.get("dataset"), DictConfig) and cfg.dataset.get("name") is None:
                cfg.dataset.name = data_name(cfg)
        except OmegaConfBaseException as error:
            raise translate(error, overrides) from error
    return cfg


def data_name(cfg: DictConfig) -> str:
    """`visa_to_mvtec_ad`; `mvtec_ad_2_shot` where references take the place of a training set."""
    test = _source_name(cfg.dataset.get("test")) or "unnamed"
    train = _source_name(cfg.dataset.get("train")) or "untrained"
    shots = f"_{cfg.shots}_shot" if cfg.get("shots") else ""
    return f"{train}_to_{test}{shots}" if cfg.get("train_on", "dataset") == "dataset" else f"{test}{shots}"


def _source_name(source: Any) -> str:
    """The name of a source: its own, or that of its folder; empty without a source, or for what is none."""
    if not isinstance(source, DictConfig):
        return ""
    root = source.get("root")
    return str(source.get("name") or (expanded(root).resolve().name if root else "folder"))


def own_launchers_and_sweepers() -> None:
    """Lets the suite's files in `conf/hydra` stand for themselves.

    Hydra and its plugins, where some are installed, register schemas under the same names and would check the files by them.
    """
    Plugins.instance()  # registers them
    registered = ConfigStore.instance().repo["hydra"]
    for path in (conf_dir() / "hydra").rglob("*.yaml"):
        registered.get(path.parent.name, {}).pop(path.name, None)


def _compose(overrides: Sequence[str], config: str) -> DictConfig:
    _check_words(overrides)
    own_launchers_and_sweepers()
    check_search_path(overrides)
    overrides = with_search_path(literal_paths(overrides))
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return hydra.compose(config, list(map(addable, overrides)), return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, ValueError, TypeError, AttributeError) as error:
        raise translate(error, overrides) from error  # the last two: Hydra met a list or a number where a name belongs


def ask_hydra(words: Sequence[str]) -> None:
    """Lets Hydra answer a question about a configuration: `--cfg job --resolve`, `--info defaults`, with any overrides.

    Raises:
        UserError: The overrides do not compose.
    """
    own_launchers_and_sweepers()
    argv, sys.argv = sys.argv, ["anomaly-vlm", *map(addable, with_search_path(literal_paths(words)))]
    full, os.environ["HYDRA_FULL_ERROR"] = (
        os.environ.get("HYDRA_FULL_ERROR", ""),
        "1",
    )  # errors come here, to be one line
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level  # Hydra sets up logging for a job that is not run
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")(lambda cfg: None)()
    except (HydraException, OmegaConfBaseException) as error:
        raise translate(error, words) from error
    finally:
        sys.argv, os.environ["HYDRA_FULL_ERROR"] = argv, full
        root.handlers[:] = handlers
        root.setLevel(level)


def addable(override: str) -> str:
    """`method.KEY=VALUE` as `++method.KEY=VALUE`, which may add a key; the same of all nodes in `ADDABLE`.

    The YAML of a method lists only what differs from its constructor, which has the other options and rejects unknown ones,
    as those of the others do (`runs.trainer.check_keys`, `runs.instantiate.check_options`).
    """
    return f"++{override}" if override.startswith(ADDABLE) else override


def parse(overrides: Sequence[str]) -> list[Override]:
    """Hydra's own reading of command-line overrides.

    Raises:
        UserError: One that does not parse.
    """
    _check_words(overrides)
    overrides = literal_paths(overrides)
    try:
        return OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise translate(error, overrides) from error


def _check_words(overrides: Sequence[str]) -> None:
    for word in overrides:
        if word.startswith("-"):
            raise UserError(f"unknown option '{word}': give overrides as key=value, or --help")
        if "=" not in word and not word.startswith("~"):
            raise UserError(f"'{word}' is no override: write key=value, such as method=adaclip")


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
        return UserError(f"several values in one run ({' '.join(overrides)}): use 'anomaly-vlm sweep' for that")
    return UserError(f"the overrides do not fit: {text.splitlines()[0]}")


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
    if group in GROUPS:
        return unknown_choice("data side", key, [f"source@dataset.{side}" for side in ("train", "test", "val")])
    chosen = [word for word in overrides if word.split("=")[0].split("@")[0] in GROUPS]
    method = [] if any(word.startswith("method=") for word in chosen) else [f"method={choices('method')[0]}"]
    own_launchers_and_sweepers()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        keys = flat_keys(hydra.compose("train", with_search_path([*method, *chosen, *_search_words(overrides)])))
    return unknown_choice_short(key, [*keys, *GROUPS])


def _search_words(overrides: Sequence[str]) -> list[str]:
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


def merge_overrides(stored: DictConfig, overrides: Sequence[str], *, fixed: Sequence[str]) -> DictConfig:
    """The configuration that a checkpoint or run carries, with overrides on top.

    Args:
        stored: With its node `choices`.
        overrides: Group choices (`dataset=visa`, `source@dataset.test=folder`) replace the whole group; `key=value`
            changes an existing key.
        fixed: Groups that the checkpoint decides; another choice is an error.
    """
    parsed = parse(overrides)
    cfg = stored.copy()
    if cfg.get("choices") is None:  # of an older version
        OmegaConf.update(cfg, "choices", {}, force_add=True)
    made = dict(cfg.choices)
    groups = [o for o in parsed if o.key_or_group in GROUPS]
    fixed = (*fixed, "preset")  # values of several groups, which these have taken over
    for o in groups:
        if o.key_or_group in fixed and o.value() != made.get(o.key_or_group):
            raise UserError(
                f"the checkpoint was made by {o.key_or_group}={made.get(o.key_or_group)}, this run says"
                f" {o.key_or_group}={o.value()}: choose {o.key_or_group}={made.get(o.key_or_group)} or another checkpoint"
            )
    changes = [
        (line, o) for line, o in zip(overrides, parsed, strict=True) if o in groups and o.key_or_group not in fixed
    ]
    if changes:
        kept = [f"{group}={made[group]}" for group in ("method", "backbone") if group in made]
        if not any(o.key_or_group == "dataset" for _, o in changes):
            kept += [f"{group}={choice}" for group, choice in made.items() if group.startswith(("dataset", "source@"))]
        fresh = compose([*kept, *(line for line, _ in changes), *_search_words(overrides)])
        with open_dict(cfg):
            for _, o in changes:
                node = o.package or o.key_or_group  # `source@dataset.test` fills dataset.test
                OmegaConf.update(cfg, node, OmegaConf.select(fresh, node), merge=False, force_add=True)
                if o.key_or_group in ("dataset", "source"):
                    cfg.choices.update({k: v for k, v in fresh.choices.items() if k.startswith(("dataset", "source@"))})
                else:
                    cfg.choices[o.key_or_group] = o.value()
    for o in parsed:
        if o in groups or o.key_or_group == KEY.removesuffix("="):
            continue
        key = o.key_or_group
        addable = o.is_add() or key.startswith(ADDABLE)  # see `addable`
        if not addable and OmegaConf.select(cfg, key, throw_on_missing=False, default="<absent>") == "<absent>":
            raise unknown_choice_short(key, flat_keys(cfg))
        OmegaConf.update(cfg, key, o.value(), force_add=True)
    return cfg


def describe_choices(overrides: Sequence[str] = ()) -> str:
    """For `--help`: groups with their choices, those of folders that overrides name too, and the top-level keys."""
    lines = ["groups:"] + [f"  {group + '=':<12} {', '.join(choices(group, overrides))}" for group in GROUPS]
    text = (conf_dir() / "train.yaml").read_text().split("hparams_search: null", 1)[1].split("name: ???")[0]
    lines += ["", "keys (any key of a group too, such as method.hsf.k=10):"]
    lines += [f"  {line}" for line in text.strip().splitlines()]
    return "\n".join(lines)
