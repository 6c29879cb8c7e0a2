"""Predictions written while they come: a scores row and a heat map an image."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from anomaly_vlm.data import Batch
from anomaly_vlm.methods.base.prediction import Prediction
from anomaly_vlm.names import slug
from anomaly_vlm.reporting.pictures import save_panel
from anomaly_vlm.runs.build import Run
from anomaly_vlm.runs.outcome import boxes_of


class PredictionWriter(Callback):
    """Appends to `scores.csv` and writes `pictures/*.png` after every batch, so that an interrupted run keeps its results.

    The colour scale of a heat map is the method's `color_range`; without one from 0 to 1 where its maps are probabilities,
    else the map's own.
    """

    def __init__(self, run: Run, folder: Path) -> None:
        self.run, self.folder = run, folder
        (folder / "pictures").mkdir(exist_ok=True)
        with (folder / "scores.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(["path", "score"])

    def on_predict_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Prediction, batch: Batch, *_: Any
    ) -> None:
        """Writes a batch's scores and pictures."""
        with (self.folder / "scores.csv").open("a", newline="", encoding="utf-8") as file:
            rows = zip(batch.path, outputs.score.tolist(), strict=True)
            csv.writer(file).writerows([path, f"{score:.9g}"] for path, score in rows)
        dataset = self.run.data.dataset("test")
        for i, path in enumerate(batch.path):
            heat = outputs.map[i].cpu().numpy()
            extremes = (float(heat.min()), float(heat.max()))
            scale = self.run.method.color_range or ((0.0, 1.0) if extremes[0] >= 0 and extremes[1] <= 1 else extremes)
            note = f"; {outputs.notes[i]}" if outputs.notes else ""
            save_panel(
                self.folder / "pictures" / f"{int(batch.index[i]):05d}_{slug(Path(path).stem)}.png",
                dataset.picture(int(batch.index[i])),
                heat,
                None,
                score=float(outputs.score[i]),
                title=f"{path}{note} | {self.run.facts['method']}, {self.run.facts['backbone']}",
                scale=extremes if scale == "per_image" else scale,
                boxes=boxes_of(outputs, i),
                blend=self.run.method.overlay,
            )
