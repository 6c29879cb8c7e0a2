"""Many runs, read from the files that each of them leaves (so that a failed or killed run costs only itself)."""

from __future__ import annotations

import csv
import logging
import re
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from anomaly_vlm.errors import UserError
from anomaly_vlm.files import read_json, whole_file
from anomaly_vlm.names import csv_cell, shown
from anomaly_vlm.reporting.tables import SELECTION_NOTE, percent

log = logging.getLogger("anomaly_vlm")
FACTS = ("method", "backbone", "data")
MET_BEFORE = ("test_images_trained_on", "test_images_selected_on")
ABOUT = ("choices", "random_weights", "image_size", "images", "images_in_test_set", *MET_BEFORE, "texts")
LARGEST = 100_000_000  # bytes of a record; one with 10,000 categories has a tenth of it
KINDS: dict[str, Any] = {  # what a record holds
    "method": str | None,
    "backbone": str | None,
    "data": str | None,
    "seed": int | str | None,
    "selection": str | None,
    "overrides": list | None,
    "shots": int | None,
    "config": str | None,
    "choices": dict | None,
    "cost": dict | None,
    "texts": str | None,
    "images": int | None,
    "images_in_test_set": int | None,
    **dict.fromkeys(MET_BEFORE, int | None),
}


def collect_runs(root: Path) -> list[dict[str, Any]]:
    """One row for each `metrics.json` below `root`, in the order of the folders' names (numbers as numbers).

    A row has `run` (folder relative to `root`), method, backbone, data, seed, selection, shots, the run's overrides by key,
    results, means and cost, what else its record says (`ABOUT`), and `config`, which runs share that differ in nothing but
    their seeds.
    """
    rows = []
    for path in sorted(root.rglob("metrics.json"), key=_natural):
        try:
            content = read_record(path)
        except UserError as error:
            log.warning("%s: left out", shown(error))
            continue
        results = content["results"]
        row: dict[str, Any] = {"run": path.parent.relative_to(root).as_posix()}
        row.update({key: content.get(key) for key in (*FACTS, "seed", "selection")})
        row.update({key: content.get(key) for key in ABOUT})
        row["config"], row["shots"] = content.get("config"), content.get("shots", _shots(content.get("data")))
        row["overrides"] = dict(word.lstrip("+~").partition("=")[::2] for word in content.get("overrides") or [])
        row["means"] = {key.removeprefix("mean/"): v for key, v in results.items() if key.startswith("mean/")}
        row["results"] = results
        row["cost"] = {key: v for key, v in (content.get("cost") or {}).items() if isinstance(v, int | float)}
        rows.append(row)
    return rows


def read_record(path: Path) -> dict[str, Any]:
    """The record of a run, checked: it may have been written by another program, or be damaged.

    Raises:
        UserError: It cannot be read, is no JSON, or has another form than a run writes.
    """
    content = read_json(path, what="record of a run", largest=LARGEST)
    if not isinstance(content, dict) or not isinstance(content.get("results"), dict):
        raise UserError(f"'{path}' is no record of a run (it has no table of results)")
    _check_numbers(path, content["results"])
    for key, kinds in KINDS.items():
        if not isinstance(content.get(key), kinds):
            raise UserError(f"'{path}' is no record of a run ({key} is {str(content.get(key))[:40]})")
    if content.get("selection") not in (None, *SELECTION_NOTE):
        raise UserError(f"'{path}' is no record of a run (selection is {str(content.get('selection'))[:40]})")
    if not all(isinstance(word, str) for word in content.get("overrides") or []):
        raise UserError(f"'{path}' is no record of a run (its overrides are no texts)")
    return content


def read_means(path: Path) -> dict[str, float]:
    """Means by metric, as a run keeps them of the untrained method; those that were no numbers are left out.

    Raises:
        UserError: It cannot be read, is no JSON, or holds something else than numbers.
    """
    content = read_json(path, what="record of a run", largest=LARGEST)
    if not isinstance(content, dict):
        raise UserError(f"'{path}' is no record of a run (it has no table of results)")
    _check_numbers(path, content)
    return {key: float(value) for key, value in content.items() if value is not None}


def _check_numbers(path: Path, values: dict[str, Any]) -> None:
    for key, value in values.items():
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e15
        ):
            raise UserError(f"'{path}' is no record of a run ({key[:80]} is {str(value)[:40]}, no number)")


def _shots(data: str | None) -> int:
    """Number of reference images, of records that do not name it."""
    found = re.search(r"(\d+) normal images? of each category as references", data or "")
    return int(found[1]) if found else 0


def _natural(path: Path) -> list[tuple[int, int, str]]:
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in path.parts]


def value_of(run: dict[str, Any], metric: str) -> float | None:
    """A run's mean over the categories; `pooled/NAME`: over all images together; `cost/NAME`: what the method costs."""
    kind, _, name = metric.rpartition("/")
    place = {"": run["means"], "pooled": run["results"], "cost": run.get("cost") or {}}.get(kind, {})
    found: float | None = place.get(metric if kind == "pooled" else name)
    return found


def names_of(run: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """What conditions may call a row of `collect_runs`, by key: its overrides, choices, and facts, also without their notes.

    So `method=musc` and `method=musc (transductive)` are the same run.
    """
    yield from run["overrides"].items()
    yield from (run.get("choices") or {}).items()
    yield from ((key, run.get(key)) for key in (*FACTS, "seed", "selection", "shots", "run"))
    yield from ((key, str(run.get(key)).partition(" (")[0]) for key in ("method", "backbone"))


def spread(values: Sequence[float | None]) -> str:
    """`51.2 ± 0.4` in percent: mean and standard deviation of the defined values."""
    defined = [value for value in values if value is not None]
    if len(defined) < 2:
        return percent(defined[0] if defined else None)
    return f"{percent(statistics.mean(defined))} ± {100 * statistics.stdev(defined):.1f}"


def write_runs(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes `sweep.csv`: one row a run, with its overrides and its means, unrounded."""
    keys = [key for key in dict.fromkeys(k for row in rows for k in row["overrides"]) if key not in ("seed", *FACTS)]
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
