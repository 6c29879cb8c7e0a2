"""`anomaly-vlm watch`: scores images of a folder as they arrive."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from anomaly_vlm.cli.arguments import asks_for_help, trusted_in, values_of
from anomaly_vlm.cli.predict import DEFAULT
from anomaly_vlm.errors import UserError
from anomaly_vlm.files import expanded, unique_folder
from anomaly_vlm.runs import stopping
from anomaly_vlm.runs.checks import writable_folder
from anomaly_vlm.runs.configs import timestamp

HELP = """usage: anomaly-vlm watch images=FOLDER [ckpt=FILE] [category=WORD] [every=1] [looks=N] [output_dir=FOLDER]

Scores the images that are in the folder and those that arrive later, and appends a row for each to scores.csv.
every: seconds between two looks; a file is scored once two looks find it the same
looks: how often to look (default: until Ctrl-C)
output_dir: with the one of an earlier watch, files that have a row are not scored again unless they have changed
trust: packages of your own that the checkpoint may name, such as trust=[mypackage]: their code runs
"""
KEYS = ("images", "ckpt", "category", "every", "looks", "output_dir", "trust")


def run(arguments: Sequence[str]) -> int:
    """Runs `anomaly-vlm watch` with its arguments; returns the exit status."""
    if asks_for_help(arguments, HELP):
        return 0
    values = values_of("watch", arguments, KEYS)
    if values["images"] is None:
        raise UserError("no folder given: add images=FOLDER, the folder that images arrive in (make: IMAGES=FOLDER)")
    images = expanded(values["images"])
    if not images.is_dir():
        raise UserError(f"images={images}: no such folder: give one that images arrive in")
    every, looks = _number("every", values["every"] or "1"), values["looks"]
    if looks is not None and not (looks.isdecimal() and int(looks)):
        raise UserError(f"looks is '{looks}': give a whole number of at least 1")
    count = None if looks is None else int(looks)
    from anomaly_vlm.api import load_checkpoint
    from anomaly_vlm.methods.base.verdict import known_category
    from anomaly_vlm.reporting.console import say
    from anomaly_vlm.runs.watch import watch

    method = load_checkpoint(values["ckpt"] or DEFAULT, trusted=trusted_in(values))
    category = known_category(method.known_categories, values["category"])
    given = values["output_dir"]
    folder = writable_folder(Path(given) if given else unique_folder(f"outputs/watch/{timestamp()}"))
    say(f"watching {images} every {every:g} s; rows go to {folder / 'scores.csv'}")
    with stopping.resume_command(*stopping.same_command("watch", arguments, output_dir=folder)):
        watch(method, images, folder, category=category, every=every, looks=count)
    return 0


def _number(key: str, word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise UserError(f"{key} is '{word}': give a number above 0")
    return value
