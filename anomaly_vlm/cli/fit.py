"""`anomaly-vlm fit`: learns from good parts, chooses the threshold between OK and NOT OK, and writes a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomaly_vlm.cli.arguments import asks_for_help, pop_key
from anomaly_vlm.cli.evaluate import configured
from anomaly_vlm.errors import UserError
from anomaly_vlm.runs import stopping
from anomaly_vlm.runs.configs import run_folder, shared_with_children

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from anomaly_vlm.data import FileSource
    from anomaly_vlm.runs.checkpoints import Checkpoint

OPTIONS = """good: a folder of good parts (flat or with sub-folders), a pattern, or a list; 20 are a good start
bad: defective parts; they are not learned from
shots: how many of the good parts the method compares with (default: all; half of them where it trains on its references)
category: what the parts are, for the text prompts (default: object)
false_alarms: share of good parts that may be rejected (default: 0.05)
rule: false_alarms | max_f1 | no_miss | cost; the last three need bad=FOLDER and choose on the share split=0.7 of the images
cost_ratio: of rule=cost: how many false alarms a miss is worth (default: 10)
source@dataset.train=good_plus_drawn_defects: methods that train do so on half of the good parts, with drawn defects in them
  (make: TRAIN=good_plus_drawn_defects), and the threshold is chosen on the other half
ckpt: learned weights to start from, instead of training
"""
HELP = f"""usage: anomaly-vlm fit method=NAME good=FOLDER [bad=FOLDER] [shots=N] [false_alarms=0.05] [key=value ...]
       anomaly-vlm fit ckpt=FILE good=FOLDER ...

Writes a checkpoint with what was learned and the threshold: 'anomaly-vlm predict ckpt=FILE images=FOLDER' then decides.
{OPTIONS}"""
# Half of the good parts are trained on; the threshold is chosen on the others.
DRAWN_ON_GOOD = "good_plus_drawn_defects"
NUMBERS = ("false_alarms", "cost_ratio", "split")


def run(arguments: Sequence[str]) -> int:
    """Runs `anomaly-vlm fit` with its arguments; returns the exit status."""
    if asks_for_help(arguments, HELP):
        return 0
    good, rest = pop_key(arguments, "good")
    if good is None:
        raise UserError("no good parts given: add good=FOLDER, a folder with images of good parts (make: GOOD=FOLDER)")
    fitted("fit", arguments, good, rest)
    return 0


def fitted(command: str, arguments: Sequence[str], good: str, rest: Sequence[str]) -> tuple[DictConfig, Path, Path]:
    """Learns from good parts.

    Args:
        command: Which command this is part of.
        arguments: All of its words, for the line that says how to resume.
        good: The good parts, as the user said.
        rest: The words without `good=`.

    Returns:
        The configuration, the folder, and the checkpoint in it.
    """
    values: dict[str, Any] = {}
    for key in NUMBERS:
        word, rest = pop_key(rest, key)
        if word is not None:
            values[key] = _number(key, word)
    rule, rest = pop_key(rest, "rule")
    values.update({} if rule is None else {"rule": rule})
    bad, rest = pop_key(rest, "bad")
    category, rest = pop_key(rest, "category")
    spec, overrides = pop_key(rest, "ckpt")
    if not any(word.startswith(("dataset=", "source@dataset.test=")) for word in overrides):
        overrides = ["dataset=folder", *overrides]
    cfg, checkpoint = configured(spec, overrides, command)
    if spec is None and not any(word.startswith("output_dir=") for word in overrides):
        from anomaly_vlm.runs.configs import timestamp

        cfg.output_dir = f"outputs/{command}/{cfg.name}/{timestamp()}"
    from anomaly_vlm.data import own_images
    from anomaly_vlm.runs.good_parts import VerdictOptions, fit_good_parts

    options = VerdictOptions.checked(**values)
    known = _category(checkpoint, category)
    parts = own_images(good, known, label=0, key="good", once=True)
    wrong = None if bad is None else own_images(bad, known, label=1, key="bad")
    if checkpoint is None and cfg.choices.get("source@dataset.train") == DRAWN_ON_GOOD:
        parts = _kept_from_training(cfg, good, known, parts)
    if "reader" in cfg.dataset.test:
        cfg.dataset.test.reader.category = known
    folder = run_folder(cfg, overrides)
    again = stopping.same_command(command, arguments, output_dir=folder)
    with stopping.resume_command(*again), shared_with_children(folder):
        path = fit_good_parts(
            cfg,
            folder,
            parts,
            wrong,
            options=options,
            checkpoint=checkpoint,
            typed_shots=any(word.startswith("shots=") for word in overrides),
        )
    return cfg, folder, path


def _kept_from_training(cfg: DictConfig, good: str, category: str, parts: FileSource) -> FileSource:
    """The good parts that are not trained on: a threshold says nothing about parts that the method has seen."""
    from anomaly_vlm.data.own_images import source_of
    from anomaly_vlm.runs.instantiate import instantiate

    if cfg.dataset.train.root is None:
        cfg.dataset.train.root, cfg.dataset.train.category, cfg.dataset.train.share = good, category, 0.5
    trained = {str(path) for path in instantiate(cfg.dataset.train, trusted=cfg.trust).photographs()}
    kept = [Path(sample.path) for sample in parts.samples("test") if sample.path not in trained]
    if not kept:
        raise UserError(f"all good parts are trained on: give more than one, or others with good=FOLDER than '{good}'")
    return source_of(Path(str(parts.root)), kept, category, label=0)


def _category(checkpoint: Checkpoint | None, asked: str | None) -> str:
    return asked or "object" if checkpoint is None else checkpoint.category(asked)


def _number(key: str, word: str) -> float:
    try:
        return float(word)
    except ValueError as error:
        raise UserError(f"{key} is '{word}': give a number, such as {key}=0.05") from error
