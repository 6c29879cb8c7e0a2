"""What a run leaves: table, metrics.json, results.csv, images.csv, heat maps."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from anomaly_vlm.data import Batch, collate
from anomaly_vlm.files import whole_file
from anomaly_vlm.methods.base.evaluation import EvaluationResult
from anomaly_vlm.methods.base.prediction import ImageRow, Prediction, boxes_of
from anomaly_vlm.metrics.thresholds import Threshold
from anomaly_vlm.names import PICTURE_SUFFIX, category_and_metric, csv_cell, mean_values, slug
from anomaly_vlm.reporting.console import is_first_process, say, show
from anomaly_vlm.reporting.curves import (
    CURVES,
    HISTOGRAMS,
    Curves,
    score_histograms,
    write_curves,
    write_histograms,
)
from anomaly_vlm.reporting.describe import describe_data
from anomaly_vlm.reporting.pictures import Choice, choose, named_pictures, remove_pictures, save_panel
from anomaly_vlm.reporting.plots import (
    CURVES_PICTURE,
    HISTOGRAMS_PICTURE,
    curves_picture,
    histograms_picture,
    save_picture,
)
from anomaly_vlm.reporting.record import environment, write_metrics
from anomaly_vlm.reporting.tables import SELECTION_NOTE, results_table, write_csv
from anomaly_vlm.reporting.trackers import Logged
from anomaly_vlm.runs.build import Run
from anomaly_vlm.runs.decisions import decision_lines, decision_record, decisions
from anomaly_vlm.runs.devices import precision_of
from anomaly_vlm.runs.inherited import TRAINER_KEYS


@dataclass(frozen=True)
class RunResult:
    """What a run found, and where it lies.

    Attributes:
        values: Metrics by `CATEGORY/NAME` and `mean/NAME`, fractions in [0, 1].
        rows: One row an evaluated image.
        facts: Method, backbone, data, seed, checkpoint, seconds: what the head of the table says.
        folder: The run's folder.
        checkpoint: The weights that were evaluated; None where there are none.
        curves: ROC, PR and PRO by category and level.
        pictures: Heat maps, by position of the image in the data set their place in the folder.
    """

    values: dict[str, float]
    rows: list[ImageRow]
    facts: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    checkpoint: Path | None = None
    curves: Curves = field(default_factory=dict)
    pictures: Mapping[int, str] = field(default_factory=dict)

    @property
    def means(self) -> dict[str, float]:
        """Means over the categories, by metric."""
        return mean_values(self.values)


def write_outcome(run: Run, result: EvaluationResult, folder: Path, facts: Mapping[str, Any]) -> RunResult:
    """Writes every file of an evaluation and prints its table, from the first process alone."""
    facts = {**run.facts, **facts, "choices": dict(run.cfg.choices)}
    facts.update(evaluation_scope(run, len(result.rows), epochs=facts.get("epochs")))
    meant, done = (describe_data(run.data, evaluated=n).sides["test"] for n in (None, len(result.rows)))
    facts["data"] = str(facts["data"]).replace(meant, done)
    checkpoint = folder / facts["checkpoint"] if facts.get("checkpoint") else None
    outcome = RunResult(result.values, result.rows, facts, folder, checkpoint, result.curves)
    if not is_first_process():
        return outcome
    thresholds = run.method.decision_thresholds
    counts = decisions(result.rows, thresholds)
    if counts:
        facts["decisions"] = decision_record(counts, thresholds)
    remove_pictures(folder, named_pictures(folder / "images.csv"))
    pictures = write_pictures(run, result.rows, folder / "pictures") if run.cfg.pictures.per_category else {}
    write_images(folder / "images.csv", result.rows, thresholds, pictures)
    write_csv(folder / "results.csv", result.values, facts)
    if result.curves:
        write_plots(folder, result)
    # last: metrics.json marks the run as finished
    write_metrics(folder / "metrics.json", result.values, {**facts, "environment": environment()})
    show(results_table(result.values, head=table_head(facts)))
    for line in compare_lines(result.values, facts.get("untrained", {})):
        say(line)
    for line in decision_lines(result.rows, counts, thresholds):
        say(line)
    if pictures:
        say(f"heat maps: {folder / 'pictures'}")
    say(f"results: {folder / 'metrics.json'}, {folder / 'results.csv'}, {folder / 'images.csv'}")
    return replace(outcome, pictures=pictures)


def logged(outcome: RunResult, stage: str) -> Logged:
    """What an evaluation has found, as loggers take it.

    Args:
        outcome: Of the first process; its files lie in its folder.
        stage: In front of every name.
    """
    folder, rows = outcome.folder or Path(), {row.index: row for row in outcome.rows}
    of_category: dict[str, dict[str, Any]] = {}
    for key, value in outcome.values.items():
        category, name = category_and_metric(key)
        if category == "mean_count":  # numbers of categories, no metric
            continue
        of_category.setdefault(category or "all", {})[name] = None if math.isnan(value) else value
    names = list(dict.fromkeys(name for values in of_category.values() for name in values))
    pictures: dict[str, list[tuple[Path, str]]] = {}
    for index, place in outcome.pictures.items():
        row = rows[index]
        label = {0: "normal", 1: "anomalous"}.get(row.label, "unlabelled")
        pictures.setdefault(row.category, []).append((folder / place, f"{label}, score {row.score:.4g}: {row.path}"))
    return Logged(
        stage,
        {name: value for name, value in outcome.means.items() if math.isfinite(value)},
        ["category", *names],
        [[category, *(values.get(name) for name in names)] for category, values in of_category.items()],
        outcome.curves,
        score_histograms(outcome.rows) if outcome.curves else {},
        pictures,
        [path for name in (CURVES_PICTURE, HISTOGRAMS_PICTURE) if (path := folder / name).is_file()],
        [path for name in ("results.csv", "images.csv", CURVES, HISTOGRAMS) if (path := folder / name).is_file()],
    )


def write_plots(folder: Path, result: EvaluationResult) -> None:
    """Curves and histograms of the scores, as tables and as pictures."""
    histograms = score_histograms(result.rows)
    write_curves(folder / CURVES, result.curves)
    write_histograms(folder / HISTOGRAMS, histograms)
    save_picture(folder / CURVES_PICTURE, curves_picture(result.curves))
    save_picture(folder / HISTOGRAMS_PICTURE, histograms_picture(histograms))


def evaluation_scope(run: Run, evaluated: int, *, epochs: int | None = None) -> dict[str, Any]:
    """Number of evaluated images, and a note for the table's head on what limited the run.

    Args:
        run: What has run.
        evaluated: Number of images.
        epochs: That were trained; None where nothing is known of a training.
    """
    there, chosen, notes = run.data.total("test"), len(run.data.samples("test")), []
    if chosen < there:
        notes.append(f"a trial on {chosen} test images only")
    if evaluated < chosen:
        notes.append(f"ONLY {evaluated:,} of {there:,} test images were evaluated")
    limits = {key: run.cfg.trainer.get(key) for key in TRAINER_KEYS if run.cfg.trainer.get(key)}
    if epochs and epochs < run.cfg.epochs:
        notes.append(f"stopped after {epochs} of {run.cfg.epochs} epochs")
    if limits:
        notes.append("trainer: " + ", ".join(f"{key}={value}" for key, value in limits.items()))
    if run.facts.get("texts", "as_written") != "as_written":
        notes.append(f"texts changed on purpose: {run.facts['texts']}")
    if run.facts.get("test_images_trained_on"):
        notes.append(f"{run.facts['test_images_trained_on']:,} of the test images were TRAINED ON")
    if run.facts.get("test_images_selected_on"):
        notes.append(f"the epoch was chosen by {run.facts['test_images_selected_on']:,} of the TEST IMAGES")
    if run.facts.get("validation_images_trained_on"):
        notes.append(f"{run.facts['validation_images_trained_on']:,} of the validation images were TRAINED ON")
    return {"images": evaluated, "images_in_test_set": there, **({"note": "; ".join(notes)} if notes else {})}


def table_head(facts: Mapping[str, Any]) -> list[str]:
    """The lines above every table: what was run on what, and how the weights were chosen."""
    lines = [f"{facts['method']} on {facts['backbone']}", str(facts["data"])]
    if facts.get("selection"):
        lines.append(SELECTION_NOTE[facts["selection"]])
    if facts.get("note"):
        lines.append(str(facts["note"]))
    return lines


def compare_lines(values: Mapping[str, float], untrained: Mapping[str, float]) -> Iterable[str]:
    """`pixel AUROC: untrained head 51.2 -> trained 74.9 (+23.7)`; for road scenes how far AP lies above chance."""
    share, ap = values.get("mean/prevalence", math.nan), values.get("mean/pixel_ap", math.nan)
    if share > 0 and math.isfinite(ap):
        yield f"{100 * share:.1f} % of the pixels are anomalous: AP is {ap / share:.1f} times that of chance"
    titles = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC"}
    if share > 0:
        titles["pixel_ap"] = "pixel AP"
    for name, title in titles.items():
        before, after = untrained.get(name, math.nan), values.get(f"mean/{name}", math.nan)
        if math.isfinite(before) and math.isfinite(after):
            yield f"{title}: untrained head {100 * before:.1f} -> trained {100 * after:.1f} ({100 * (after - before):+.1f})"


def write_images(
    path: Path, rows: Sequence[ImageRow], thresholds: Mapping[str, Threshold], pictures: Mapping[int, str]
) -> None:
    """One row an image: path, category, label, score, decision where there is a threshold, picture where there is one.

    Where scores depend on the other images of a category, `single_image_score` is what the decision is made by.
    """
    two_scores = any(row.single_image_score is not None for row in rows)
    with whole_file(path) as file:
        writer = csv.writer(file)
        more = ["single_image_score"] if two_scores else []
        writer.writerow(["path", "category", "label", "score", *more, "decision", "picture"])
        for row in rows:
            threshold = thresholds.get(row.category)
            decision = "" if threshold is None else threshold.decision(row.decision_score)
            label = "" if row.label < 0 else row.label
            scores = [row.score, row.decision_score] if two_scores else [row.score]
            cells = [csv_cell(row.path), csv_cell(row.category), label, *(f"{score:.9g}" for score in scores)]
            writer.writerow([*cells, decision, pictures.get(row.index, "")])


def write_pictures(run: Run, rows: Sequence[ImageRow], folder: Path) -> dict[int, str]:
    """Heat maps of a few telling images a category; by the scores that are compared with its threshold, where it has one.

    Returns:
        By position in the data set the picture's place in the run's folder.
    """
    dataset, thresholds = run.data.dataset("test"), run.method.decision_thresholds
    limits = {category: threshold.score for category, threshold in thresholds.items()}
    rows = [replace(row, score=row.decision_score) if row.category in limits else row for row in rows]
    by_category: dict[str, list[Choice[ImageRow]]] = {}
    for choice in choose(rows, per_category=run.cfg.pictures.per_category, limits=limits):
        by_category.setdefault(choice.row.category, []).append(choice)
    written: dict[int, str] = {}
    for category, chosen in by_category.items():
        predicted = [(*choice, *predict_one(run, collate([dataset[choice.row.index]]))) for choice in chosen]
        colours = category_colours(run, category, [prediction.map for *_, prediction in predicted])
        place = folder / slug(category)
        folder.mkdir(exist_ok=True)
        for row, why, batch, prediction in predicted:
            note = "".join(f"; {text}" for text in prediction.notes)
            threshold = thresholds.get(category)
            decided = "" if threshold is None else f"{threshold.decision(row.score)}: "
            file = place / f"{slug(why)}_{slug(Path(row.path).stem)}_{row.index}{PICTURE_SUFFIX}"
            save_panel(
                file,
                dataset.original(row.index) if run.cfg.pixels.fit == "square" else dataset.picture(row.index),
                prediction.map[0].cpu().numpy(),
                None if batch.mask is None else batch.mask[0].numpy(),
                score=row.score,
                title=f"{decided}{why}, {category}{note} | {row.path} | {run.facts['method']}, {run.facts['backbone']}",
                boxes=boxes_of(prediction, 0),
                **colours,
            )
            written[row.index] = file.relative_to(folder.parent).as_posix()
    return written


def category_colours(run: Run, category: str, maps: Sequence[torch.Tensor]) -> dict[str, Any]:
    """How a category's maps are drawn: by its threshold where there is one, as in `predict`, else by the maps' own range."""
    threshold = run.method.decision_thresholds.get(category)
    if threshold is None:
        return {"scale": common_scale(maps), "blend": run.method.overlay}
    return {"scale": (threshold.clear, threshold.pixel), "contour": threshold.pixel, "blend": "heat"}


def common_scale(maps: Sequence[torch.Tensor], *, tail: float = 0.01) -> tuple[float, float]:
    """Colour scale of a category's maps: the range of all but the `tail` share of lowest and highest values.

    So a few extreme values neither darken nor brighten the rest.
    """
    values = torch.cat([m.flatten() for m in maps])
    rank = max(1, round(tail * values.numel()))
    return float(values.kthvalue(rank).values), float(values.kthvalue(max(1, values.numel() - rank)).values)


def predict_one(run: Run, batch: Batch) -> tuple[Batch, Prediction]:
    """The prediction of a batch, computed on the method's device in the run's precision, and handed back on the CPU."""
    method = run.method.eval()
    moved = batch.to(method.device)
    _, precision = precision_of(run.cfg, method.device)
    with torch.inference_mode(), precision:
        prediction = method.predict(moved).checked(moved)
    return batch, prediction._replace(score=prediction.score.cpu(), map=prediction.map.cpu())
