"""One study over several seeds: mean and standard deviation of every category and of the mean."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from anomaly_vlm.files import whole_file, write_text
from anomaly_vlm.names import category_and_metric, csv_cell
from anomaly_vlm.reporting.collect import FACTS, spread
from anomaly_vlm.reporting.tables import SELECTION_NOTE, categories, empty_table, plain, shown_columns


def seeds_table(rows: Sequence[dict[str, Any]], *, csv_path: Path, json_path: Path) -> Table:
    """A table over seeds: a row a category and one of the mean, with cells `mean ± deviation` in percent.

    The same numbers are written to files; undefined values are left out of the JSON.

    Args:
        rows: Rows of `collect_runs`, one a seed.
        csv_path: File to write with one row a seed and category.
        json_path: File to write with `mean` and `deviation` of every `CATEGORY/NAME`.
    """
    keys = list(dict.fromkeys(key for row in rows for key in row["results"]))
    values = {key: [row["results"].get(key) for row in rows] for key in keys}
    defined = {key: [v for v in column if v is not None] for key, column in values.items()}
    summary = {
        "seeds": [row["seed"] for row in rows],
        "mean": {key: statistics.mean(column) for key, column in defined.items() if column},
        "deviation": {key: statistics.stdev(column) for key, column in defined.items() if len(column) > 1},
    }
    write_text(json_path, json.dumps(summary, indent=1) + "\n")
    names = list(dict.fromkeys(category_and_metric(key)[1] for key in keys))
    groups = [*(categories(rows[0]["results"]) if rows else []), "mean"]
    with whole_file(csv_path) as file:
        writer = csv.writer(file)
        writer.writerow(["seed", "category", *names])
        for row in rows:
            for group in groups:
                cells = [row["results"].get(f"{group}/{name}") for name in names]
                writer.writerow([row["seed"], csv_cell(group), *("" if cell is None else cell for cell in cells)])

    head = [str(rows[0][key]) for key in FACTS] if rows else []
    head += sorted({SELECTION_NOTE[row["selection"]] for row in rows if row.get("selection")})
    head.append(f"{len(rows)} seeds: mean ± standard deviation")
    table = empty_table(head)
    table.add_column("category", no_wrap=True)
    columns = shown_columns(dict.fromkeys(keys, 0.0))
    for title in columns.values():
        table.add_column(title, justify="right")
    for group in groups:
        cells = [spread(values.get(f"{group}/{key}", [])) for key in columns]
        table.add_row(plain(group), *cells, style="bold" if group == "mean" else None, end_section=group == groups[-2])
    return table
