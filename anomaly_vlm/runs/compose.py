"""Composing configurations with Hydra, with every mistake reported in one line. Imports neither torch nor Lightning."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from anomaly_vlm.errors import UserError, unknown_choice
from anomaly_vlm.files import expanded
from anomaly_vlm.runs.groups import GROUPS, choices, conf_dir, own_launchers_and_sweepers
from anomaly_vlm.runs.interpolations import resolve_computed
from anomaly_vlm.runs.mistakes import flat_keys, search_words, several_values, translate, unknown_choice_short
from anomaly_vlm.runs.own_conf import KEY, check_search_path, with_search_path
from anomaly_vlm.runs.path_words import literal_paths

# Nodes whose constructors know more keys than their YAMLs list.
ADDABLE = ("method.", "backbone.", "trainer.", "optimizer.", "scheduler.", "callbacks.")
WITH_NONE = ("loss", "logger")  # groups whose choice `none` is an empty node, which a run needs
# Groups whose files set keys anywhere in a configuration, so that none of its nodes is theirs.
OF_A_NEW_RUN = ("experiment", "debug", "hparams_search")
OF_A_CHECKPOINT = ("method", "backbone", "loss", "dataset", "choices")  # nodes whose keys are as it was made


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
            resolve_computed(cfg)
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
    # errors are raised here, where they become one line
    full, os.environ["HYDRA_FULL_ERROR"] = os.environ.get("HYDRA_FULL_ERROR", ""), "1"
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
    as those of the others do (`runs.trainer.check_keys`, `runs.instantiate.check_options`). `GROUP=null` leaves a group out.
    """
    key, _, value = override.partition("=")
    if value == "null" and key in GROUPS:  # Hydra would end in a traceback
        return f"{key}=none" if key in WITH_NONE else f"~{key}"
    return f"++{override}" if override.startswith(ADDABLE) else override


def parse(overrides: Sequence[str], *, sweep: bool = False) -> list[Override]:
    """Hydra's own reading of command-line overrides.

    Args:
        overrides: Words as on the command line.
        sweep: Whether a comma in a new path stands between several values.

    Raises:
        UserError: One that does not parse.
    """
    _check_words(overrides)
    overrides = literal_paths(overrides, sweep=sweep)
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


def merge_overrides(stored: DictConfig, overrides: Sequence[str], *, fixed: Sequence[str]) -> DictConfig:
    """The configuration that a checkpoint or run carries, with overrides on top.

    Args:
        stored: With its node `choices`.
        overrides: Group choices (`dataset=visa`, `source@dataset.test=folder`) replace the whole group; `key=value`
            changes an existing key.
        fixed: Groups that the checkpoint decides; another choice is an error.

    Raises:
        UserError: An override that does not parse, has several values, names an unknown key, or composes a new run.
    """
    parsed = parse(overrides)
    if any(o.is_sweep_override() for o in parsed):
        raise several_values(overrides)
    for o in parsed:
        if o.key_or_group in OF_A_NEW_RUN:
            raise UserError(f"{o.input_line} composes a new run, and here is one already: give its keys one by one")
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
        fresh = compose([*kept, *(line for line, _ in changes), *search_words(overrides)])
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
        if not addable and not _has(cfg, key) and not _came_later(key, made, search_words(overrides)):
            raise unknown_choice_short(key, flat_keys(cfg))
        OmegaConf.update(cfg, key, o.value(), force_add=True)
    return cfg


def _has(cfg: DictConfig, key: str) -> bool:
    return bool(OmegaConf.select(cfg, key, throw_on_missing=False, default="<absent>") != "<absent>")


def _came_later(key: str, made: Mapping[str, str], words: Sequence[str]) -> bool:
    """Whether today's configuration has a key that a stored one, of an older version, lacks.

    Args:
        key: The key.
        made: Choices of the stored configuration.
        words: Overrides that say where to look for configurations.
    """
    if key.partition(".")[0] in OF_A_CHECKPOINT:
        return False
    kept = [f"{group}={made[group]}" for group in ("method", "backbone") if group in made]
    try:
        return _has(compose([*kept, *words]), key)
    except UserError:  # a method that is not installed here
        return False
