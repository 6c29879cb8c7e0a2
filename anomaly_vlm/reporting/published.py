"""Published numbers beside measured ones: `experiments/STUDY/published.csv` and `protocol.yaml`, category by category."""

from __future__ import annotations

import csv
import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from anomaly_vlm.errors import UserError
from anomaly_vlm.names import category_and_metric
from anomaly_vlm.reporting.studies import Group, Run
from anomaly_vlm.reporting.study_table import Cell, StudyTable
from anomaly_vlm.reporting.tables import COLUMNS, SELECTION_NOTE, percent

METRICS = {  # metric of published.csv -> name of ours behind `image_` or `pixel_`
    "auroc": "auroc",
    "ap": "ap",
    "max_f1": "f1_max",
    "f1_max": "f1_max",
    "aupro": "aupro",
    "pro": "aupro",
}
PROTOCOL = ("tower", "resolution", "trained on", "epoch", "seeds")
TABLE_NUMBER = re.compile(r"A?\d+(-\d+)?")


@dataclass(frozen=True)
class PublishedRow:
    """One published value.

    Attributes:
        source: Where it was read, with the tower where a study has several; rows of one source belong together.
        method: As the study names it.
        dataset: Name of the data set in the suite.
        shots: Number of reference images.
        category: A category, or `mean`.
        metric: Name in the suite, such as `pixel_aupro`.
        value: Fraction in [0, 1].
    """

    source: str
    method: str
    dataset: str
    shots: int
    category: str
    metric: str
    value: float


@dataclass(frozen=True)
class Study:
    """What a folder of `experiments/` knows of published numbers.

    Attributes:
        name: Of the folder.
        rows: Of `published.csv`.
        protocol: Of `protocol.yaml`.
    """

    name: str
    rows: list[PublishedRow]
    protocol: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Study:
        """Reads the two files of a study.

        Raises:
            UserError: They are not there.
        """
        try:
            protocol = yaml.safe_load((folder / "protocol.yaml").read_text(encoding="utf-8"))
            with (folder / "published.csv").open(newline="", encoding="utf-8") as file:
                rows = [row for line in csv.DictReader(file) if (row := _row(line)) is not None]
        except OSError as error:
            raise UserError(f"'{folder}' has no published numbers ({error.strerror}): choose another study") from error
        return cls(folder.name, rows, protocol)

    def of(self, method: str, dataset: str | None = None, shots: int | None = None) -> list[PublishedRow]:
        """The rows of a method of the suite, on a data set and with a number of shots where these are given."""
        named = self.protocol["methods"].get(method)
        return [
            row
            for row in self.rows
            if method in self.protocol["methods"]
            and (named is None or re.sub(r"\+|\s*\(.*\)$", "", row.method) == named)
            and dataset in (None, row.dataset)
            and shots in (None, row.shots)
        ]


def comparable(study: Study, runs: Sequence[Run]) -> list[Run]:
    """The runs that a study has published numbers beside."""
    return [run for run in runs if study.of(method_of(run), dataset_of(run), run["shots"])]


def comparison(study: Study, group: Group) -> list[StudyTable]:
    """Published, measured and difference of runs that differ in their seeds alone: a table a source.

    Args:
        study: The published numbers.
        group: Measured runs.

    Returns:
        One table a source; none where nothing is published for this method, data set and number of shots.
    """
    run = group.runs[0]
    rows = study.of(method_of(run), dataset_of(run), run["shots"])
    head = [f"{run['method']} on {run['backbone']}", str(run["data"])]
    tables: list[StudyTable] = []
    for source in dict.fromkeys(row.source for row in rows):
        values = {(row.category, row.metric): row.value for row in reversed(rows) if row.source == source}
        metrics = [metric for metric in COLUMNS if any(name == metric for _, name in values)]
        titles = [
            f"{COLUMNS[metric]}, {what}" for metric in metrics for what in ("published", "measured", "difference")
        ]
        cells = []
        for category in sorted({category for category, _ in values}, key=lambda name: (name == "mean", name)):
            triples = (_triple(values.get((category, metric)), group, category, metric) for metric in metrics)
            cells.append([Cell(category), *(cell for triple in triples for cell in triple)])
        name, lines = f"{dataset_of(run)}_{len(tables) + 1}", [*head, f"published: {source}"]
        tables.append(StudyTable(name, lines, ["category"], titles, cells, protocol_lines(study)))
    return tables


def published_only(study: Study) -> list[StudyTable]:
    """The published means of a study's own methods, for when nothing has been measured yet."""
    tables = []
    for method in study.protocol["methods"]:
        rows = [row for row in study.of(method) if row.category == "mean"]
        metrics = [metric for metric in COLUMNS if any(row.metric == metric for row in rows)]
        found: dict[tuple[str, str, int], dict[str, float]] = {}
        for row in rows:
            found.setdefault((row.source, row.dataset, row.shots), {}).setdefault(row.metric, row.value)
        cells = [
            [Cell(source), Cell(dataset), Cell(str(shots)), *(Cell(percent(values.get(metric))) for metric in metrics)]
            for (source, dataset, shots), values in found.items()
        ]
        titles = [COLUMNS[metric] for metric in metrics]
        head = [f"{method}: published means, nothing measured"]
        tables.append(StudyTable(method, head, ["source", "data", "shots"], titles, cells, protocol_lines(study)))
    return tables


def protocol_lines(study: Study) -> list[str]:
    """The published protocol, for below a table."""
    lines = [f"published {key}: {study.protocol[key]}" for key in PROTOCOL if study.protocol.get(key)]
    return [*lines, *(f"note: {note}" for note in study.protocol.get("notes") or [])]


def reasons(study: Study, group: Group) -> list[str]:
    """Why measured values may differ from published ones, as far as the records of the runs tell."""
    run, found = group.runs[0], []
    asked = [name.strip() for name in str(study.protocol["backbone"]).split(",")]
    choice = (run.get("choices") or {}).get("backbone")
    if run.get("random_weights"):
        found.append("the measured backbone has random weights")
    if choice not in asked:
        found.append(f"other weights: measured on {run['backbone']}, published on {study.protocol['tower']}")
    if run.get("images") is not None and run["images"] < (run.get("images_in_test_set") or 0):
        found.append(f"part of the data: {run['images']:,} of {run['images_in_test_set']:,} test images were evaluated")
    trained = str(run["data"]).partition("tested on")[0].strip(" ,") or "not trained"
    found.append(f"training data: {trained}; published: {study.protocol['trained on']}")
    if run.get("selection"):
        found.append(f"epoch: {SELECTION_NOTE[run['selection']]}; published: {study.protocol['epoch']}")
    if run.get("image_size"):
        found.append(f"resolution: {run['image_size']} px; published: {study.protocol['resolution']}")
    found.append(f"seeds: {', '.join(str(one['seed']) for one in group.runs)}; published: {study.protocol['seeds']}")
    if run.get("test_images_trained_on"):
        found.append(f"{run['test_images_trained_on']:,} of the test images were trained on")
    if run.get("test_images_selected_on"):
        found.append(f"the epoch was chosen by {run['test_images_selected_on']:,} of the test images")
    return found


def method_of(run: Run) -> str:
    """The name of a run's method, without what tables say about its switches."""
    return str(run["method"]).partition(" ")[0]


def dataset_of(run: Run) -> str:
    """The name of a run's test set."""
    chosen = (run.get("choices") or {}).get("source@dataset.test")
    found = re.search(r"tested on (\S+)", str(run["data"]))
    return str(chosen or (found[1] if found else ""))


def _triple(published: float | None, group: Group, category: str, metric: str) -> list[Cell]:
    values = [value for run in group.runs if (value := _measured(run, category, metric)) is not None]
    measured = statistics.mean(values) if values else None
    difference = math.nan if published is None or measured is None else measured - published
    text = "-" if math.isnan(difference) else f"{100 * difference:+.1f}"
    return [Cell(percent(published)), Cell(percent(measured)), Cell(text)]


def _measured(run: Run, category: str, metric: str) -> float | None:
    """A run's value; the names of categories are compared without what separates their words."""
    for key, value in run["results"].items():
        name, found = category_and_metric(key)
        if found == metric and _plain(name) == _plain(category):
            return None if value is None else float(value)
    return None


def _row(line: dict[str, str]) -> PublishedRow | None:
    """A line of any study's `published.csv`; None for a metric that the suite does not have, or another kind of shots."""
    shots, level = line.get("shots") or "0", line["level"]
    metric = f"{level}_{METRICS[line['metric']]}" if line["metric"] in METRICS else ""
    if metric not in COLUMNS or not shots.isdigit():
        return None
    table = line.get("table") or ""
    source = line.get("source") or ("the paper" if TABLE_NUMBER.fullmatch(table) or not table else table)
    method = line.get("method") or ""
    detail = ", ".join(filter(None, [method, line.get("tower") or ""]))
    dataset = re.sub(r"[^a-z0-9]+", "_", line["dataset"].lower()).strip("_")
    dataset = {"clinicdb": "cvc_clinicdb", "colondb": "cvc_colondb"}.get(dataset, dataset)
    label = f"{source} ({detail})" if detail else source
    return PublishedRow(label, method, dataset, int(shots), line["category"], metric, float(line["value"]) / 100)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
