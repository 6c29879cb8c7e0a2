"""Predictions written while they come: a row of scores an image, its regions, its picture."""

from __future__ import annotations

import csv
import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from anomaly_vlm.data import Batch
from anomaly_vlm.errors import unknown_choice
from anomaly_vlm.files import clear_unfinished, whole_file
from anomaly_vlm.methods.base.method import AnomalyMethod
from anomaly_vlm.methods.base.prediction import Prediction, boxes_of
from anomaly_vlm.methods.base.verdict import Verdict, judge
from anomaly_vlm.metrics.thresholds import NOT_OK, OK, Threshold
from anomaly_vlm.names import csv_cell, slug
from anomaly_vlm.reporting.background import Background
from anomaly_vlm.reporting.curves import score_histograms
from anomaly_vlm.reporting.pictures import read_rows, remove_pictures, save_panel
from anomaly_vlm.reporting.trackers import Logged
from anomaly_vlm.runs.build import Run

Pictures = Literal["all", "worst", "false"]
SCORES = ("path", "score", "percentile", "decision", "picture")
REGIONS = ("path", "left", "top", "right", "bottom", "area", "peak")
WORST = 20  # pictures of `pictures=worst`, and of a logger
MOST_ROWS = 10_000  # images in the table of a logger; wandb takes no more


class _Score(NamedTuple):
    """A score for a histogram."""

    category: str
    label: int
    score: float


def _key(decision: str) -> str:
    return {OK: "ok", NOT_OK: "not_ok"}[decision]


def pictures_wanted(word: str | None) -> Pictures:
    """What the user says of pictures.

    Raises:
        UserError: Another word.
    """
    word = {"true": "all", "none": "false"}.get((word or "all").lower(), (word or "all").lower())
    if word not in get_args(Pictures):
        raise unknown_choice("pictures", word, get_args(Pictures))
    return word  # type: ignore[return-value]


def colours_of(method: AnomalyMethod, heat: np.ndarray, threshold: Threshold | None) -> dict[str, Any]:
    """How a map `[H, W]` is drawn: arguments `scale`, `blend` and, with a threshold, `contour` of `overlay_picture`.

    With a threshold it is clear where an image is as any good part, and red from the threshold on. Otherwise the scale is
    the method's `color_range`; without one from 0 to 1 where the map holds probabilities, else the map's own.
    """
    if threshold is not None:
        return {"scale": (threshold.clear, threshold.pixel), "contour": threshold.pixel, "blend": "heat"}
    extremes = (float(heat.min()), float(heat.max()))
    scale = method.color_range or ((0.0, 1.0) if extremes[0] >= 0 and extremes[1] <= 1 else extremes)
    return {"scale": extremes if scale == "per_image" else scale, "blend": method.overlay}


@dataclass(frozen=True)
class Scored:
    """What is written about one image.

    Attributes:
        path: The image file.
        index: Its position among the images.
        verdict: Score and, where there is a threshold, decision and regions.
        picture: Name of its picture in the output folder; empty for none.
        drawing: What `save_panel` needs besides the picture itself.
    """

    path: str
    index: int
    verdict: Verdict
    picture: str
    drawing: dict[str, Any]


class PredictionWriter:
    """Appends to `scores.csv` after every batch and writes `pictures/` beside, so that an interrupted run keeps its results.

    Where the checkpoint has a threshold, rows have a decision, and `regions.csv` lists where the maps are above it. How maps
    are drawn: `colours_of`.

    Args:
        run: Its data and its method.
        folder: Existing folder of the run.
        root: Folder that all images lie in: pictures are named by what is below it.
        pictures: Of which images pictures are written: `all`, the `worst` ones at the end, or none (`false`).
    """

    def __init__(self, run: Run, folder: Path, root: Path, pictures: Pictures = "all") -> None:
        self.run, self.folder, self.root, self.pictures = run, folder, root, pictures
        self.counts: Counter[tuple[str, str]] = Counter()
        self.background = Background()
        self._names: set[str] = set()
        self._worst: list[tuple[float, int, Scored]] = []
        clear_unfinished(folder)
        remove_pictures(folder)
        self._new("scores.csv", SCORES)
        (folder / "regions.csv").unlink(missing_ok=True)
        if run.method.decision_thresholds:
            self._new("regions.csv", REGIONS)

    def write(self, batch: Batch, prediction: Prediction) -> None:
        """Writes a batch's scores, and hands its pictures to the thread that draws them."""
        dataset, maps = self.run.data.dataset("test"), prediction.map.cpu().numpy()
        for i, score in enumerate(prediction.score.tolist()):
            index, threshold = int(batch.index[i]), self.run.method.decision_thresholds.get(batch.category[i])
            size = dataset.own_size(index) if threshold else (1, 1)
            verdict = judge(score, maps[i], size, threshold)
            self.counts[batch.category[i], verdict.decision] += 1
            path = batch.path[i]
            picture = "" if self.pictures == "false" else self._name(path)
            note = f"; {prediction.notes[i]}" if prediction.notes else ""
            drawing = {
                "heat": maps[i].copy(),
                "boxes": boxes_of(prediction, i),
                "title": f"{self._headline(verdict, threshold)} | {self._below(path)}{note}",
                **colours_of(self.run.method, maps[i], threshold),
            }
            scored = Scored(path, index, verdict, picture, drawing)
            self._append_rows(scored)
            if self.pictures == "all":
                self.background.call(self._draw, scored)
            elif self.pictures == "worst":
                heapq.heappush(self._worst, (score, -index, scored))
                if len(self._worst) > WORST:
                    heapq.heappop(self._worst)

    def finish(self) -> None:
        """Writes the pictures of the worst images, where these are wanted, and names them in `scores.csv`."""
        for _, _, scored in sorted(self._worst, key=lambda entry: entry[:2], reverse=True):
            self.background.call(self._draw, scored)
        if self.pictures == "worst":
            keep = {scored.picture for _, _, scored in self._worst}
            rows = read_rows(self.folder / "scores.csv")
            with whole_file(self.folder / "scores.csv") as file:
                writer = csv.writer(file)
                writer.writerow(SCORES)
                writer.writerows([*row[:-1], row[-1] if row[-1] in keep else ""] for row in rows)

    def logged(self, stage: str) -> Logged:
        """What the prediction has found, as loggers take it, read from what was written; see `finish`.

        Args:
            stage: In front of every name.
        """
        table = self.folder / "scores.csv"
        rows = [(path, float(score), decision, picture) for path, score, _, decision, picture in read_rows(table)]
        scores = [score for _, score, _, _ in rows]
        decided = Counter(decision for _, _, decision, _ in rows if decision)
        worst = sorted((row for row in rows if row[3]), key=lambda row: -row[1])[:WORST]
        return Logged(
            stage,
            {
                "images": len(rows),
                "mean_score": float(np.mean(scores)),
                **{_key(word): n for word, n in decided.items()},
            },
            ("path", "score", "decision"),
            [row[:3] for row in rows[:MOST_ROWS]],
            histograms=score_histograms([_Score("all", -1, score) for score in scores]),
            pictures={"highest": [(self.folder / row[3], f"score {row[1]:.4g}: {row[0]}") for row in worst]},
            files=[table],
        )

    def summary(self) -> list[str]:
        """What the person at the terminal is told: `17 OK, 7 NOT OK at 0.18 (at most 5 % false alarms; ...)`."""
        lines = []
        for category, threshold in self.run.method.decision_thresholds.items():
            good, bad = (self.counts[category, decision] for decision in (OK, NOT_OK))
            if good + bad:
                lines.append(f"{good:,} OK, {bad:,} NOT OK at {threshold.score:.3g} ({threshold.summary})")
        return lines

    def _draw(self, scored: Scored) -> None:
        """Draws one picture, of the user's own image in its own shape."""
        place = self.folder / scored.picture
        for folder in reversed(place.relative_to(self.folder).parents[:-1]):
            (self.folder / folder).mkdir(exist_ok=True)
        drawing = dict(scored.drawing)
        image, heat = self.run.data.dataset("test").original(scored.index), drawing.pop("heat")
        save_panel(place, image, heat, None, score=scored.verdict.score, **drawing)

    def _headline(self, verdict: Verdict, threshold: Threshold | None) -> str:
        made_by = f"{self.run.facts['method']}, {self.run.facts['backbone']}"
        if threshold is None:
            return f"score {verdict.score:.3g} | {made_by}"
        sign = ">" if verdict.decision == NOT_OK else "<="
        return f"{verdict.decision}: score {verdict.score:.3g} {sign} {threshold.score:.3g} | {made_by}"

    def _below(self, path: str) -> str:
        """A path without the folder that all images lie in."""
        file = Path(path)
        return str(file.relative_to(self.root)) if file.is_relative_to(self.root) else str(file)

    def _name(self, path: str) -> str:
        """A name for the picture of an image that tells where the image lies, each once."""
        parts = [slug(part) for part in Path(self._below(path)).parts if part not in ("/", "..")]
        stem = "/".join(["pictures", *parts[:-1], slug(Path(path).stem)])
        name, number = stem, 2
        while name.lower() in self._names:
            name, number = f"{stem}_{number}", number + 1
        self._names.add(name.lower())
        return f"{name}.png"

    def _append_rows(self, scored: Scored) -> None:
        verdict = scored.verdict
        percentile = "" if verdict.percentile is None else f"{verdict.percentile:.4g}"
        row = [csv_cell(scored.path), f"{verdict.score:.9g}", percentile, verdict.decision, scored.picture]
        self._append("scores.csv", [row])
        if verdict.regions:
            path = csv_cell(scored.path)
            rows = [[path, *region.box, region.area, f"{region.peak:.6g}"] for region in verdict.regions]
            self._append("regions.csv", rows)

    def _new(self, name: str, columns: tuple[str, ...]) -> None:
        with (self.folder / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(columns)

    def _append(self, name: str, rows: Sequence[Sequence[Any]]) -> None:
        with (self.folder / name).open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
