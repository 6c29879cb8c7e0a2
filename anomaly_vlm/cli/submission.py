"""`anomaly-vlm submission`: maps of private test images, in the form that MVTec AD 2's evaluation server takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from anomaly_vlm.cli.arguments import asks_for_help, pop_key
from anomaly_vlm.cli.evaluate import configured
from anomaly_vlm.cli.predict import check_references
from anomaly_vlm.errors import UserError
from anomaly_vlm.files import expanded
from anomaly_vlm.runs import stopping
from anomaly_vlm.runs.configs import run_folder

HELP = """usage: anomaly-vlm submission data=FOLDER [ckpt=FILE | method=NAME] [output_dir=FOLDER] [key=value ...]

Writes anomaly_images/ (float16 TIFF) and anomaly_images_thresholded/ (PNG) of MVTec AD 2's private test images, as its
evaluation server takes them. Their authors' script check_and_prepare_data_for_upload.py checks and packs the folder.
data: the folder of MVTec AD 2
ckpt: what 'train' wrote; few-shot methods: with the references of all categories (train TEST=mvtec_ad2 SHOTS=...)
"""


def run(arguments: Sequence[str]) -> int:
    """Runs `anomaly-vlm submission` with its arguments; returns the exit status."""
    if asks_for_help(arguments, HELP):
        return 0
    spec, rest = pop_key(arguments, "ckpt")
    data, overrides = pop_key(rest, "data")
    if data is None:
        raise UserError("no data given: add data=FOLDER, the folder of MVTec AD 2")
    root = expanded(data)
    if not root.is_dir():
        raise UserError(f"data={data}: no such folder: give the folder of MVTec AD 2")
    cfg, checkpoint = configured(spec, overrides, "submission")
    check_references(cfg, checkpoint)
    folder = run_folder(cfg, overrides)
    from anomaly_vlm.reporting.console import say
    from anomaly_vlm.runs.submission import write_submission

    with stopping.resume_command(*stopping.same_command("submission", arguments, output_dir=folder)):
        thresholds = write_submission(cfg, root, Path(folder), checkpoint)
    say("thresholds: " + ", ".join(f"{category} {value:.4g}" for category, value in thresholds.items()))
    say(f"submission: {folder}/anomaly_images, {folder}/anomaly_images_thresholded")
    return 0
