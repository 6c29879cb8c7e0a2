"""The groups of `conf/` and their choices, as Hydra finds them. Imports neither torch nor Lightning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins

import anomaly_vlm
from anomaly_vlm.runs.own_conf import own_folders

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


def describe_choices(overrides: Sequence[str] = ()) -> str:
    """For `--help`: groups with their choices, those of folders that overrides name too, and the top-level keys."""
    lines = ["groups:"] + [f"  {group + '=':<12} {', '.join(choices(group, overrides))}" for group in GROUPS]
    text = (conf_dir() / "train.yaml").read_text().split("hparams_search: null", 1)[1].split("name: ???")[0]
    lines += ["", "keys (any key of a group too, such as method.hsf.k=10):"]
    lines += [f"  {line}" for line in text.strip().splitlines()]
    return "\n".join(lines)


def own_launchers_and_sweepers() -> None:
    """Lets the suite's files in `conf/hydra` stand for themselves.

    Hydra and its plugins, where some are installed, register schemas under the same names and would check the files by them.
    """
    Plugins.instance()  # registers them
    registered = ConfigStore.instance().repo["hydra"]
    for path in (conf_dir() / "hydra").rglob("*.yaml"):
        registered.get(path.parent.name, {}).pop(path.name, None)
