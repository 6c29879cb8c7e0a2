"""What a run leaves: table, metrics.json, results.csv, images.csv, heat maps."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from anomaly_vlm.data import Batch, collate
from anomaly_vlm.methods.base.method import AnomalyMethod
from anomaly_vlm.methods.base.prediction import ImageRow, Prediction
from anomaly_vlm.reporting.console import say, show
from anomaly_vlm.reporting.pictures import choose, save_panel
from anomaly_vlm.reporting.record import environment, write_metrics
from anomaly_vlm.reporting.tables import SELECTION_NOTE, results_table, write_csv
from anomaly_vlm.runs.build import Parts


def head(facts: Mapping[str, Any]) -> list[str]:
    """The lines above every table: what was run on what, and how the weights were chosen."""
    lines = [f"{facts['method']} on {facts['backbone']}", str(facts["data"])]
    if facts.get("selection"):
        lines.append(SELECTION_NOTE[facts["selection"]])
    if facts.get("note"):
        lines.append(str(facts["note"]))
    return lines


def write_outcome(
    cfg: DictConfig, folder: Path, parts: Parts, results: Mapping[str, float], facts: dict[str, Any]
) -> None:
    """Writes every file of an evaluation and prints the table."""
    if cfg.eval_limit is not None:
        facts["note"] = f"a trial on {cfg.eval_limit} test images only"
    write_metrics(folder / "metrics.json", results, {**facts, "environment": environment()})
    write_csv(folder / "results.csv", results, facts)
    write_images(folder / "images.csv", parts.method.evaluation.result.rows)
    if cfg.pictures.per_category:
        pictures(cfg, folder / "pictures", parts)
    show(results_table(results, head=head(facts)))
    for line in compare_lines(results, facts.get("untrained", {})):
        say(line)
    if (folder / "pictures").is_dir():
        say(f"heat maps: {folder / 'pictures'}")
    say(f"results: {folder / 'metrics.json'}, {folder / 'results.csv'}, {folder / 'images.csv'}")


def compare_lines(results: Mapping[str, float], untrained: Mapping[str, float]) -> Iterable[str]:
    """`pixel AUROC: untrained head 51.2 -> trained 74.9 (+23.7)`; for road scenes how far AP lies above chance."""
    share, ap = results.get("mean/prevalence", math.nan), results.get("mean/pixel_ap", math.nan)
    if share > 0 and math.isfinite(ap):
        yield f"{100 * share:.1f} % of the pixels are anomalous: AP is {ap / share:.1f} times that of chance"
    shown = (("image_auroc", "image AUROC"), ("pixel_auroc", "pixel AUROC"))
    for name, title in (*shown, ("pixel_ap", "pixel AP")) if share > 0 else shown:
        before, after = untrained.get(name, math.nan), results.get(f"mean/{name}", math.nan)
        if math.isfinite(before) and math.isfinite(after):
            yield f"{title}: untrained head {100 * before:.1f} -> trained {100 * after:.1f} ({100 * (after - before):+.1f})"


def write_images(path: Path, rows: list[ImageRow]) -> None:
    """One row an image: path, category, label, score."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "category", "label", "score"])
        writer.writerows(
            [row.path, row.category, "" if row.label < 0 else row.label, f"{row.score:.9g}"] for row in rows
        )


def pictures(cfg: DictConfig, folder: Path, parts: Parts) -> None:
    """Heat maps of a few telling images a category, predicted again one by one (the same numbers as in the evaluation)."""
    rows = {row.index: row for row in parts.method.evaluation.result.rows}
    dataset = parts.data.dataset("test")
    by_category: dict[str, list[ImageRow]] = {}
    for row in choose(list(rows.values()), per_category=cfg.pictures.per_category):
        by_category.setdefault(row.category, []).append(row)
    for category, chosen in by_category.items():
        made = [(row, *predict_one(parts.method, collate([dataset[row.index]]))) for row in chosen]
        scale = common_scale([prediction.map for _, _, prediction in made])
        for row, batch, prediction in made:
            kind = {0: "normal", 1: "anomalous"}.get(row.label, "unlabelled")
            note = "".join(f"; {text}" for text in prediction.notes)
            save_panel(
                folder / slug(category) / f"{slug(kind)}_{slug(Path(row.path).stem)}_{row.index}.png",
                dataset.picture(row.index),
                prediction.map[0].cpu().numpy(),
                None if batch.mask is None else batch.mask[0].numpy(),
                score=row.score,
                title=f"{row.category}, {kind}{note} | {row.path} | {parts.facts['method']}, {parts.facts['backbone']}",
                scale=scale,
                boxes=boxes_of(prediction, 0),
                blend=parts.method.overlay,
            )


def common_scale(maps: Sequence[torch.Tensor], *, tail: float = 0.01) -> tuple[float, float]:
    """Colour scale of a category's maps: all but the `tail` lowest and highest values, so that no few of them darken or
    brighten the rest."""
    values = torch.cat([m.flatten() for m in maps])
    rank = max(1, round(tail * values.numel()))
    return float(values.kthvalue(rank).values), float(values.kthvalue(max(1, values.numel() - rank)).values)


def predict_one(method: AnomalyMethod, batch: Batch) -> tuple[Batch, Prediction]:
    """The prediction of a batch on the method's device."""
    moved = method.transfer_batch_to_device(batch, method.device, 0)
    method.eval()
    with torch.inference_mode():
        prediction = method.predict(moved).checked(moved)
    return batch, prediction._replace(score=prediction.score.cpu(), map=prediction.map.cpu())


def boxes_of(prediction: Prediction, row: int) -> np.ndarray | None:
    """The boxes [n, 4] of an image of a prediction; None where boxes had no part in it."""
    return prediction.boxes[row].cpu().numpy() if prediction.boxes else None


def slug(text: str) -> str:
    """A file name of plain characters."""
    return re.sub(r"[^\w.-]+", "_", text).strip("_") or "image"
