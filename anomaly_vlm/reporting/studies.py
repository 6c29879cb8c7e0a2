"""The tables of a study: what varies as columns, means over seeds, the best marked, differences to a base row."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from anomaly_vlm.errors import UserError, unknown_choice
from anomaly_vlm.metrics.decisions import Interval, bootstrap_mean
from anomaly_vlm.names import shortest_names
from anomaly_vlm.reporting.collect import names_of, spread, value_of
from anomaly_vlm.reporting.study_table import Cell, StudyTable
from anomaly_vlm.reporting.table_options import CONDITION, TableOptions
from anomaly_vlm.reporting.tables import (
    COSTS,
    POOLED,
    SELECTION_NOTE,
    categories,
    is_road,
    shown_columns,
    smaller_is_better,
)

KINDS = {"": "without references", "few_shot": "few-shot", "road": "road scenes"}  # a table each
NOT_VARIED = ("seed", "seeds", "output_dir", "experiment", "trust", "method", "backbone")  # said otherwise
Run = dict[str, Any]  # a row of `collect_runs`


@dataclass
class Group:
    """Runs that differ in nothing but their seeds: one row.

    Attributes:
        cells: By key, what tells it from the other rows.
        runs: One a seed.
    """

    cells: dict[str, str]
    runs: list[Run]

    def mean(self, metric: str) -> float:
        """Mean over the seeds; NaN where it is not defined."""
        defined = [value for run in self.runs if (value := value_of(run, metric)) is not None]
        return statistics.mean(defined) if defined else math.nan

    def text(self, metric: str) -> str:
        """`51.2 ± 0.4` in percent; costs as they are."""
        values = [value_of(run, metric) for run in self.runs]
        if metric not in COSTS:
            return spread(values)
        value = self.mean(metric)
        return "-" if math.isnan(value) else f"{value:,.0f}" if value >= 100 else f"{value:,.3g}"

    def by_category(self, metric: str) -> dict[str, float]:
        """The mean over the seeds in each category that has the metric."""
        found: dict[str, list[float]] = {}
        for run in self.runs:
            for category in categories(run["results"]):
                if (value := run["results"].get(f"{category}/{metric}")) is not None:
                    found.setdefault(category, []).append(value)
        return {category: statistics.mean(values) for category, values in found.items()}


def study_tables(runs: Sequence[Run], options: TableOptions) -> list[StudyTable]:
    """The tables of runs: road scenes, few-shot runs and all others in tables of their own; then the differences.

    Args:
        runs: Rows of `collect_runs`.
        options: What the user asks for.

    Raises:
        UserError: A condition that no run fulfils, or a column that there is not.
    """
    kept = [run for run in runs if all(_holds(condition, run) for condition in options.where)]
    if not kept:
        raise UserError(f"where={','.join(options.where)}: none of {len(runs)} runs fulfils it: give another condition")
    tables = []
    found_base = not options.base
    for kind, title in KINDS.items():
        of_kind = [run for run in kept if kind_of(run) == kind]
        if not of_kind:
            continue
        several = len({kind_of(run) for run in kept}) > 1
        name, head = (kind or "zero_shot", [title]) if several else ("", [])
        table, groups, columns = _table(of_kind, options, name, head)
        tables.append(table)
        of_categories = {metric: title for metric, title in columns.items() if "/" not in metric}
        if options.intervals and of_categories:
            tables.append(_intervals(groups, of_categories, table))
        base = _base(groups, options)
        if base and of_categories:
            found_base = True
            tables.append(_differences(base, groups, of_categories, options, table))
    if not found_base:
        raise UserError(f"base={','.join(options.base)}: no row is that: give what tells one row from the others")
    return tables


def kind_of(run: Run) -> str:
    """Which of `KINDS` a run is."""
    return "road" if is_road(run["results"]) else "few_shot" if run.get("shots") else ""


def _table(
    runs: list[Run], options: TableOptions, name: str, head: list[str]
) -> tuple[StudyTable, list[Group], dict[str, str]]:
    groups, common, repeated = grouped(runs)
    columns = _columns(runs, options)
    groups = _sorted(groups, columns, options.sort)
    keys = list(groups[0].cells)
    several = any(len(group.runs) > 1 for group in groups)
    best = {metric: _best(groups, metric) for metric in columns}
    marked, rows = len(groups) > 1 and keys != ["seed"], []
    for group in groups:
        row = [Cell(group.cells[key]) for key in keys] + ([Cell(str(len(group.runs)))] if several else [])
        for metric in columns:
            row.append(Cell(group.text(metric), marked and group.mean(metric) == best[metric]))
        rows.append(row)
    foot = [f"{repeated} runs of the same configuration and seed as a later one are left out"] if repeated else []
    if several:
        foot.insert(0, "mean ± standard deviation over seeds")
    labels = [*shortest_names(keys).values(), *(["seeds"] if several else [])]
    return StudyTable(name, [*head, *common], labels, list(columns.values()), rows, foot), groups, columns


def grouped(runs: Sequence[Run]) -> tuple[list[Group], list[str], int]:
    """Runs by what tells them apart but for their seeds.

    Returns:
        The groups, what all have in common as lines, and how many runs were left out as a later one repeats them. Runs on
        different data, weights or options are never in one group, even where the cells cannot tell them apart.
    """
    keys = dict.fromkeys(key for run in runs for key in run["overrides"] if key.rpartition("/")[2] not in NOT_VARIED)
    cells = [_cells(run, list(keys)) for run in runs]
    # only what is trained has an epoch that was selected
    if len({cell["selection"] for cell in cells if cell["selection"]}) == 1:
        chosen = max(cell["selection"] for cell in cells)
        for cell in cells:
            cell["selection"] = chosen
    varying = sorted((key for key in cells[0] if len({cell[key] for cell in cells}) > 1), key=_order)
    stated = [cells[0][key] for key in ("method", "backbone") if key not in varying]
    stated += [f"{key} {cells[0][key]}" for key in ("trained on", "tested on") if key not in varying and cells[0][key]]
    common = [*stated, *([cells[0]["selection"]] if "selection" not in varying and cells[0]["selection"] else [])]
    same = [f"{key}={cells[0][key]}" for key in keys if key not in varying and cells[0][key]]
    found: dict[tuple[Any, ...], dict[Any, Run]] = {}
    for cell, run in zip(cells, runs, strict=True):
        found.setdefault((*cell.values(), run.get("config")), {})[run["seed"]] = run
    groups = []
    for identity, members in found.items():
        named = dict(zip(cells[0], identity, strict=False))
        groups.append(Group({key: named[key] for key in varying}, list(members.values())))
    alone = len(groups) == len(groups[0].runs) == 1
    if alone or len({tuple(group.cells.values()) for group in groups}) < len(groups):
        for group in groups:  # what tells them apart is no override: the folder does
            group.cells["run"] = group.runs[0]["run"]
    elif not varying:  # nothing but the seed
        whole = groups[0]
        groups = [Group({"seed": str(run["seed"])}, [run]) for run in whole.runs] + [Group({"seed": "all"}, whole.runs)]
    repeated = len(runs) - len({id(run) for group in groups for run in group.runs})
    return groups, [*common, *([f"with {', '.join(same)}"] if same else [])], repeated


def _cells(run: Run, keys: Sequence[str]) -> dict[str, str]:
    """Everything that may tell a run from others, as texts."""
    trained, _, tested = str(run["data"]).rpartition("tested on")
    cells = {key: str(run["overrides"].get(key, "")) for key in keys}
    cells |= {"method": str(run["method"]), "backbone": str(run["backbone"])}
    cells |= {"trained on": trained.strip(" ,").removeprefix("trained on ") or "nothing", "tested on": tested.strip()}
    if "texts" not in keys:
        cells["texts"] = run.get("texts") or "as_written"
    return {**cells, "selection": SELECTION_NOTE.get(run.get("selection") or "", "")}


def _differences(
    base: list[Group], groups: Sequence[Group], columns: dict[str, str], options: TableOptions, table: StudyTable
) -> StudyTable:
    """The other rows minus their base row, over the categories that both have."""
    keys, rows = _telling(groups), []
    for group in groups:
        if group in base:
            continue
        other = base[0] if len(base) == 1 else _otherwise_the_same(group, base, options)
        row = [Cell(group.cells[key]) for key in keys]
        for metric in columns:
            interval = difference(group, other, metric)
            text = (
                "-" if math.isnan(interval.value) else "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * v for v in interval))
            )
            row.append(Cell(text, interval.low > 0 or interval.high < 0))
        rows.append(row)
    each = "" if len(base) == 1 else " (of the row that is otherwise the same)"
    head = [f"difference to {', '.join(options.base)}{each}"]
    foot = [
        "in percent points, with the 95 % interval of a paired bootstrap over categories; marked where it excludes 0"
    ]
    name = f"{table.name}_difference" if table.name else "difference"
    return StudyTable(name, head, list(shortest_names(keys).values()), list(columns.values()), rows, foot)


def _otherwise_the_same(group: Group, base: Sequence[Group], options: TableOptions) -> Group:
    """The base row that differs from a row in nothing but what the conditions name.

    Raises:
        UserError: There is none.
    """
    named = [condition.partition("=")[0].rstrip("!") for condition in options.base]
    rest = [key for key in group.cells if not any(key == name or key.endswith(f".{name}") for name in named)]
    for one in base:
        if all(one.cells[key] == group.cells[key] for key in rest):
            return one
    raise UserError(
        f"base={','.join(options.base)}: {len(base)} rows are that, and none differs from {dict(group.cells)} in that alone:"
        " give a condition that one row fulfils"
    )


def _telling(groups: Sequence[Group]) -> list[str]:
    """The keys that a further table repeats: without data and selection, where the others tell the rows apart."""
    keys = list(groups[0].cells)
    brief = [key for key in keys if _order(key) < 3]
    return brief if len({tuple(group.cells[key] for key in brief) for group in groups}) == len(groups) else keys


def _intervals(groups: Sequence[Group], columns: dict[str, str], table: StudyTable) -> StudyTable:
    """How sure the means are: the interval of the mean over the categories."""
    keys, rows = _telling(groups), []
    for group in groups:
        row = [Cell(group.cells[key]) for key in keys]
        for metric in columns:
            interval = bootstrap_mean(list(group.by_category(metric).values()))
            text = "-" if math.isnan(interval.value) else "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * v for v in interval))
            row.append(Cell(text))
        rows.append(row)
    head = ["mean over the categories, with the 95 % interval of a bootstrap over them"]
    name = f"{table.name}_intervals" if table.name else "intervals"
    return StudyTable(name, head, list(shortest_names(keys).values()), list(columns.values()), rows)


def difference(group: Group, base: Group, metric: str) -> Interval:
    """One row minus another in the categories of both, with its interval; NaN where they were tested on different data."""
    tested = [{str(run["data"]).rpartition("tested on")[2] for run in side.runs} for side in (group, base)]
    ours, theirs = group.by_category(metric), base.by_category(metric)
    shared = [category for category in ours if category in theirs]
    if tested[0] != tested[1] or not shared:
        return Interval(math.nan, math.nan, math.nan)
    return bootstrap_mean([ours[category] - theirs[category] for category in shared])


def _columns(runs: Sequence[Run], options: TableOptions) -> dict[str, str]:
    """Metrics to show, with their titles."""
    named = (*dict.fromkeys(name for run in runs for name in run["means"]), *POOLED, *COSTS)
    there = [name for name in named if any(value_of(run, name) is not None for run in runs)]
    titles = shown_columns({f"mean/{name}": 0.0 for name in dict.fromkeys(n for run in runs for n in run["means"])})
    if not options.columns:
        return {name: title for name, title in titles.items() if name in there} or titles
    known = {**titles, **POOLED, **COSTS}
    for name in options.columns:
        if name not in there and name not in known:
            raise unknown_choice("column", name, there)
    return {name: known.get(name, name) for name in options.columns}


def _sorted(groups: list[Group], columns: dict[str, str], sort: str | None) -> list[Group]:
    if sort is None:
        return groups
    name, downwards = sort.removeprefix("-"), sort.startswith("-")
    metrics = [*dict.fromkeys(name for group in groups for run in group.runs for name in run["means"]), *POOLED, *COSTS]
    labels = dict(zip(shortest_names(list(groups[0].cells)).values(), groups[0].cells, strict=True)) | {
        key: key for key in groups[0].cells
    }
    if name in labels:
        return sorted(groups, key=lambda group: _natural(group.cells[labels[name]]), reverse=downwards)
    if name not in metrics:
        raise unknown_choice("column to sort by", name, [*labels, *metrics])
    last = -math.inf if downwards else math.inf
    return sorted(groups, key=lambda g: last if math.isnan(v := g.mean(name)) else v, reverse=downwards)


def _best(groups: Sequence[Group], metric: str) -> float:
    values = [value for group in groups if not math.isnan(value := group.mean(metric))]
    choose = min if smaller_is_better(metric) else max
    return choose(values) if values else math.nan


def _holds(condition: str, run: Run) -> bool:
    found = CONDITION.fullmatch(condition)
    assert found is not None
    key = found["key"]
    values = [str(value) for name, value in names_of(run) if name == key or name.endswith(f".{key}")]
    return (found["value"] in values) == (found["sign"] == "=")


def _base(groups: Sequence[Group], options: TableOptions) -> list[Group]:
    """The rows that fulfil `base=`; of several variants of a method the one that is shown under the very name."""
    if not options.base:
        return []
    found = [group for group in groups if all(_holds(c, run) for c in options.base for run in group.runs)]
    return [group for group in found if f"method={group.cells.get('method')}" in options.base] or found


def _order(key: str) -> int:
    """Method and backbone first, then what was swept over, data and selection last."""
    return {"method": 0, "backbone": 1, "trained on": 3, "tested on": 4, "selection": 5}.get(key, 2)


def _natural(text: str) -> tuple[int, float, str]:
    try:
        return 0, float(text), ""
    except ValueError:
        return 1, 0.0, text
