"""Predictions written while they come: a row of scores an image, its regions, its picture."""

from __future__ import annotations

import csv
import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
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
from anomaly_vlm.names import csv_cell, picture_names
from anomaly_vlm.reporting.background import Background
from anomaly_vlm.reporting.console import say
from anomaly_vlm.reporting.curves import score_histograms
from anomaly_vlm.reporting.pictures import named_pictures, read_rows, remove_pictures, save_panel
from anomaly_vlm.reporting.trackers import Logged
from anomaly_vlm.runs.build import Run
from anomaly_vlm.runs.journal import NAME as JOURNAL
from anomaly_vlm.runs.journal import BatchPositions, Finished, Journal, prediction_key, state_of, still_true

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
class PredictedImage:
    """One predicted image: its verdict, and what is needed to draw its picture.

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

    A journal beside them says which images are finished: where the same prediction was stopped in this folder, their rows
    and pictures stay, and `kept` names them. Where the checkpoint has a threshold, rows have a decision, and `regions.csv`
    lists where the maps are above it. How maps are drawn: `colours_of`.

    Args:
        run: Its data and its method.
        folder: Existing folder of the run.
        root: Folder that all images lie in: pictures are named by what is below it.
        pictures: Of which images pictures are written: `all`, the `worst` ones at the end, or none (`false`).

    Attributes:
        kept: By position, the images that need not be scored again.
    """

    def __init__(self, run: Run, folder: Path, root: Path, pictures: Pictures = "all") -> None:
        self.run, self.folder, self.root, self.pictures = run, folder, root, pictures
        self.counts: Counter[tuple[str, str]] = Counter()
        self.background = Background()
        self._worst: list[tuple[float, int, PredictedImage]] = []
        self._paths = [sample.path for sample in run.data.samples("test")]
        self._states = [state_of(path) for path in self._paths]
        self._names = picture_names([self._below(path) for path in self._paths]) if pictures != "false" else {}
        clear_unfinished(folder)
        key = prediction_key(run, pictures=pictures, root=str(root), categories=repr(self._categories()))
        self.journal = Journal(folder / JOURNAL, key)
        same, before = self.journal.read()
        self.kept = self._to_keep(before) if same else {}
        self._written = 0  # images of which there is a row
        named = {*named_pictures(folder / "scores.csv"), *(entry.row[-1] for entry in before.values())}
        remove_pictures(folder, named - {entry.row[-1] for entry in self.kept.values()})
        self.journal.begin(self.kept.values())
        if same is not None:
            say(self._resumed(same))
        self._new("scores.csv", SCORES)
        (folder / "regions.csv").unlink(missing_ok=True)
        if run.method.decision_thresholds:
            self._new("regions.csv", REGIONS)

    def write(self, batch: Batch, prediction: Prediction) -> None:
        """Writes a batch's scores, and hands its pictures to the thread that draws them."""
        dataset, maps = self.run.data.dataset("test"), prediction.map.cpu().numpy()
        self._write_kept(int(batch.index[0]))
        for i, score in enumerate(prediction.score.tolist()):
            index, threshold = int(batch.index[i]), self.run.method.decision_thresholds.get(batch.category[i])
            size = dataset.own_size(index) if threshold else (1, 1)
            verdict = judge(score, maps[i], size, threshold)
            self.counts[batch.category[i], verdict.decision] += 1
            path = batch.path[i]
            picture = self._names.get(index, "")
            note = f"; {prediction.notes[i]}" if prediction.notes else ""
            drawing = {
                "heat": maps[i].copy(),
                "boxes": boxes_of(prediction, i),
                "title": f"{self._headline(verdict, threshold)} | {self._below(path)}{note}",
                **colours_of(self.run.method, maps[i], threshold),
            }
            scored = PredictedImage(path, index, verdict, picture, drawing)
            finished = Finished(index, path, self._states[index], self._row(scored), self._region_rows(scored))
            self._append_rows([finished])
            self.background.call(self._complete, scored, finished)
            if self.pictures == "worst":
                heapq.heappush(self._worst, (score, -index, scored))
                if len(self._worst) > WORST:
                    heapq.heappop(self._worst)

    def finish(self) -> None:
        """Completes `scores.csv`: appends the remaining kept rows.

        With `pictures=worst` it also draws the highest-scoring images; rows of other images then name no picture.
        """
        self._write_kept(len(self._paths))
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
        """Lines for the console, such as `17 OK, 7 NOT OK at 0.18 (at most 5 % false alarms; ...)`."""
        lines = []
        for category, threshold in self.run.method.decision_thresholds.items():
            good, bad = (self.counts[category, decision] for decision in (OK, NOT_OK))
            if good + bad:
                lines.append(f"{good:,} OK, {bad:,} NOT OK at {threshold.score:.3g} ({threshold.summary})")
        return lines

    def _complete(self, scored: PredictedImage, finished: Finished) -> None:
        """Draws an image's picture, where it has one by now; then it is finished."""
        if self.pictures == "all":
            self._draw(scored)
        if not self.run.method.is_transductive:
            self.journal.add(finished)

    def _draw(self, scored: PredictedImage) -> None:
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

    def _categories(self) -> list[str]:
        return sorted({sample.category for sample in self.run.data.samples("test")})

    def _to_keep(self, before: Mapping[int, Finished]) -> dict[int, Finished]:
        """What is finished and still true, by whole batches; with `worst` without what is drawn at the end."""
        drawn = self.folder if self.pictures == "all" else None
        true = still_true(before, self._paths, self._states, self._names, drawn)
        batches = BatchPositions(self.run.data.eval_batch_size, len(self._paths))
        whole = batches.whole(set(true))
        if self.pictures == "worst":
            worst = heapq.nlargest(WORST, true.values(), key=lambda entry: (float(entry.row[1]), -entry.index))
            whole -= batches.touched({entry.index for entry in worst})
        return {i: true[i] for i in sorted(whole)}

    def _resumed(self, same: bool) -> str:
        """The line for the console where a prediction was stopped in this folder."""
        if not same:
            return "the prediction that was stopped in this folder was another one: all images are scored"
        if self.run.method.is_transductive:
            return f"{self.run.facts['method']} scores all images together: all of them are scored again"
        return f"resumes: {len(self.kept):,} of {len(self._paths):,} images are scored already"

    def _write_kept(self, until: int) -> None:
        """Appends the rows of kept images in front of a position."""
        rows = [self.kept[i] for i in range(self._written, until) if i in self.kept]
        self._written = until
        self._append_rows(rows)
        for finished in rows:
            self.counts[self.run.data.samples("test")[finished.index].category, finished.row[3]] += 1

    def _row(self, scored: PredictedImage) -> list[str]:
        verdict = scored.verdict
        percentile = "" if verdict.percentile is None else f"{verdict.percentile:.4g}"
        return [csv_cell(scored.path), f"{verdict.score:.9g}", percentile, verdict.decision, scored.picture]

    def _region_rows(self, scored: PredictedImage) -> list[list[str]]:
        path = csv_cell(scored.path)
        return [[path, *map(str, one.box), str(one.area), f"{one.peak:.6g}"] for one in scored.verdict.regions]

    def _append_rows(self, finished: Sequence[Finished]) -> None:
        if finished:
            self._append("scores.csv", [entry.row for entry in finished])
        if regions := [row for entry in finished for row in entry.regions]:
            self._append("regions.csv", regions)

    def _new(self, name: str, columns: tuple[str, ...]) -> None:
        with (self.folder / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(columns)

    def _append(self, name: str, rows: Sequence[Sequence[Any]]) -> None:
        with (self.folder / name).open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
