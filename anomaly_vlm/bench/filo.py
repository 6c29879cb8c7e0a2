"""Cost of FiLo: an image's seconds by detector, tower and head; MMCI's share; a training step against the published way.

Random weights. A training step is one image of stage 1, from the second epoch on (tokens cached); both ways start from
the same parameters and must give the same loss and gradients before anything is timed. The detector is Grounding DINO
(Swin-T) at 518 px with a caption of 48 tokens; its answers are stored: it runs once for an image, whatever is trained.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from rich.table import Table
from torch import Tensor

from anomaly_vlm.backbone import load_backbone
from anomaly_vlm.bench._published_filo import PublishedFiLo
from anomaly_vlm.bench.training import Setting, count_flops, median, seconds_of, side_by_side
from anomaly_vlm.caching.tokens import TokenCache
from anomaly_vlm.data.types import Batch
from anomaly_vlm.errors import UserError
from anomaly_vlm.losses import build_terms
from anomaly_vlm.methods.filo import FiLo
from anomaly_vlm.methods.filo.mmci import MMCI
from anomaly_vlm.reporting.console import say, show
from anomaly_vlm.runs.compose import compose

CATEGORY = "metal nut"  # 13 abnormal states, the mean of MVTec AD
COLUMNS = ("setting", "quantity", "published", "ours", "ratio", "share")
DETECTOR_SIDE, CAPTION = 518, 48


def run(folder: Path, *, quick: bool) -> None:
    """Prints the tables, writes `filo.csv` into `folder`. `quick` measures one turn instead of the median of three."""
    settings = [Setting("ViT-B-16", 224, "cpu")]
    if torch.cuda.is_available():
        settings.append(Setting("ViT-L-14-336", 518, "cuda"))
    rows: list[tuple[Any, ...]] = []
    for setting in settings:
        rows += [(str(setting), *row) for row in measure(setting, turns=1 if quick else 3)]
    with (folder / "filo.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    say(f"written: {folder / 'filo.csv'}")


def measure(setting: Setting, *, turns: int) -> list[tuple[Any, ...]]:
    """Table of one setting, and its rows for the CSV."""
    method = make_method(setting)
    inference = split(setting, method, turns)
    training = compare(setting, method, turns)
    table = Table(title=f"FiLo: {setting}, random weights", title_justify="left", pad_edge=False)
    for column in ("", *COLUMNS[2:]):
        table.add_column(column, justify="right" if column else "left")
    for row in inference + training:
        table.add_row(*(f"{cell:,.3f}" if isinstance(cell, float) else str(cell) for cell in row))
    show(table)
    return inference + training


def make_method(setting: Setting) -> FiLo:
    """The shipped configuration with random weights, without a detector of its own."""
    cfg = compose(["method=filo", "backbone=vit_b16"])
    backbone = load_backbone(
        setting.model, random_seed=0, activation="gelu", pos_resize=cfg.as_published.pos_resize, image_size=setting.size
    )
    options = {key: value for key, value in cfg.method.items() if key != "_target_"}
    losses = build_terms({key: dict(value) for key, value in cfg.loss.items()})
    method = FiLo(backbone, losses=losses, **options)
    return method.to(setting.device)


def one_image(method: FiLo, setting: Setting) -> Batch:
    """A batch of one random image with a rectangular mask, on the setting's device."""
    side = method.backbone.image_size
    mask = torch.zeros(1, side, side, dtype=torch.uint8)
    mask[:, side // 4 : side // 2, side // 4 : side // 3] = 1
    image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    batch = Batch(image, torch.ones(1).long(), mask, [CATEGORY], ["image 0"], torch.arange(1), ["image 0"])
    moved: Batch = move_data_to_device(batch, setting.device)
    return moved


# ---- an image at test time -------------------------------------------------------------------------------------------


def split(setting: Setting, method: FiLo, turns: int) -> list[tuple[Any, ...]]:
    """Seconds and FLOPs of an image's parts; the sentences of one position, as with a detector."""
    method.eval()
    batch = one_image(method, setting)
    tokens, grid = method.encode_frozen(batch.image), method.grid(batch)
    feature = method.feature(tokens["cls"], adapted=True)
    pairs = method.pairs(method.sentence_features(batch.category, feature, [4]))
    outputs = method.heads(tokens, grid)
    mmci = method.heads.mmci

    def apart() -> list[Tensor]:
        return [head.branches(tokens["v"], grid) for head in mmci if isinstance(head, MMCI)]

    calls: dict[str, Callable[[], Any]] = {
        "detector": detector_pass(setting),
        "tower": lambda: method.encode_frozen(batch.image),
        "sentences": lambda: method.sentence_features(batch.category, feature, [4]),
        "linear and MMCI heads": lambda: method.heads(tokens, grid),
        "maps": lambda: method.joined_map(outputs, pairs, grid, batch.size),
    }
    with torch.no_grad():
        seconds = {name: timed(call, setting, turns) for name, call in calls.items()}
        flops = {name: count_flops(call) for name, call in calls.items()}
        six = count_flops(apart)
        linear = 2 * tokens["v"].shape[1] * len(method.heads.linear) * method.backbone.width * method.backbone.embed_dim
    merged = flops["linear and MMCI heads"] - linear
    whole, gflop = sum(seconds.values()), sum(flops.values())
    rows: list[tuple[Any, ...]] = [(f"s an image: {k}", "", v, "", v / whole) for k, v in seconds.items()]
    rows.append(
        ("s an image: head (sentences, heads, maps)", "", whole - seconds["detector"] - seconds["tower"], "", "")
    )
    rows += [(f"GFLOP an image: {k}", "", v / 1e9, "", v / gflop) for k, v in flops.items()]
    others = gflop - flops["detector"] - flops["linear and MMCI heads"] + linear
    rows.append(("GFLOP an image: MMCI, six kernels apart", six / 1e9, merged / 1e9, six / merged, ""))
    rows.append(("MMCI's share of FLOPs, detector apart", six / (others + six), merged / (others + merged), "", ""))
    return rows


def timed(call: Callable[[], Any], setting: Setting, turns: int) -> float:
    """Median seconds of `turns` calls, after one that warms up."""
    call()
    return median([seconds_of(call, setting) for _ in range(turns)])


def detector_pass(setting: Setting) -> Callable[[], Any]:
    """A forward of Grounding DINO with random weights, built to its published sizes."""
    from transformers import GroundingDinoConfig, GroundingDinoForObjectDetection

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GroundingDinoForObjectDetection(GroundingDinoConfig()).eval().to(setting.device)
    pixels = torch.randn(1, 3, DETECTOR_SIDE, DETECTOR_SIDE, device=setting.device)
    words = torch.full((1, CAPTION), 2000, device=setting.device)
    words[:, 0], words[:, -1], words[:, 3:-1:4] = 101, 102, 1012  # [CLS], [SEP], full stops
    return partial(model, pixel_values=pixels, input_ids=words)


# ---- training --------------------------------------------------------------------------------------------------------


def compare(setting: Setting, method: FiLo, turns: int) -> list[tuple[Any, ...]]:
    """A step of stage 1 in both ways."""
    theirs = make_method(setting).train()
    published = PublishedFiLo(theirs)
    method.train()
    plain = one_image(method, setting)
    method.token_cache = TokenCache({}, memory_bytes=10**9)
    method.frozen_tokens(plain)
    entry = {name: value.to(setting.device) for name, value in (method.token_cache.get("image 0") or {}).items()}
    served = replace(plain, unencoded=plain.unencoded[:0], tokens=[entry])
    ours = TrainingStep(method.learnable().values(), lambda: method.total_loss(method.losses(served)), setting)
    other = TrainingStep(published.learned, lambda: published.loss(plain), setting)
    check_equal(ours, other)
    flops = [count_flops(step) for step in (other, ours)]
    seconds = side_by_side(other, ours, turns, 3)
    return [
        ("training: GFLOP a step", *(f / 1e9 for f in flops), flops[0] / flops[1], ""),
        ("training: s a step", *seconds, seconds[0] / seconds[1], ""),
    ]


class TrainingStep:
    """A training step: gradients, then an update so small that both ways stay at the same parameters."""

    def __init__(self, parameters: Any, loss: Callable[[], Tensor], setting: Setting) -> None:
        self.parameters, self.loss, self.setting = list(parameters), loss, setting
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-12, betas=(0.5, 0.999), fused=True)

    def gradients(self) -> Tensor:
        """Computes the gradients of one step and returns the loss, detached."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss()
        loss.backward()
        return loss.detach()

    def __call__(self) -> None:
        """Runs one training step."""
        self.gradients()
        self.optimizer.step()
        if self.setting.device == "cuda":
            torch.cuda.synchronize()


def check_equal(ours: TrainingStep, published: TrainingStep) -> None:
    """Both ways must compute the same numbers, else their times compare nothing."""
    a, b = ours.gradients().item(), published.gradients().item()
    if abs(a - b) > 1e-4 * abs(b):
        raise UserError(
            f"the two ways differ: loss {a:.6f} against {b:.6f}: the benchmark is at fault, please report it"
        )
    for mine, theirs in zip(ours.parameters, published.parameters, strict=True):
        if mine.grad is None or theirs.grad is None:
            if mine.grad is not theirs.grad:
                raise UserError("the two ways differ: a parameter has a gradient in one of them only: please report it")
            continue
        if (off := (mine.grad - theirs.grad).abs().max()) > 2e-3 * theirs.grad.abs().max():
            raise UserError(
                f"the two ways differ: a gradient of shape {list(mine.shape)} by {off:.2g}: please report it"
            )
