"""`anomaly-vlm inspect`: learns from good parts and judges images, in one go."""

from __future__ import annotations

from collections.abc import Sequence

from anomaly_vlm.cli import predict as prediction
from anomaly_vlm.cli.arguments import asks_for_help, pop_key
from anomaly_vlm.cli.fit import OPTIONS, fitted
from anomaly_vlm.errors import UserError

HELP = f"""usage: anomaly-vlm inspect method=NAME good=FOLDER images=FOLDER [bad=FOLDER] [shots=N] [key=value ...]
       anomaly-vlm inspect images=FOLDER [ckpt=FILE]    without good parts: the same as predict

'fit' and then 'predict': writes a checkpoint, scores.csv and pictures into one folder.
images, pictures: as for predict
{OPTIONS}"""


def run(arguments: Sequence[str]) -> int:
    """Runs `anomaly-vlm inspect` with its arguments; returns the exit status."""
    if asks_for_help(arguments, HELP):
        return 0
    good, rest = pop_key(arguments, "good")
    if good is None:
        return prediction.run(arguments)
    images, rest = pop_key(rest, "images")
    if images is None:
        raise UserError("no images given: add images=FOLDER, a folder with the images to judge (make: IMAGES=FOLDER)")
    prediction.check_images(images)
    learning = [word for word in rest if not word.startswith("pictures=")]
    _, folder, path = fitted("inspect", arguments, good, learning)
    from anomaly_vlm.reporting.console import is_first_process

    if not is_first_process():  # it has helped to train
        return 0
    return prediction.run([f"ckpt={path}", f"images={images}", f"output_dir={folder}", *_of_machine(rest)])


def _of_machine(words: Sequence[str]) -> list[str]:
    """Those of the words that say how images are run and what is trusted, which a checkpoint does not fix."""
    kept = ("trainer", "eval_batch_size=", "num_workers=", "cache.", "callbacks.", "pictures=", "trust=")
    return [word for word in words if word.startswith(kept)]
