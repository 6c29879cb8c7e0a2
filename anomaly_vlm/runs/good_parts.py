"""Learning from good parts: a few-shot memory of them (or none), and the threshold between OK and NOT OK.

A good part must be scored by a method that has not learned from it, or its score says nothing about the next part. So parts
that a method holds in a memory are scored with a memory without them (leave one out, in folds where there are many), and
where a method trains on its references, it gets some of the parts and the others are scored.
"""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from omegaconf import DictConfig

from anomaly_vlm.data import FileSource, Sample
from anomaly_vlm.data.references import MemoryImages
from anomaly_vlm.errors import UserError
from anomaly_vlm.files import whole_file, write_text
from anomaly_vlm.methods.base.few_shot import FewShot
from anomaly_vlm.metrics.thresholds import (
    Rule,
    Threshold,
    better_than_chance,
    counts_at,
    from_good_parts,
    split_in_two,
    with_rule,
)
from anomaly_vlm.names import csv_cell
from anomaly_vlm.options import PositiveFloat, Range, check_arguments, option_names
from anomaly_vlm.reporting.console import is_first_process, say
from anomaly_vlm.reporting.trackers import Logged
from anomaly_vlm.runs.build import Run, build, fit_references
from anomaly_vlm.runs.checkpoints import Checkpoint, load_init
from anomaly_vlm.runs.configs import write_config
from anomaly_vlm.runs.devices import device_of, seed_everything
from anomaly_vlm.runs.good_part_scores import PartScore, left_out, score_samples
from anomaly_vlm.runs.instantiate import method_class
from anomaly_vlm.runs.saving import save_method
from anomaly_vlm.runs.tracking import tracked

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

log = logging.getLogger("anomaly_vlm")
Inside = Annotated[float, Range(low=0, high=1, open_low=True, open_high=True)]


@dataclass(frozen=True)
class VerdictOptions:
    """How the threshold is chosen.

    Args:
        false_alarms: Share of good parts that may be rejected.
        rule: `false_alarms` needs good parts alone; `max_f1`, `no_miss` and `cost` need defective ones too.
        cost_ratio: For the rule `cost`: how many false alarms a miss is worth.
        split: Share of the labelled images that these rules choose on; the others are reported.
    """

    false_alarms: Inside = 0.05
    rule: Rule = "false_alarms"
    cost_ratio: PositiveFloat = 10.0
    split: Inside = 0.7

    @classmethod
    def checked(cls, **values: Any) -> VerdictOptions:
        """The options; raises a `UserError` where one is out of its range."""
        return cls(**check_arguments(cls.__init__, values, owner="fit"))


def fit_good_parts(
    cfg: DictConfig,
    folder: Path,
    good: FileSource,
    bad: FileSource | None = None,
    *,
    options: VerdictOptions,
    checkpoint: Checkpoint | None = None,
    typed_shots: bool = False,
) -> Path:
    """Learns from good parts, chooses the threshold, and writes a checkpoint that knows both.

    Args:
        cfg: The composed configuration.
        folder: Existing folder of the run.
        good: Images of good parts, all of one category.
        bad: Images of defective parts, which nothing is learned from; None for none.
        options: How the threshold is chosen.
        checkpoint: Learned weights to start from; None trains first where the method learns.
        typed_shots: Whether the user has said how many parts go into the memory.

    Returns:
        The checkpoint.

    Raises:
        UserError: Too few parts, or a method whose scores mean nothing for single images.
    """
    if options.rule != "false_alarms" and bad is None:
        raise UserError(f"rule={options.rule} needs defective parts too: add bad=FOLDER, or use rule=false_alarms")
    seed_everything(cfg.seed)
    with tracked(cfg, folder, "fit") as tracking:
        run = _built(cfg, good, checkpoint, typed_shots)
        tracking.start(run, folder, "fit")
        learns = checkpoint is None and cfg.train_on != "nothing" and bool(run.method.loss_terms)
        path = folder / "checkpoints" / "last.ckpt"
        threshold = _fitted(run, path, good, bad, options, learns=learns, loggers=tracking.loggers)
        if threshold is not None:
            tracking.finish(Logged("fit", {"threshold": threshold.score}, files=[folder / "good_parts.csv"]))
        return path


def _fitted(
    run: Run,
    last: Path,
    good: FileSource,
    bad: FileSource | None,
    options: VerdictOptions,
    *,
    learns: bool,
    loggers: Sequence[Logger],
) -> Threshold | None:
    """Trains if `learns`, chooses the threshold, and writes both into the checkpoint `last`.

    Of several processes, which train together, the first one chooses and writes; the others get None.
    """
    cfg, folder = run.cfg, last.parent.parent
    write_config(cfg, folder)
    say(f"{run.facts['method']} on {run.facts['backbone']}")
    held = run.data.memory_images or MemoryImages(frozenset(sample.path for sample in run.data.picks.samples()))
    parts = good.samples("test")
    rest = held.without(parts)
    memory = sorted(set(parts) - set(rest), key=lambda sample: sample.path)
    leave_out = [] if run.data.memory_images is not None else memory
    if cfg.train_on == "references" and learns:
        leave_out = []  # what is learned cannot be unlearned for one part
    _check_counts(run, len(memory), len(rest), len(leave_out))
    if len(memory) == 1:
        leave_out = []  # without it there is nothing to compare with
    if run.data.memory_images is None:
        fit_references(run, folder, only_noted=bool(leave_out) and not learns)
    if learns:
        _train(run, last, loggers)
        if not is_first_process():
            return None
    scored = left_out(run, memory, leave_out)
    scored += score_samples(run, rest)
    defective = [] if bad is None else score_samples(run, bad.samples("test"))
    threshold = choose_threshold(scored, defective, options, left_out=bool(leave_out), seed=cfg.seed)
    _write(run, last, parts[0], threshold, scored, defective)
    return threshold


def _write(
    run: Run, last: Path, part: Sample, threshold: Threshold, scored: list[PartScore], defective: list[PartScore]
) -> None:
    """Writes what was learned and chosen; the checkpoint comes last, as it says that all is done."""
    folder, record = last.parent.parent, {part.category: threshold.to_record()}
    run.method.run_record["thresholds"] = record
    run.method.run_record["max_value"] = part.max_value
    _write_scores(folder / "good_parts.csv", scored, defective)
    write_text(folder / "thresholds.json", json.dumps(record, indent=1) + "\n")
    save_method(run.method, last)
    say(f"checkpoint: {last}; scores of the good parts: {folder / 'good_parts.csv'}")


def choose_threshold(
    good: Sequence[PartScore], bad: Sequence[PartScore], options: VerdictOptions, *, left_out: bool, seed: int
) -> Threshold:
    """The threshold of a category, with what it means and how it does on images that had no part in it, on the console."""
    scores, wrong = [part.score for part in good], [part.score for part in bad]
    threshold = from_good_parts(
        scores,
        [part.peak for part in good],
        [part.usual for part in good],
        false_alarms=options.false_alarms,
        left_out=left_out,
    )
    if options.rule == "false_alarms":
        kept_good, kept_bad = [], wrong
    else:
        if len(scores) < 2 or len(wrong) < 2:
            raise UserError(
                f"rule={options.rule} chooses on some images and reports others: {len(scores)} good and {len(wrong)}"
                " defective images are too few, give at least 2 of each"
            )
        chosen_good, report_good = split_in_two(len(scores), options.split, seed=seed)
        chosen_bad, report_bad = split_in_two(len(wrong), options.split, seed=seed + 1)
        threshold = with_rule(
            threshold,
            options.rule,
            [scores[i] for i in chosen_good],
            [wrong[i] for i in chosen_bad],
            cost_ratio=options.cost_ratio,
        )
        kept_good, kept_bad = [scores[i] for i in report_good], [wrong[i] for i in report_bad]
    say(f"threshold {threshold.score:.4g}: {threshold.summary}")
    for line in threshold.explained():
        say(line)
    if kept_bad:
        counts = counts_at(threshold.score, kept_good, kept_bad)
        apart = "" if not kept_good else f"on {len(kept_good) + len(kept_bad)} images kept apart: "
        alarms = f", false alarms {counts.false_alarms}" if kept_good else ""
        say(f"{apart}found {counts.found} defective parts, missed {counts.missed.count}{alarms}")
        if not better_than_chance(scores, wrong):
            log.warning("defective parts do not score higher than good ones: no threshold can tell them apart here")
    return threshold


def _built(cfg: DictConfig, good: FileSource, checkpoint: Checkpoint | None, typed_shots: bool) -> Run:
    """The run, with the number of parts in the memory and the weights of a checkpoint."""
    chosen: Any = method_class(cfg.method, trusted=cfg.trust)
    memory_images = None
    if checkpoint is not None and checkpoint.record.get("references"):
        memory_images = checkpoint.memory_images(cfg)
    elif not typed_shots and issubclass(chosen, FewShot):
        count = len(good.samples("test"))
        cfg.shots = max(1, count // 2) if cfg.train_on == "references" else count
    sides = ("train", "test") if checkpoint is None and cfg.train_on == "dataset" else ("test",)
    trains = checkpoint is None and cfg.train_on != "nothing"
    run = build(cfg, sides=sides, test=good, memory_images=memory_images, with_trainer=trains)
    run.method.to(device_of(cfg))
    if run.method.is_transductive:
        other = ", or method.fit_on=references" if "fit_on" in option_names(chosen) else ""
        raise UserError(
            f"{run.facts['method']} scores images by comparing them with each other, so that no threshold holds for the"
            f" next one: choose another method{other}"
        )
    if checkpoint is None:
        load_init(cfg, run.method)
    else:
        checkpoint.load_into(run.method)
        run.method.run_record["trained_on"] = checkpoint.trained_on
        if memory_images is not None:
            for key in {"references", "reference_contents"} & checkpoint.record.keys():
                run.method.run_record[key] = checkpoint.record[key]
    return run


def _check_counts(run: Run, memory: int, rest: int, left_out: int) -> None:
    """Raises a `UserError` where no part is left whose score says something."""
    if rest + left_out == 0:
        raise UserError(
            f"all {memory} good parts are among the references of {run.cfg.name}, and none is left to choose the threshold"
            f" on: set shots={max(1, memory // 2)} or fewer, or give more good parts"
        )
    if rest == 0 and left_out == 1:
        raise UserError(
            "one good part alone says nothing about how much good parts differ: give more, 20 are a good start"
        )


def _train(run: Run, last: Path, loggers: Sequence[Logger]) -> None:
    from anomaly_vlm.runs.fit import savers, train, try_one_step  # Lightning is read only where something is trained
    from anomaly_vlm.runs.trainer import build_trainer

    callbacks = savers(run.cfg, last.parent.parent, choosing=False)
    trainer = build_trainer(run.cfg, callbacks=callbacks, loggers=loggers, fitting=True, last=last)
    try_one_step(run)
    say(f"learning: {run.method.run_record['trained_on']}")
    train(run, trainer, last, None)


def _write_scores(path: Path, good: Sequence[PartScore], bad: Sequence[PartScore]) -> None:
    """The scores that the threshold was chosen on: path, label, score, largest map value."""
    with whole_file(path) as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "score", "map_max"])
        for label, parts in ((0, good), (1, bad)):
            writer.writerows([csv_cell(part.path), label, f"{part.score:.9g}", f"{part.peak:.9g}"] for part in parts)
