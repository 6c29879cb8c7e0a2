"""`anomaly-vlm nano-report`: the table that says what the embedded default is worth."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomaly_vlm.cli.arguments import values_of
from anomaly_vlm.errors import UserError
from anomaly_vlm.runs.checks import writable_folder

if TYPE_CHECKING:
    from anomaly_vlm.nano.compare import Row
    from anomaly_vlm.runs.checkpoints import Checkpoint

HELP = """usage: anomaly-vlm nano-report [magnetic_tile=FOLDER] [brain_mri=FOLDER] [ckpt=FILE] [limit=N]

Image AUROC, pixel AUROC and AUPRO of: trivial baselines, a CLIP with random weights, the nano CLIP zero-shot, and AdaCLIP on
it (ckpt; without one the default run is trained first), on held-out drawn families and on the sets whose folders are given.
"""
FOLDER = Path("outputs") / "nano_report"
SETS = ("magnetic_tile", "brain_mri")


def run(arguments: Sequence[str]) -> int:
    """Runs `anomaly-vlm nano-report` with its arguments; returns the exit status."""
    if any(word in ("-h", "--help") for word in arguments):
        sys.stdout.write(HELP)
        return 0
    values = values_of("nano-report", arguments, ("ckpt", "limit", *SETS))
    ckpt, limit = values["ckpt"], values["limit"]
    roots = {name: root for name in SETS if (root := values[name]) is not None}
    if limit is not None and not limit.isdigit():
        raise UserError(f"limit is {limit}: give a number of images for each set")
    execute(roots, ckpt, None if limit is None else int(limit), writable_folder(FOLDER))
    return 0


def execute(roots: dict[str, str], ckpt: str | None, limit: int | None, folder: Path) -> None:
    """Trains what is missing, then one table a set."""
    from anomaly_vlm.backbone import load_backbone
    from anomaly_vlm.cli import main
    from anomaly_vlm.nano.compare import Limited, compare
    from anomaly_vlm.nano.model import ARCHITECTURE, STEM
    from anomaly_vlm.reporting.console import say
    from anomaly_vlm.runs.build import build_data
    from anomaly_vlm.runs.checkpoints import Checkpoint
    from anomaly_vlm.runs.compose import compose
    from anomaly_vlm.runs.instantiate import instantiate

    composed = [
        compose(["method=adaclip", "dataset=procedural"]),
        *(compose(["method=adaclip", f"dataset={name}", f"dataset.test.root={root}"]) for name, root in roots.items()),
    ]
    for cfg in composed:
        build_data(cfg, ("test",)).check()  # all folders, before anything long starts
    if ckpt is None:
        run_folder = folder / "adaclip"
        if not (run_folder / "metrics.json").is_file() and main(
            ["train", "method=adaclip", f"output_dir={run_folder}"]
        ):
            raise UserError("the default run of AdaCLIP failed: its message stands above")
        ckpt = str(run_folder / "checkpoints" / "last.ckpt")
    learned = Checkpoint.read(ckpt)
    nano = instantiate(composed[0].backbone)
    random = load_backbone("random weights", random_seed=0, architecture=ARCHITECTURE, stem=STEM)
    tables: dict[str, list[Row]] = {}
    for cfg in composed:
        source = Limited(instantiate(cfg.dataset.test), limit)
        extra = {"nano + AdaCLIP": adaclip(cfg, learned, source)}
        backbones = {"random weights": random, "nano zero-shot": nano}
        tables[source.name] = compare(source, backbones, extra=extra, tell=say)
        show_table(f"{source.name}, {len(source.samples('test')):,} images", learned.trained_on, tables[source.name])
    write(folder / "report.csv", tables)
    say(f"written: {folder / 'report.csv'}")


def adaclip(cfg: Any, learned: Checkpoint, source: Any) -> tuple[Any, Any]:
    """Scores [N] and maps [N, S, S] of a trained AdaCLIP on a set."""
    import torch

    from anomaly_vlm.runs.build import build

    run = build(cfg, sides=("test",), test=source)
    learned.load_into(run.method)
    run.method.eval()
    with torch.inference_mode():
        made = [run.method.predict(batch).checked(batch) for batch in run.data.test_dataloader()]
    return torch.cat([one.score for one in made]).numpy(), torch.cat([one.map for one in made]).half().numpy()


def show_table(tested_on: str, trained_on: str, rows: list[Row]) -> None:
    """Prints the table of one data set, in percent; `trained_on` says what AdaCLIP learned from."""
    from rich.table import Table

    from anomaly_vlm.reporting.console import show

    title = f"nano CLIP: {tested_on}, percent; AdaCLIP: {trained_on}"
    table = Table(title=title, title_justify="left", title_style="bold", pad_edge=False)
    for column in ("", "image AUROC", "minus best trivial, 95 %", "pixel AUROC", "pixel AUPRO"):
        table.add_column(column, justify="left" if column == "" else "right")
    for row in rows:
        interval = "" if row.low is None else f"{row.low:+.1f} to {row.high:+.1f}"
        table.add_row(row.name, f"{row.image:.1f}", interval, *(_number(v) for v in (row.pixel, row.aupro)))
    show(table)


def _number(value: float) -> str:
    return f"{value:.1f}" if value == value else "-"


def write(path: Path, tables: dict[str, list[Row]]) -> None:
    """One row a set and score, every number unrounded."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["set", "name", "image_auroc", "pixel_auroc", "pixel_aupro", "minus_trivial_low", "high"])
        for name, rows in tables.items():
            writer.writerows([name, r.name, r.image, r.pixel, r.aupro, r.low, r.high] for r in rows)
