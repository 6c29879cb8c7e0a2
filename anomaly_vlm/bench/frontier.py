"""What an image costs under the methods of 2024 to 2026, beside the bare tower, in one run; and MuSc over many images.

Nano CLIP at 224 px, the methods' own defaults without presets, one thread, each in a process of its own whose peak memory is
its own. Few-shot methods have four references; transductive ones score a set of images together.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.table import Table

from anomaly_vlm.api import load_backbone, load_method
from anomaly_vlm.bench._limits import at_most
from anomaly_vlm.bench._measure import Measured, measure
from anomaly_vlm.methods.base.few_shot import FewShot
from anomaly_vlm.methods.base.images import BatchesOnDemand
from anomaly_vlm.methods.base.transductive import Transductive
from anomaly_vlm.reporting.console import say, show

TOWER = "the bare tower"
SHOTS, TOGETHER = 4, 40  # references; images that score each other
METHODS: dict[str, dict[str, Any]] = {  # row -> method and options
    "winclip, 0 shots": {"name": "winclip"},
    "winclip, 4 shots": {"name": "winclip", "shots": SHOTS},
    "april_gan": {"name": "april_gan"},
    "adaclip": {"name": "adaclip"},
    "linear_heads": {"name": "linear_heads"},
    "uniadet": {"name": "uniadet"},
    "uniadet, 4 shots": {"name": "uniadet", "shots": SHOTS},
    "aaclip": {"name": "aaclip"},
    "anomalydino, 4 shots": {"name": "anomalydino", "shots": SHOTS},
    "subspacead, 4 shots": {"name": "subspacead", "shots": SHOTS},
    f"musc, {TOGETHER} together": {"name": "musc", "images": TOGETHER},
}
MANY, BOUND = 1000, 600.0  # images of one category, and MB that scoring them may take


def run(folder: Path, *, quick: bool) -> None:
    """Prints the table, writes `frontier.csv` into `folder`. `quick` runs a tower of random weights on small images."""
    backbone = "tiny_random" if quick else "nano"
    rows = {TOWER: measure("anomaly_vlm.bench.frontier:tower", {"backbone": backbone})}
    for row, options in METHODS.items():
        rows[row] = measure("anomaly_vlm.bench.frontier:method", {"backbone": backbone, **options})
    bare = per_image(rows[TOWER])
    table = Table(title=f"{backbone}, one thread", title_justify="left", pad_edge=False)
    lines: list[tuple[str, ...]] = [("method", "ms an image", "of the bare tower", "MB")]
    lines += [
        (row, f"{1000 * per_image(done):.1f}", f"{per_image(done) / bare:.2f}x", f"{max(done.memory, 0.0):.0f}")
        for row, done in rows.items()
    ]
    for column in lines[0]:
        table.add_column(column, justify="left" if column == "method" else "right")
    for line in lines[1:]:
        table.add_row(*line)
    show(table)
    count = 60 if quick else MANY
    many = measure("anomaly_vlm.bench.frontier:method", {"backbone": backbone, "name": "musc", "images": count})
    limit = at_most(f"musc over {count:,} images: peak memory", many.memory, BOUND, " MB")
    say(
        f"{limit.what} {limit.measured} (limit {limit.bound}: {'met' if limit.met else 'NOT met'}),"
        f" {1000 * per_image(many):.0f} ms an image"
    )
    with (folder / "frontier.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([*lines, (limit.what, limit.bound, limit.measured, "yes" if limit.met else "NO")])
    say(f"written: {folder / 'frontier.csv'}")


def per_image(done: Measured) -> float:
    """Seconds of an image."""
    return done.wall / float(done.facts["images"])


def tower(backbone: str) -> Callable[[], Mapping[str, Any]]:
    """A forward pass of the image tower, for a child process."""
    loaded = load_backbone(backbone)
    side = loaded.image_size
    images = torch.randn(8, 3, side, side, generator=torch.Generator().manual_seed(0))

    def work() -> dict[str, Any]:
        with torch.inference_mode():
            for image in images:
                loaded.encode_image(image[None])
        return {"images": len(images)}

    return work


def method(backbone: str, name: str, shots: int = 0, images: int = 8) -> Callable[[], Mapping[str, Any]]:
    """Predictions of a method, for a child process; learned ones as they start, which costs the same.

    Args:
        backbone: Its name in `conf/backbone/`.
        name: The method's name in `conf/method/`.
        shots: References.
        images: Images that are scored, all of one category.
    """
    built = load_method(name, backbone, overrides=["preset=published"])
    if shots and isinstance(built, FewShot):
        built.fit_references([picture(1000 + i) for i in range(shots)], category="gear")
    batches = BatchesOnDemand(built, [picture(i) for i in range(images)], ["gear"] * images)

    def work() -> dict[str, Any]:
        with torch.inference_mode():
            if isinstance(built, Transductive) and built.is_transductive:
                built.fit_test_category("gear", batches)
            for batch in batches:
                built.predict(batch)
        return {"images": images}

    return work


def picture(seed: int) -> Image.Image:
    """A random picture of 128 px."""
    pixels = torch.randint(0, 256, (128, 128, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.numpy())
