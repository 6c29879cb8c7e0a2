"""What a study is about, for its dashboard: read from the folders of its runs, or from the experiment that makes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from anomaly_vlm.errors import UserError, unknown_choice
from anomaly_vlm.names import category_and_metric
from anomaly_vlm.reporting.collect import collect_runs
from anomaly_vlm.reporting.dashboards import METRICS, ROAD_METRICS, Study
from anomaly_vlm.runs.compose import parse
from anomaly_vlm.runs.groups import choices, conf_dir
from anomaly_vlm.runs.trust import read_config


def study_of_folder(folder: Path, *, trusted: Sequence[str] = ()) -> Study:
    """The study whose runs lie below a folder: it is about the overrides that differ between them.

    Args:
        folder: Of a sweep, or of several seeds.
        trusted: Packages of the user's own that the runs' configurations name.

    Raises:
        UserError: There is no finished run, or their loggers' runs belong to no group.
    """
    rows = collect_runs(folder)
    if not rows:
        raise UserError(f"study={folder}: no finished run (metrics.json) in there: give the folder of a sweep")
    configs = [read_config(folder / row["run"] / "config.yaml", trusted=trusted) for row in rows]
    groups = {OmegaConf.select(cfg, "tracking.group") for cfg in configs}
    group = groups.pop() if len(groups) == 1 else None
    if group is None:
        raise UserError(
            f"study={folder}: its runs are of no common group: give the folder of one sweep, or of several seeds"
        )
    road = "mean/component_f1" in rows[0]["results"]
    names = {category_and_metric(key)[0] for row in rows for key in row["results"]} - {
        "mean",
        "pooled",
        "mean_count",
        "",
    }
    methods = ", ".join(dict.fromkeys(str(row["method"]) for row in rows))
    data = "; ".join(dict.fromkeys(str(row["data"]) for row in rows))
    return Study(
        title=f"{methods}: {group}",
        text=f"{len(rows)} runs of {methods}: {data}.",
        field="Group",
        value=str(group),
        keys=_varying(rows),
        metrics=ROAD_METRICS if road else METRICS,
        categories=[] if road else sorted(names),
    )


def _varying(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Dotted keys of the configuration that differ between runs."""
    keys: list[str] = []
    for word in dict.fromkeys(key for row in rows for key in row["overrides"]):
        values = list(dict.fromkeys(row["overrides"].get(word) for row in rows))
        if len(values) > 1:
            keys += _leaves(word, ",".join(value for value in values if value is not None))
    return list(dict.fromkeys([*keys, *(["seed"] if len({row["seed"] for row in rows}) > 1 else [])]))


def study_of_experiment(name: str) -> Study:
    """The study that `conf/experiment/NAME.yaml` describes, finished or not.

    Raises:
        UserError: There is no such experiment, or it sweeps over nothing.
    """
    if name not in choices("experiment"):
        raise unknown_choice("study", name, choices("experiment"))
    path = conf_dir() / "experiment" / f"{name}.yaml"
    params = OmegaConf.select(OmegaConf.load(path), "hydra.sweeper.params") or {}
    keys = [key for word in params for key in _leaves(str(word), str(params[word]))]
    if not keys:
        raise UserError(f"experiment={name} is one run, no study: choose one that sweeps, such as adaclip/prompts")
    lines = [
        line.removeprefix("#").strip()
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.startswith("# ")
    ]
    text = " ".join(line for line in lines if not line.startswith(("@", "make ")))
    return Study(name, text, "choices.experiment", name, list(dict.fromkeys(keys)))


def _leaves(key: str, values: str) -> list[str]:
    """The keys that a swept word changes: itself, or what stands in the tables that are its values."""
    (override,) = parse([f"{key}={values}"], sweep=True)
    found: list[Any] = list(override.sweep_iterator()) if override.is_sweep_override() else [override.value()]
    tables = [value for value in found if isinstance(value, dict)]
    plain = key.split("@")[-1]
    if "/" in key or key in choices_keys():
        return [f"choices.{key}"]
    return [f"{plain}.{name}" for table in tables for name in table] if tables else [plain]


def choices_keys() -> set[str]:
    """Names of the groups, whose choices stand in a configuration's node `choices`."""
    return {path.name for path in conf_dir().iterdir() if path.is_dir()}
