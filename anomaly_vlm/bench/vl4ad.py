"""VL4AD's cost at its published size: seconds for a 1024 x 2048 image by part, and the memory of the scoring.

Encoder (ConvNeXt-L trunk), decoder (both halves and the classifier), scoring (masks to pixels). Untrained weights: the time
does not depend on them. The scoring streams over the masks; beside it the plain way, all masks at full size at once.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from anomaly_vlm.backbone import load_backbone
from anomaly_vlm.bench._measure import measure
from anomaly_vlm.methods.vl4ad import VL4AD
from anomaly_vlm.methods.vl4ad.mask_decoder import DecoderOptions
from anomaly_vlm.methods.vl4ad.options import UntrainedOptions
from anomaly_vlm.methods.vl4ad.pixel_scores import anomaly_score, mask_probabilities, pixel_classes
from anomaly_vlm.reporting.console import say, show

SIZE, QUICK_SIZE = (1024, 2048), (512, 1024)
CHUNKS, QUICK_CHUNKS = (4, 16, 64), (16,)
QUERIES, CLASSES = 250, 19


def run(folder: Path, *, quick: bool) -> None:
    """Prints two tables, writes `vl4ad.csv` into `folder`. `quick`: half the sides, one chunk."""
    size = QUICK_SIZE if quick else SIZE
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = stages(size, device)
    table = Table(
        title=f"VL4AD, ConvNeXt-L, {QUERIES} queries, {size[0]} x {size[1]} px, {device}", title_justify="left"
    )
    table.add_column("part")
    for title in ("s", "share"):
        table.add_column(title, justify="right")
    total = sum(rows.values())
    for name, seconds in rows.items():
        table.add_row(name, f"{seconds:.3f}", f"{100 * seconds / total:.0f} %", end_section=name == list(rows)[-1])
    table.add_row("image", f"{total:.3f}", "100 %", style="bold")
    show(table)
    memory = scoring(size, QUICK_CHUNKS if quick else CHUNKS)
    table = Table(title=f"scoring alone, {QUERIES} masks, {CLASSES} classes, CPU, one thread", title_justify="left")
    for title in ("way", "s", "peak memory, MB"):
        table.add_column(title, justify="right" if title != "way" else "left")
    for name, (seconds, megabytes) in memory.items():
        table.add_row(name, f"{seconds:.2f}", f"{megabytes:.0f}")
    show(table)
    with (folder / "vl4ad.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["what", "height", "width", "device", "seconds", "peak_mb"])
        writer.writerows([name, *size, device.type, f"{seconds:.4f}", ""] for name, seconds in rows.items())
        writer.writerows(
            [f"scoring: {name}", *size, "cpu", f"{seconds:.4f}", f"{mb:.1f}"] for name, (seconds, mb) in memory.items()
        )
    say(f"table: {folder / 'vl4ad.csv'}")


def method(name: str = "convnext_large_d_320") -> VL4AD:
    """The published size with untrained weights."""
    backbone = load_backbone(name, random_seed=0)
    untrained = UntrainedOptions(center_text=False, train_backbone=False)
    return VL4AD(backbone, merge="none", decoder=DecoderOptions(queries=QUERIES), untrained=untrained).eval()


@torch.inference_mode()
def stages(size: tuple[int, int], device: torch.device) -> dict[str, float]:
    """Seconds of each part, the better of two passes; texts are encoded before."""
    model = method().to(device)
    image = torch.zeros(1, 3, *size, device=device)
    model.concept_vectors(model.columns)
    best: dict[str, float] = {}
    for _ in range(2):
        padded = model.clip.pad(image)
        pyramid, encoder = timed(lambda: model.clip.encode_image(padded), device)  # noqa: B023 (called at once)

        def decode() -> tuple[Any, torch.Tensor]:
            decoded = model.decoder(pyramid.maps)  # noqa: B023
            return decoded, model.mask_classes(decoded, pyramid.dense)  # noqa: B023

        (decoded, classes), decoder = timed(decode, device)

        def score() -> torch.Tensor:
            masks, num_known = decoded.masks[-1], model.columns.num_known  # noqa: B023
            frame = {"padded": size, "inner": size, "size": size}
            y = pixel_classes(masks, classes, num_known=num_known, **frame, chunk=model.chunk)  # noqa: B023
            return anomaly_score(y, model.score)

        _, scores = timed(score, device)
        now = {"encoder": encoder, "decoder": decoder, "scoring": scores}
        best = {name: min(seconds, best.get(name, seconds)) for name, seconds in now.items()}
    return best


def timed(work: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    """The result of `work` and its seconds, GPU work included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    found = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return found, time.perf_counter() - started


def scoring(size: tuple[int, int], chunks: tuple[int, ...]) -> dict[str, tuple[float, float]]:
    """Seconds and growth of peak memory (MB) of each way, each in a process of its own."""
    out = {}
    for chunk in (*chunks, None):
        name = "all masks at once" if chunk is None else f"{chunk} masks at a time"
        found = measure("anomaly_vlm.bench.vl4ad:scoring_work", {"size": list(size), "chunk": chunk})
        out[name] = (found.wall, found.memory)
    return out


def scoring_work(size: list[int], chunk: int | None) -> Callable[[], dict[str, Any]]:
    """The scoring of random masks; `chunk` None: the plain way."""
    generator = torch.Generator().manual_seed(0)
    full = (size[0], size[1])
    masks = torch.randn(1, QUERIES, size[0] // 4, size[1] // 4, generator=generator)
    classes = torch.rand(1, QUERIES, CLASSES, generator=generator)

    def streamed() -> dict[str, Any]:
        with torch.inference_mode():
            y = pixel_classes(
                masks,
                classes,
                num_known=CLASSES,
                padded=full,
                inner=full,
                size=full,
                chunk=QUERIES if chunk is None else chunk,
            )
            return {"mean": float(anomaly_score(y).mean())}

    def plain() -> dict[str, Any]:
        with torch.inference_mode():
            s = mask_probabilities(masks, full, full, full)
            return {"mean": float(-torch.einsum("bnhw,bnk->bkhw", s, classes).amax(dim=1).mean())}

    return plain if chunk is None else streamed
