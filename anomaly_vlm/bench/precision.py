"""What bfloat16 autocast changes: every method that learns, trained and scored in both precisions on drawn images.

The nano CLIP, pictures drawn at 112 px, 24 training images, one epoch, 60 test images, the CPU; VL4AD on drawn roads.
`scored`: the weights of the run in float32, evaluated in bf16-mixed. `trained`: trained in it from the same start.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from rich.table import Table

from anomaly_vlm.files import write_text
from anomaly_vlm.reporting.console import say, show
from anomaly_vlm.runs.checkpoints import Checkpoint
from anomaly_vlm.runs.compose import compose
from anomaly_vlm.runs.configs import composed, from_checkpoint
from anomaly_vlm.runs.evaluate import evaluate
from anomaly_vlm.runs.fit import fit
from anomaly_vlm.runs.groups import choices
from anomaly_vlm.runs.instantiate import method_class

METRICS = ("image_auroc", "pixel_auroc", "pixel_aupro")
BOUND = {"scored": 0.02, "trained": 0.05}  # of the difference of any of these means, as fractions
COLUMNS = ("method", "precision", *METRICS, "largest difference", "bound", "met")
LEFT_OUT = ("dinov2", "sam")  # the linear heads on towers that are no CLIP
LIMITS = ("train_limit=24", "eval_limit=60", "epochs=1")
QUIET = (
    "pictures.per_category=0",
    "pictures.curves=false",
    "compare_untrained=false",
    "callbacks.progress=none",
    "logger=none",
)
OPTIONS = {
    "promptad": ("shots=1",),
    "finegrainedad": ("shots=1",),
    "filo": ("epochs=3", "train_limit=120"),  # its small rates need more steps before its maps are above chance
}
BF16 = "trainer.precision=bf16-mixed"


def run(folder: Path, *, quick: bool) -> None:
    """Prints the table, writes `precision.csv` and `precision.md` into `folder`. `quick` runs on random weights at 64 px."""
    backbone, side = ("tiny_random", 64) if quick else ("nano", 112)
    title = f"{backbone} at {side} px, {', '.join(LIMITS)}"
    table = Table(title=title, title_justify="left", pad_edge=False)
    for column in COLUMNS:
        table.add_column(column)
    lines: list[tuple[str, ...]] = []
    for name in learning_methods():
        for line in compared(name, folder / name, backbone, side):
            lines.append(line)
            table.add_row(*line)
            say("  ".join(line))
        write_lines(folder, lines)
    show(table)
    say(f"written: {folder / 'precision.csv'}, {folder / 'precision.md'}")


def learning_methods() -> list[str]:
    """The methods of `conf/method/` that train, in order."""
    names = []
    for name in choices("method"):
        if name in LEFT_OUT:
            continue
        cfg = compose([f"method={name}", *OPTIONS.get(name, ())])
        if method_class(cfg.method).loss_terms and cfg.train_on != "nothing":
            names.append(name)
    return names


def compared(name: str, folder: Path, backbone: str, side: int) -> Iterator[tuple[str, ...]]:
    """The lines of one method: float32, then both ways of bfloat16 with their differences from it.

    Args:
        name: The method's name in `conf/method/`.
        folder: Of its runs.
        backbone: Its name in `conf/backbone/`.
        side: Of the pictures, and of the input, in pixels.
    """
    options = OPTIONS.get(name, ())
    words = [f"method={name}", *options]
    if name != "vl4ad":  # whose backbone and road scenes have sizes of their own
        words.append(f"backbone={backbone}")
        used = [
            key for key, source in compose(words).dataset.items() if key in ("train", "test") and source is not None
        ]
        words += [f"image_size={side}", *(f"dataset.{key}.size={side}" for key in used)]
    words += [
        *LIMITS,
        *QUIET,
        "trainer=cpu",
        "seed=0",
        *options,
    ]
    whole = _trained(words, folder / "float32")
    yield _line(name, "32-true", whole, None, None)
    checkpoint = Checkpoint.read(str(folder / "float32" / "checkpoints" / "last.ckpt"))
    cfg = from_checkpoint(
        checkpoint.config,
        [BF16, LIMITS[1], "callbacks.progress=none"],
        "evaluate",
        has_memory=bool(checkpoint.record.get("references")),
    )
    (folder / "scored").mkdir(parents=True, exist_ok=True)
    yield _line(
        name, "scored in bf16-mixed", evaluate(cfg, folder / "scored", checkpoint).means, whole, BOUND["scored"]
    )
    yield _line(name, "trained in bf16-mixed", _trained([*words, BF16], folder / "trained"), whole, BOUND["trained"])


def _trained(words: list[str], folder: Path) -> dict[str, float]:
    folder.mkdir(parents=True, exist_ok=True)
    return fit(composed([*words, f"output_dir={folder}"]), folder).means


def _line(
    name: str, precision: str, means: dict[str, float], whole: dict[str, float] | None, bound: float | None
) -> tuple[str, ...]:
    """A row of the table, in percent."""
    cells = [f"{100 * means[key]:.1f}" if key in means else "-" for key in METRICS]
    if whole is None or bound is None:
        return (name, precision, *cells, "", "", "")
    largest = max(abs(means[key] - whole[key]) for key in METRICS if key in means)
    return (name, precision, *cells, f"{100 * largest:.2f}", f"{100 * bound:g}", "yes" if largest <= bound else "NO")


def write_lines(folder: Path, lines: list[tuple[str, ...]]) -> None:
    """The lines so far as CSV and Markdown."""
    with (folder / "precision.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([COLUMNS, *lines])
    rows = [COLUMNS, ("---",) * len(COLUMNS), *lines]
    write_text(folder / "precision.md", "".join(f"| {' | '.join(row)} |\n" for row in rows))
