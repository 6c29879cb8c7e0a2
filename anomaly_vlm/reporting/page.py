"""One HTML page about runs: counts, histograms, curves, pictures. It needs no network and no other file."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from anomaly_vlm.errors import UserError
from anomaly_vlm.files import read_json
from anomaly_vlm.metrics.thresholds import NOT_OK, Proportion
from anomaly_vlm.names import category_and_metric, shown
from anomaly_vlm.reporting.curves import is_logarithmic, score_edges
from anomaly_vlm.reporting.page_curves import (
    Panel,
    Rows,
    auroc,
    auroc_by_category,
    curve_panels,
    defect_panel,
    line,
    roc,
    run_panel,
)
from anomaly_vlm.reporting.tables import categories, is_road, percent, shown_columns

BINS, MOST_PICTURES, MOST_BYTES = 30, 24, 12_000_000  # of a page, all runs together
COLUMNS = ("path", "category", "label", "score", "decision", "picture")
LEFT, WIDTH, FLOOR, HEIGHT = 20.0, 440.0, 160.0, 150.0  # of a histogram's drawing


@dataclass
class RunPage:
    """What the page says about one run; texts are escaped where they are filled in.

    Attributes:
        name: The run's folder.
        rows: Its images: path, category, label, score, decision, picture, and the `decision_score` that the decision is
            made by.
        record: `metrics.json` of an evaluation; empty for a prediction.
        limits: By category the score above which an image is rejected.
        lines: Backbone, data and notes, shown above the tables.
        settings: `config.yaml`.
        pictures: Those that are shown.
        panels: Its curves.
    """

    name: str
    rows: list[dict[str, str]]
    record: Mapping[str, Any] = field(default_factory=dict)
    limits: Mapping[str, float] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    settings: str = ""
    pictures: list[dict[str, Any]] = field(default_factory=list)
    panels: list[Panel] = field(default_factory=list)

    def count(self, decision: str) -> int:
        """Images that are decided so."""
        return sum(row["decision"] == decision for row in self.rows)

    def _of(self, label: str) -> str:
        members = [row for row in self.rows if row["label"] == label and row["decision"]]
        return str(Proportion(sum(row["decision"] == NOT_OK for row in members), len(members))) if members else ""

    @property
    def found(self) -> str:
        """Defective images that are rejected, with the 95 % interval."""
        return self._of("1")

    @property
    def false_alarms(self) -> str:
        """Good images that are rejected, with the 95 % interval."""
        return self._of("0")

    @property
    def auroc(self) -> str:
        """Mean image AUROC over the categories in percent, with its 95 % interval; empty without labels."""
        return auroc_by_category(self.rows)

    @property
    def decided(self) -> bool:
        """Whether images were decided, not only scored."""
        return any(row["decision"] for row in self.rows)

    @property
    def heading(self) -> str:
        """The method where the record names it, else the folder."""
        return str(self.record.get("method") or self.name)

    @property
    def row_name(self) -> str:
        """What a row of the table of metrics is: of road scenes a score, else a category."""
        return "score" if is_road(self.record.get("results", {})) else "category"

    @property
    def metric_columns(self) -> dict[str, str]:
        """Metrics of the table of results with their titles, those of the console; others are in `metrics.json`."""
        results = self.record.get("results", {})
        there = {category_and_metric(key)[1] for key in results}
        return {name: title for name, title in shown_columns(results).items() if name in there}

    @property
    def metrics(self) -> list[list[str]]:
        """Rows of the table of metrics: each category, then the mean over them."""
        results = self.record.get("results", {})
        rows = [*categories(results), *(["mean"] if self.metric_columns else [])]
        return [[row, *(percent(results.get(f"{row}/{name}")) for name in self.metric_columns)] for row in rows]

    @property
    def histograms(self) -> list[dict[str, Any]]:
        """A histogram of the scores of each category."""
        return [
            histogram([row for row in self.rows if row["category"] == name], name, self.limits.get(name))
            for name in dict.fromkeys(row["category"] for row in self.rows)
        ]

    @property
    def has_categories(self) -> bool:
        """Whether its images have categories: those of a prediction without a threshold have none."""
        return any(row["category"] for row in self.rows)

    @property
    def groups(self) -> list[dict[str, Any]]:
        """What is rejected in each folder of images, which is a defect type in most data sets."""
        groups: dict[tuple[str, str], list[dict[str, str]]] = {}
        for row in self.rows:
            groups.setdefault((row["category"], Path(row["path"]).parent.name), []).append(row)
        found = []
        for (category, folder), members in groups.items():
            share = Proportion(sum(row["decision"] == NOT_OK for row in members), len(members))
            low, high = share.interval()
            decided = any(row["decision"] for row in members)
            found.append(
                {
                    "category": category,
                    "folder": folder,
                    "total": share.total,
                    "rejected": share.count if decided else "-",
                    "interval": f"{100 * low:.0f} to {100 * high:.0f} %" if decided else "-",
                    "highest": f"{max(float(row['decision_score']) for row in members):.4g}",
                }
            )
        return found


def histogram(rows: Sequence[Mapping[str, str]], category: str, limit: float | None) -> dict[str, Any]:
    """The bars of a histogram of scores: good (or unlabelled) images beside defective ones.

    Where there is a limit, they are the scores that are compared with it.
    """
    scores = np.array([float(row["score" if limit is None else "decision_score"]) for row in rows])
    edges = score_edges(scores if limit is None else np.array([*scores, limit]), BINS)
    scale = np.log if (logarithmic := is_logarithmic(edges)) else np.asarray
    bad = np.array([row["label"] == "1" for row in rows])
    counts = {"good": np.histogram(scores[~bad], edges)[0], "bad": np.histogram(scores[bad], edges)[0]}
    most, step = max(1, *(int(values.max()) for values in counts.values())), WIDTH / BINS
    bars = [
        {
            "kind": kind,
            "x": round(LEFT + i * step + (step / 2 if kind == "bad" else 0), 1),
            "y": round(FLOOR - HEIGHT * value / most, 1),
            "width": round(step / 2, 1),
            "height": round(HEIGHT * value / most, 1),
            "tooltip": f"{int(value)} images, {edges[i]:.4g} to {edges[i + 1]:.4g}",
        }
        for kind, values in counts.items()
        for i, value in enumerate(values)
        if value
    ]
    labelled = any(row["label"] for row in rows)
    legend = "blue: good, red: defective" if labelled else "blue: all images"
    return {
        "category": category,
        "bars": bars,
        "limit": None if limit is None else round(LEFT + WIDTH * _share(scale([edges[0], limit, edges[-1]])), 1),
        "low": f"{edges[0]:.4g}",
        "high": f"{edges[-1]:.4g}",
        "legend": legend
        + ("" if limit is None else f"; dashed: the threshold {limit:.4g}")
        + ("; logarithmic scale" if logarithmic else ""),
    }


def _share(values: np.ndarray) -> float:
    """Where the second value lies between the first and the third."""
    return float((values[1] - values[0]) / (values[2] - values[0]))


def read_run(folder: Path, *, most: int = MOST_PICTURES, most_bytes: int = MOST_BYTES) -> RunPage:
    """Reads what an evaluation or a prediction has left.

    Args:
        folder: The run's folder.
        most: Number of pictures that are shown.
        most_bytes: Bytes that they take together.

    Raises:
        UserError: There is neither.
    """
    table = next((folder / name for name in ("images.csv", "scores.csv") if (folder / name).is_file()), None)
    if table is None:
        raise UserError(f"run={folder}: no images.csv or scores.csv: give the folder of an evaluation or a prediction")
    try:
        with table.open(newline="", encoding="utf-8") as file:
            found = list(csv.DictReader(file))
        rows = [{key: row.get(key) or "" for key in COLUMNS} for row in found]
        for row, cells in zip(rows, found, strict=True):
            row["decision_score"] = cells.get("single_image_score") or row["score"]
        [(float(row["score"]), float(row["decision_score"])) for row in rows]
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"'{table}' cannot be read ({error}): run the evaluation or prediction again") from error
    record = _json(folder / "metrics.json")
    decided = {name: entry["threshold"] for name, entry in record.get("decisions", {}).items()}
    own = {name: entry["score"] for name, entry in _json(folder / "thresholds.json").items()}
    limits = {**own, **decided}
    if table.name == "scores.csv" and len(limits) == 1:
        rows = [{**row, "category": row["category"] or next(iter(limits))} for row in rows]
    facts = [str(record[key]) for key in ("backbone", "data", "note") if record.get(key)]
    unreadable = folder / "unreadable.csv"
    if unreadable.is_file():
        facts.append(f"{len(unreadable.read_text(encoding='utf-8').splitlines()) - 1} files could not be read")
    config = folder / "config.yaml"
    return RunPage(
        shown(folder),
        rows,
        record,
        limits,
        facts,
        config.read_text(encoding="utf-8", errors="replace") if config.is_file() else "",
        _pictures(folder, rows, most, most_bytes),
        _panels(folder, rows),
    )


def _panels(folder: Path, rows: Rows) -> list[Panel]:
    """The curves of the evaluation, or the ROC of the labelled images where it has left none; then by type of defect."""
    panels = curve_panels(folder)
    good, bad = ([float(row["score"]) for row in rows if row["label"] == label] for label in "01")
    if not panels and good and bad:
        panels = [Panel("image ROC", [line(f"AUROC {auroc(good, bad)}", roc(good, bad), 0)], True)]
    by_defect = defect_panel(rows)
    return panels if by_defect is None else [*panels, by_defect]


def _json(path: Path) -> dict[str, Any]:
    content = read_json(path, what="record of a run", way="run it again") if path.is_file() else {}
    return content if isinstance(content, dict) else {}


def _pictures(folder: Path, rows: Sequence[Mapping[str, str]], most: int, most_bytes: int) -> list[dict[str, Any]]:
    """Pictures as JPEG in base 64: what was decided wrongly first, then by falling score."""
    named = [row for row in rows if row["picture"]]
    named.sort(key=lambda row: (not _is_wrong(row), -float(row["score"])))
    found: list[dict[str, Any]] = []
    left = most_bytes
    for row in named:
        place = (folder / row["picture"]).resolve()
        if len(found) == most or not place.is_relative_to(folder.resolve()) or not place.is_file():
            continue
        buffer = io.BytesIO()
        with Image.open(place, formats=("PNG", "JPEG")) as image:
            image.convert("RGB").save(buffer, "JPEG", quality=80)
        data = base64.b64encode(buffer.getvalue()).decode("ascii")
        left -= len(data)
        if left < 0:
            break
        kind = ("missed: " if row["label"] == "1" else "false alarm: ") if _is_wrong(row) else ""
        caption = f"{kind}{shown(row['path'])}, score {float(row['score']):.4g} {row['decision']}".strip()
        found.append({"data": data, "caption": caption, "wrong": _is_wrong(row)})
    return found


def _is_wrong(row: Mapping[str, str]) -> bool:
    return bool(row["label"] and row["decision"]) and (row["decision"] == NOT_OK) != (row["label"] == "1")


def write_page(folders: Sequence[Path]) -> str:
    """The page about runs, side by side in its first table.

    Args:
        folders: Of evaluations and predictions.

    Returns:
        HTML.
    """
    import jinja2

    share = len(folders)
    runs = [read_run(folder, most=max(1, MOST_PICTURES // share), most_bytes=MOST_BYTES // share) for folder in folders]
    source = (Path(__file__).parent / "page.html.j2").read_text(encoding="utf-8")
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(source)
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    together = run_panel({run.name: run.rows for run in runs})
    return template.render(title=title, runs=runs, decided=any(run.decided for run in runs), together=together)
