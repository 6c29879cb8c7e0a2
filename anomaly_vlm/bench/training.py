"""Cost of training AnomalyCLIP and FAPrompt: the published way of computing a step against ours with frozen tokens stored.

One step = 8 images, from the second epoch on: serving the batch, loss, gradients, optimiser. Random weights; both ways start
from the same parameters, and must give the same loss and gradients before anything is timed. Both get their pixels decoded:
the published programs read and resize every image in every epoch, which is counted apart. FAPrompt's published way needs
about 8 GB of memory.
"""

from __future__ import annotations

import csv
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from rich.table import Table
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from anomaly_vlm.backbone import load_backbone
from anomaly_vlm.bench._measure import measure
from anomaly_vlm.bench._published import PublishedDualPath
from anomaly_vlm.bench._training_data import draw_samples, preprocess, random_batch
from anomaly_vlm.caching.tokens import TokenCache
from anomaly_vlm.data.dataset import AnomalyDataset, collate
from anomaly_vlm.data.pixels import PixelCache
from anomaly_vlm.data.types import Batch
from anomaly_vlm.errors import UserError
from anomaly_vlm.losses import build_terms
from anomaly_vlm.methods.anomalyclip import AnomalyCLIP
from anomaly_vlm.methods.anomalyclip.dual_path import DualPathMethod
from anomaly_vlm.methods.faprompt import FAPrompt
from anomaly_vlm.reporting.console import say, show
from anomaly_vlm.runs.compose import compose

BATCH, IMAGES = 8, 48  # images a step, an epoch
AIMS = {"anomalyclip": 20.0, "faprompt": 7.0}  # published time an epoch / ours, at ViT-B/16 and 224 px
BUILD_AIM = 1.1  # cache-building pass / bare forward pass
CLASSES: dict[str, type[DualPathMethod]] = {"anomalyclip": AnomalyCLIP, "faprompt": FAPrompt}
COLUMNS = ("setting", "method", "quantity", "published", "ours", "ratio", "limit", "aim", "met")


@dataclass(frozen=True)
class Setting:
    """What is measured on: architecture, input side in pixels, device."""

    model: str
    size: int
    device: str

    def __str__(self) -> str:
        device = f"{torch.get_num_threads()} CPU threads" if self.device == "cpu" else torch.cuda.get_device_name()
        return f"{self.model}, {self.size} px, {device}"


def run(folder: Path, *, quick: bool) -> None:
    """Prints the tables, writes `training.csv` into `folder`. `quick` measures one turn instead of the median of five."""
    settings = [Setting("ViT-B-16", 224, "cpu")]
    if torch.cuda.is_available():
        settings.append(Setting("ViT-L-14-336", 518, "cuda"))
    rows: list[tuple[Any, ...]] = []
    for setting in settings:
        for name in CLASSES:
            rows += compare(setting, name, turns=1 if quick else 5)
    with (folder / "training.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    say("AdaCLIP is not here: its image prompts enter the image tower, so that no token is frozen; see 'bench adaclip'")
    say(f"written: {folder / 'training.csv'}")


def compare(setting: Setting, name: str, *, turns: int) -> list[tuple[Any, ...]]:
    """Tables of one method, and their rows for the CSV."""
    memory = [peak_memory(setting, name, way) for way in ("published", "ours")]
    ours, published = make_method(setting, name), PublishedDualPath(make_method(setting, name))
    with tempfile.TemporaryDirectory() as place:
        samples = draw_samples(Path(place) / "images", IMAGES)
        pixels = PixelCache(10**10)
        datasets = [AnomalyDataset(samples, preprocess(ours), cache=pixels, name="bench") for _ in range(2)]
        build = build_cache(setting, ours, datasets[0], Path(place) / "tokens", turns)
        datasets[0].stored_tokens = None if ours.token_cache is None else ours.token_cache.get
        mine = Way(setting, ours.learnable().values(), lambda batch: ours.total_loss(ours.losses(batch)), datasets[0])
        theirs = Way(setting, published.learned, published.loss, datasets[1])
        check_equal(mine, theirs)
        flops = (count_flops(theirs.step), count_flops(mine.step))
        seconds = side_by_side(theirs.step, mine.step, turns, IMAGES // BATCH)
    limit, ratio, epoch = flops[0] / flops[1], seconds[0] / seconds[1], IMAGES / BATCH
    aim = AIMS[name] if setting.device == "cpu" else None
    met = "" if aim is None else ("reached" if ratio >= aim else "missed")
    built = (build["bare pass"], build["pass and put"], build["pass and put"] / build["bare pass"])
    build_met = "reached" if built[2] <= BUILD_AIM else "missed"
    table = [
        ("GFLOP a step", *(f / 1e9 for f in flops), limit, "", "", ""),
        ("s a step", *seconds, ratio, limit, "", ""),
        (f"s an epoch of {IMAGES}", *(epoch * s for s in seconds), ratio, limit, aim or "", met),
        ("images / s", *(BATCH / s for s in seconds), ratio, limit, "", ""),
        ("peak memory growth, MB", *memory, memory[0] / max(memory[1], 1e-9), "", "", ""),
    ]
    table.append(("first epoch: tower ms an image, bare / tokens kept", *built, "", BUILD_AIM, build_met))
    table += [
        (f"first epoch: {key} ms an image", "", build[key], "", "", "", "") for key in ("decoding", "disk writing")
    ]
    table.append(("later epochs: disk reading ms an image", "", build["disk reading"], "", "", "", ""))
    rows = [(str(setting), name, *row) for row in table]
    print_table(f"{name}: {setting}, {BATCH} images a step, random weights", rows)
    return rows


def print_table(title: str, rows: Sequence[tuple[Any, ...]]) -> None:
    """Prints rows of measurements; their first two cells, which only sort them, are left out."""
    table = Table(title=title, title_justify="left", pad_edge=False)
    for column in ("", "published", "ours", "ratio", "FLOP limit", "aim", ""):
        table.add_column(column, justify="right" if column else "left")
    for row in rows:
        table.add_row(*(f"{cell:,.3f}" if isinstance(cell, float) else str(cell) for cell in row[2:]))
    show(table)


# ---- what is measured ------------------------------------------------------------------------------------------------


def make_method(setting: Setting, name: str) -> DualPathMethod:
    """The shipped configuration with random weights."""
    cfg = compose([f"method={name}", "backbone=vit_b16"])
    backbone = load_backbone(
        setting.model,
        random_seed=0,
        activation="quick_gelu",
        pos_resize=cfg.as_published.pos_resize,
        image_size=setting.size,
    )
    options = {key: value for key, value in cfg.method.items() if key != "_target_"}
    method = CLASSES[name](backbone, losses=build_terms({k: dict(v) for k, v in cfg.loss.items()}), **options)
    return method.to(setting.device).train()


class Way:
    """One of the two ways: a training step on the next batch of its data set."""

    def __init__(
        self, setting: Setting, parameters: Any, loss: Callable[[Batch], Tensor], dataset: AnomalyDataset
    ) -> None:
        self.setting, self.parameters, self.loss, self.dataset = setting, list(parameters), loss, dataset
        # A rate so small that both ways stay at the same parameters.
        self.optimizer = torch.optim.Adam(self.parameters, lr=1e-9, betas=(0.5, 0.999))
        self.steps = 0

    def batch(self, number: int) -> Batch:
        """Batch `number` of the data set, starting again at its end, on the setting's device."""
        start = number * BATCH % IMAGES
        batch = collate([self.dataset[i] for i in range(start, start + BATCH)])
        moved: Batch = move_data_to_device(batch, self.setting.device)
        return moved

    def gradients(self, batch: Batch) -> Tensor:
        """Computes the gradients of a batch and returns the loss, detached."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(batch)
        loss.backward()
        return loss.detach()

    def step(self) -> None:
        """Runs one training step on the next batch."""
        self.gradients(self.batch(self.steps))
        self.optimizer.step()
        self.steps += 1
        synchronise(self.setting)


def check_equal(ours: Way, published: Way) -> None:
    """Both ways must compute the same numbers, else their times compare nothing."""
    a, b = (way.gradients(way.batch(0)).item() for way in (ours, published))
    if abs(a - b) > 1e-4 * abs(b):
        raise UserError(
            f"the two ways differ: loss {a:.6f} against {b:.6f}: the benchmark is at fault, please report it"
        )
    for mine, theirs in zip(ours.parameters, published.parameters, strict=True):
        assert mine.grad is not None and theirs.grad is not None
        if (off := (mine.grad - theirs.grad).abs().max()) > 1e-3 * theirs.grad.abs().max():
            raise UserError(
                f"the two ways differ: a gradient of shape {list(mine.shape)} by {off:.2g}: please report it"
            )


# ---- measuring -------------------------------------------------------------------------------------------------------


def synchronise(setting: Setting) -> None:
    """Waits until the GPU has finished, where there is one."""
    if setting.device == "cuda":
        torch.cuda.synchronize()


def seconds_of(call: Callable[[], Any], setting: Setting) -> float:
    """Wall-clock seconds of one call, the GPU's work included."""
    synchronise(setting)
    start = time.perf_counter()
    call()
    synchronise(setting)
    return time.perf_counter() - start


def median(values: Sequence[float]) -> float:
    """The median of some values."""
    return float(np.median(values))


def count_flops(call: Callable[[], Any]) -> float:
    """Attention is counted in its written-out form: the counter knows no fused one on the CPU."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


def side_by_side(slow: Callable[[], Any], fast: Callable[[], Any], turns: int, fast_steps: int) -> tuple[float, float]:
    """Median seconds of a step of both, in turns, so that other load on the machine hits both."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(turns):
        for call, steps, taken in ((slow, 1, times[0]), (fast, fast_steps, times[1])):
            for _ in range(steps):
                start = time.perf_counter()
                call()
                taken.append(time.perf_counter() - start)
    return median(times[0]), median(times[1])


def peak_memory(setting: Setting, name: str, way: str) -> float:
    """Growth of peak memory in a step, MB: on the CPU in a process of its own, where nothing freed earlier is used again."""
    if setting.device == "cpu":
        arguments = {"model": setting.model, "size": setting.size, "name": name, "way": way}
        return measure("anomaly_vlm.bench.training:memory_work", arguments, threads=torch.get_num_threads()).memory
    work = memory_work(setting.model, setting.size, name, way, setting.device)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def memory_work(model: str, size: int, name: str, way: str, device: str = "cpu") -> Callable[[], dict[str, Any]]:
    """A step on drawn pixels, or on drawn tokens, as work for `measure`."""
    method = make_method(Setting(model, size, device), name)
    batch = move_data_to_device(random_batch(method, BATCH, served=way == "ours"), device)
    published = PublishedDualPath(method) if way == "published" else None
    parameters = list(method.learnable().values()) if published is None else published.learned
    optimizer = torch.optim.Adam(parameters, lr=1e-9)

    def work() -> dict[str, Any]:
        optimizer.zero_grad(set_to_none=True)
        loss = method.total_loss(method.losses(batch)) if published is None else published.loss(batch)
        loss.backward()
        optimizer.step()
        return {"loss": loss.item()}

    return work


def build_cache(
    setting: Setting, method: DualPathMethod, dataset: AnomalyDataset, folder: Path, turns: int
) -> dict[str, float]:
    """A first epoch's parts in milliseconds an image. Leaves the method with a filled cache in memory.

    Of both passes the quickest counts: they differ by little, and other load on the machine only ever adds.
    """
    way = Way(setting, method.learnable().values(), lambda batch: batch.image.sum(), dataset)
    decoding = seconds_of(lambda: [dataset[i] for i in range(IMAGES)], setting)
    batches = [way.batch(i) for i in range(IMAGES // BATCH)]

    @torch.no_grad()
    def bare(batch: Batch) -> None:
        method.backbone.encode_image(batch.image, layers=method.layers, vv_from=method.vv_from)

    bare(batches[0])
    pairs = []
    for _ in range(max(1, turns // 2)):
        method.token_cache = TokenCache({}, memory_bytes=10**10)
        for batch in batches:
            calls: tuple[Callable[[Batch], Any], ...] = (bare, method.frozen_tokens)
            pairs.append([seconds_of(partial(call, batch), setting) for call in calls])
    memory = method.token_cache
    assert memory is not None
    keys = [key for batch in batches for key in batch.key]
    entries, disk = [memory.get(key) or {} for key in keys], TokenCache({}, folder=folder)  # nothing of it in memory

    seconds = {
        "bare pass": min(pair[0] for pair in pairs) / BATCH,
        "pass and put": min(pair[1] for pair in pairs) / BATCH,
        "decoding": decoding / IMAGES,
        "disk writing": seconds_of(lambda: list(map(disk.put, keys, entries)), setting) / IMAGES,
        "disk reading": seconds_of(lambda: [disk.get(key) for key in keys], setting) / IMAGES,
    }
    return {key: 1000 * value for key, value in seconds.items()}
