"""Many runs as one table, made from the files that each run leaves (so that a failed or killed run costs only itself)."""

from __future__ import annotations

import csv
import json
import logging
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from anomaly_vlm.files import whole_file
from anomaly_vlm.names import csv_cell
from anomaly_vlm.reporting.tables import empty_table, percent, plain, shown_columns

log = logging.getLogger("anomaly_vlm")
FACTS = ("method", "backbone", "data")


def collect_runs(root: Path) -> list[dict[str, Any]]:
    """One row for each `metrics.json` below `root`, in the order of the folders' names (numbers as numbers).

    A row has `run` (folder relative to `root`), method, backbone, data, seed, selection, the run's overrides by key, and the
    means.
    """
    rows = []
    for path in sorted(root.rglob("metrics.json"), key=_natural):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            means = {k.removeprefix("mean/"): v for k, v in content["results"].items() if k.startswith("mean/")}
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            log.warning("'%s' is no record of a run (%s): left out", path, error)
            continue
        row: dict[str, Any] = {"run": path.parent.relative_to(root).as_posix()}
        row.update({key: content.get(key) for key in (*FACTS, "seed", "selection")})
        row["overrides"] = dict(word.lstrip("+~").partition("=")[::2] for word in content.get("overrides") or [])
        row["means"], row["results"] = means, content["results"]
        rows.append(row)
    return rows


def _natural(path: Path) -> list[tuple[int, int, str]]:
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in path.parts]


def sweep_table(rows: Sequence[dict[str, Any]], *, csv_path: Path) -> Table:
    """What differs between the runs beside their means, for printing; and a CSV with one row a run.

    Runs that differ in their seed alone share a row: mean and standard deviation. Where nothing but the seed differs, each
    run has its row and all of them one more.
    """
    shown_anyway = ("seed", *FACTS)
    keys = [key for key in dict.fromkeys(k for row in rows for k in row["overrides"]) if key not in shown_anyway]
    _write(csv_path, rows, keys)
    varying = [key for key in keys if len({row["overrides"].get(key) for row in rows}) > 1]
    facts = [key for key in FACTS if len({row[key] for row in rows}) > 1]
    common = [str(rows[0][key]) for key in FACTS if rows and key not in facts]
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        cells = [str(row["overrides"].get(key, "")) for key in varying] + [str(row[key]) for key in facts]
        groups.setdefault(tuple(cells or [row["run"]]), []).append(row)
    if not (varying or facts) and len(rows) > 1:
        groups["all",] = list(rows)
    several = any(len(members) > 1 for members in groups.values())

    columns = shown_columns({f"mean/{name}": 0.0 for row in rows for name in row["means"]})
    table = empty_table(common)
    for key in varying + facts or ["run"]:
        table.add_column(plain(key))
    for title in (["runs"] if several else []) + list(columns.values()):
        table.add_column(title, justify="right")
    for named, members in groups.items():
        count = [str(len(members))] if several else []
        table.add_row(
            *(plain(cell) for cell in named),
            *count,
            *(spread([m["means"].get(key) for m in members]) for key in columns),
        )
    return table


def spread(values: Sequence[float | None]) -> str:
    """`51.2 ± 0.4` in percent: mean and standard deviation of the defined values."""
    defined = [value for value in values if value is not None]
    if len(defined) < 2:
        return percent(defined[0] if defined else None)
    return f"{percent(statistics.mean(defined))} ± {100 * statistics.stdev(defined):.1f}"


def _write(path: Path, rows: Sequence[dict[str, Any]], keys: Sequence[str]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row["means"]))
    with whole_file(path) as file:
        writer = csv.writer(file)
        writer.writerow(["run", *FACTS, "seed", *keys, *names])
        for row in rows:
            facts = [csv_cell(cell) for cell in (row["run"], *(row[key] for key in FACTS), row["seed"])]
            values = [row["means"].get(name) for name in names]
            writer.writerow(
                [
                    *facts,
                    *(csv_cell(row["overrides"].get(key, "")) for key in keys),
                    *("" if v is None else v for v in values),
                ]
            )
