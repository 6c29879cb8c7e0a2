"""Predictions written while they come: a scores row and a heat map an image."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from anomaly_vlm.data import Batch
from anomaly_vlm.methods.base.prediction import Prediction
from anomaly_vlm.methods.base.verdict import Verdict, judge
from anomaly_vlm.metrics.thresholds import NOT_OK, OK
from anomaly_vlm.names import csv_cell, slug
from anomaly_vlm.reporting.pictures import save_panel
from anomaly_vlm.runs.build import Run
from anomaly_vlm.runs.outcome import boxes_of

SCORES = ("path", "score", "percentile", "decision")
REGIONS = ("path", "left", "top", "right", "bottom", "area", "peak")


class PredictionWriter(Callback):
    """Appends to `scores.csv` and writes `pictures/*.png` after every batch, so that an interrupted run keeps its results.

    Where the checkpoint has a threshold, rows have a decision, and `regions.csv` lists where the maps are above it.
    The colour scale of a heat map is the method's `color_range`; without one from 0 to 1 where its maps are probabilities,
    else the map's own.
    """

    def __init__(self, run: Run, folder: Path) -> None:
        self.run, self.folder = run, folder
        self.counts: Counter[tuple[str, str]] = Counter()
        (folder / "pictures").mkdir(exist_ok=True)
        self._new("scores.csv", SCORES)
        if run.method.decision_thresholds:
            self._new("regions.csv", REGIONS)

    def on_predict_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Prediction, batch: Batch, *_: Any
    ) -> None:
        """Writes a batch's scores and pictures."""
        thresholds = self.run.method.decision_thresholds
        dataset = self.run.data.dataset("test")
        maps = outputs.map.cpu().numpy()
        for i, (path, score) in enumerate(zip(batch.path, outputs.score.tolist(), strict=True)):
            picture = dataset.original(int(batch.index[i]))
            verdict = judge(score, maps[i], (picture.shape[1], picture.shape[0]), thresholds.get(batch.category[i]))
            self.counts[batch.category[i], verdict.decision] += 1
            self._write(path, verdict)
            heat = maps[i]
            extremes = (float(heat.min()), float(heat.max()))
            scale = self.run.method.color_range or ((0.0, 1.0) if extremes[0] >= 0 and extremes[1] <= 1 else extremes)
            note = f"; {outputs.notes[i]}" if outputs.notes else ""
            save_panel(
                self.folder / "pictures" / f"{int(batch.index[i]):05d}_{slug(Path(path).stem)}.png",
                picture,
                heat,
                None,
                score=float(outputs.score[i]),
                title=f"{path}{note} | {self.run.facts['method']}, {self.run.facts['backbone']}",
                scale=extremes if scale == "per_image" else scale,
                boxes=boxes_of(outputs, i),
                blend=self.run.method.overlay,
            )

    def summary(self) -> list[str]:
        """What the person at the terminal is told: `17 OK, 7 NOT OK at 0.18 (at most 5 % false alarms; ...)`."""
        lines = []
        for category, threshold in self.run.method.decision_thresholds.items():
            good, bad = (self.counts[category, decision] for decision in (OK, NOT_OK))
            if good + bad:
                lines.append(f"{good:,} OK, {bad:,} NOT OK at {threshold.score:.3g} ({threshold.summary})")
        return lines

    def _write(self, path: str, verdict: Verdict) -> None:
        percentile = "" if verdict.percentile is None else f"{verdict.percentile:.4g}"
        self._append("scores.csv", [[csv_cell(path), f"{verdict.score:.9g}", percentile, verdict.decision]])
        if verdict.regions:
            rows = [[csv_cell(path), *region.box, region.area, f"{region.peak:.6g}"] for region in verdict.regions]
            self._append("regions.csv", rows)

    def _new(self, name: str, columns: tuple[str, ...]) -> None:
        with (self.folder / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(columns)

    def _append(self, name: str, rows: list[list[Any]]) -> None:
        with (self.folder / name).open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
