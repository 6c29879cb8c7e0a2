"""AdaCLIP's cost: a training step and an inference pass against the published way of computing them, in one run.

The published way, written anew from the method's description: one image at a time, the unprompted tower run anew for every
image, every sentence at the full 77 tokens, frozen weights that collect gradients nobody uses. Ours: `methods.adaclip`.
ViT-B/16 at 224 px, random weights, CPU. Both compute the same loss from the same parameters, which is checked first.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from anomaly_vlm.backbone import ClipBackbone, load_backbone
from anomaly_vlm.data.types import Batch
from anomaly_vlm.errors import UserError
from anomaly_vlm.losses import build_terms
from anomaly_vlm.methods.adaclip import AdaCLIP
from anomaly_vlm.methods.shared.maps import gaussian_smooth
from anomaly_vlm.reporting.console import say, show
from anomaly_vlm.runs.compose import compose

AIM = 0.8  # of the FLOP ratio, as time ratio


def run(folder: Path, *, quick: bool) -> None:
    """Prints the table, writes `adaclip.csv` into `folder`. `quick` measures once instead of the median of five."""
    repeats = 1 if quick else 5
    batch = make_batch()
    ours = make_method()
    published = PublishedAdaCLIP(ours)
    check_equal(ours, published, batch)
    optimizers = [torch.optim.AdamW(ours.learnable().values(), lr=1e-6) for _ in range(2)]
    steps: list[tuple[str, Callable[[], Any], Callable[[], Any]]] = [
        (
            "training step",
            lambda: train_step(lambda: published.loss(batch), optimizers[0], published.model),
            lambda: train_step(lambda: total_loss(ours, batch), optimizers[1], ours),
        ),
        ("inference, first pass", lambda: published.predict(batch), lambda: fresh_predict(ours, batch)),
        ("inference, image seen before", lambda: published.predict(batch), lambda: ours.predict(batch)),
    ]
    table = Table(title="AdaCLIP on ViT-B/16, 224 px, one image, CPU", title_justify="left", pad_edge=False)
    columns = (
        "what",
        "GFLOP published",
        "GFLOP ours",
        "ratio",
        "s published",
        "s ours",
        "ratio",
        "of FLOP ratio",
        f"aim {AIM}",
    )
    for column in columns:
        table.add_column(column, justify="left" if column == "what" else "right")
    rows = []
    for name, reference, mine in steps:
        flops = [count_flops(f) for f in (reference, mine)]  # also warms up
        seconds = side_by_side(reference, mine, repeats)
        work, speed = flops[0] / flops[1], seconds[0] / seconds[1]
        row = [name, *(f"{f / 1e9:.1f}" for f in flops), f"{work:.2f}", *(f"{s:.3f}" for s in seconds), f"{speed:.2f}"]
        rows.append([*row, f"{speed / work:.2f}", "reached" if speed / work >= AIM else "missed"])
        table.add_row(*rows[-1])
    show(table)
    with (folder / "adaclip.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
    say(f"{torch.get_num_threads()} threads; written: {folder / 'adaclip.csv'}")


def make_batch() -> Batch:
    """One image with a mask; the category is one of MVTec AD's."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(1, 224, 224, dtype=torch.uint8)
    mask[:, 60:100, 80:150] = 1
    image = torch.randn(1, 3, 224, 224, generator=generator)
    return Batch(
        image,
        torch.ones(1, dtype=torch.long),
        mask,
        ["metal_nut"],
        ["bench"],
        torch.zeros(1, dtype=torch.long),
        ["bench"],
    )


def make_method() -> AdaCLIP:
    """The shipped configuration on ViT-B/16 with random weights."""
    cfg = compose(["method=adaclip", "backbone=vit_b16"])
    backbone = load_backbone("ViT-B-16", random_seed=0, activation="gelu", layers=list(cfg.backbone.layers))
    options = {key: value for key, value in cfg.method.items() if key not in ("_target_", "layers")}
    return AdaCLIP(backbone, layers=backbone.layers, losses=build_terms(dict(cfg.loss)), **options).eval()


def total_loss(method: AdaCLIP, batch: Batch) -> Tensor:
    """The weighted sum of the method's loss terms, a scalar."""
    return torch.stack([method.terms[name].weight * value for name, value in method.losses(batch).items()]).sum()


def fresh_predict(method: AdaCLIP, batch: Batch) -> Any:
    """Inference that has never seen the image."""
    method.clear_caches()
    return method.predict(batch)


def train_step(loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """One optimiser step on a fresh loss."""
    model.zero_grad(set_to_none=True)
    loss().backward()
    optimizer.step()


def count_flops(call: Callable[[], Any]) -> float:
    """Floating-point operations of one call, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


def side_by_side(first: Callable[[], Any], second: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Median seconds of both, measured in turns, so that other load on the machine hits both."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for call, taken in zip((first, second), times, strict=True):
            start = time.perf_counter()
            call()
            taken.append(time.perf_counter() - start)
    return sorted(times[0])[repeats // 2], sorted(times[1])[repeats // 2]


class PublishedAdaCLIP:
    """AdaCLIP as published: the same parameters as `method`, on blocks of its own whose frozen weights collect gradients."""

    def __init__(self, method: AdaCLIP) -> None:
        self.method = method
        clip = method.backbone
        twin = load_backbone("ViT-B-16", random_seed=0, activation="gelu", layers=list(clip.layers))
        self.model: ClipBackbone = twin.requires_grad_(True)
        self.tokens = [clip.tokenize(side, trim=False) for side in method.ensemble.sentences("metal_nut")]

    def image_tower(self, images: Tensor, prompts: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        """Global feature [1, C] and tapped tokens [1, N, Dv], block by block."""
        clip = self.model
        x, _ = clip.embed_image(images)
        x = clip.visual.ln_pre(x)
        taps = []
        count = 0 if prompts is None else prompts[0].shape[-2]
        for i, block in enumerate(clip.visual.transformer.resblocks):
            if prompts is not None and i < len(prompts):
                body = x if i == 0 else x[:, :-count]
                x = torch.cat([body, prompts[i]], dim=1)
            x = block(x)
            if i + 1 in clip.layers:
                taps.append(x[:, 1 : x.shape[1] - count])
        return clip.project(x[:, 0]), taps

    def text_side(self, tokens: Tensor, prompts: list[Tensor]) -> Tensor:
        """Unit feature [C] of one side's sentences, all 77 positions."""
        clip = self.model
        x = clip.embed_text(tokens)
        mask = torch.full((x.shape[1], x.shape[1]), float("-inf")).triu_(1)
        for i, block in enumerate(clip.text.transformer.resblocks):
            if 0 < i < len(prompts):
                prompt = prompts[i].expand(x.shape[0], -1, -1)
                x = torch.cat([x[:, :1], prompt, x[:, 1 + prompt.shape[1] :]], dim=1)
            x = block(x, attn_mask=mask)
        x = clip.text.ln_final(x[torch.arange(len(x)), tokens.argmax(dim=-1)]) @ clip.text.text_projection
        return F.normalize(F.normalize(x, dim=-1).mean(dim=0), dim=-1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Patches [4, 1, N, C], class token [1, C], text [C, 2], logits [4, 1, N, 2]."""
        method = self.method
        assert method.image_prompts is not None and method.text_prompts is not None
        assert method.patch_projection is not None and method.cls_projection is not None
        with torch.no_grad():
            pooled, _ = self.image_tower(images, None)
        cls, taps = self.image_tower(images, method.image_prompts(pooled))
        text_prompts = method.text_prompts(pooled)
        text = torch.stack([self.text_side(tokens, text_prompts) for tokens in self.tokens], dim=-1)
        projected = [linear(x) for linear, x in zip(method.patch_projection, taps, strict=True)]
        patches = F.normalize(torch.stack(projected), dim=-1)
        return patches, F.normalize(method.cls_projection(cls), dim=-1), text, 100 * patches @ text

    def image_logits(self, patches: Tensor, cls: Tensor, text: Tensor, logits: Tensor, seed: int) -> Tensor:
        """Image logits [B, 2] of the fused image feature against the two texts."""
        prob = logits.detach().mean(dim=0).softmax(dim=-1)[..., 1]
        feature = self.method.hsf.feature(patches, prob, [seed])
        return 100 * self.method.hsf.fuse(feature, cls) @ text

    def maps(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Both channels upsampled, then softmax: [layers, 2, H, W]."""
        side = round(logits.shape[-2] ** 0.5)
        grid = logits[:, 0].transpose(1, 2).unflatten(-1, (side, side))
        return F.interpolate(grid, size=size, mode="bilinear", align_corners=True).softmax(dim=1)

    def loss(self, batch: Batch) -> Tensor:
        """The published training loss of a batch, a scalar."""
        terms = self.method.terms
        patches, cls, text, logits = self.forward(batch.image)
        seed = self.method.kmeans_seeds(batch, self.method.current_epoch)[0]
        prob = self.image_logits(patches, cls, text, logits, seed).softmax(dim=-1)[:, 1]
        assert batch.mask is not None
        mask = batch.mask.float()
        total = terms["focal_image"](prob, batch.label).mean()
        for both in self.maps(logits, (mask.shape[-2], mask.shape[-1])):
            normal, abnormal = both[:1], both[1:]
            total = total + terms["focal"](abnormal, mask).mean()
            total = total + (terms["dice"](abnormal, mask) + terms["dice"](normal, 1 - mask)).mean()
        return total

    @torch.no_grad()
    def predict(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Image scores [B] and smoothed maps [B, H, W] of a batch."""
        patches, cls, text, logits = self.forward(batch.image)
        seed = self.method.kmeans_seeds(batch, None)[0]
        score = self.image_logits(patches, cls, text, logits, seed).softmax(dim=-1)[:, 1]
        size = (batch.image.shape[-2], batch.image.shape[-1])
        both = self.maps(logits.mean(dim=0, keepdim=True), size)
        return score, gaussian_smooth((both[:, 1] + 1 - both[:, 0]) / 2, self.method.sigma)


def check_equal(ours: AdaCLIP, published: PublishedAdaCLIP, batch: Batch) -> None:
    """Both ways must compute the same numbers, else their times compare nothing."""
    with torch.no_grad():
        a, b = total_loss(ours, batch).item(), published.loss(batch).item()
    if abs(a - b) > 1e-3 * abs(b):
        raise UserError(
            f"the two ways differ: loss {a:.6f} against {b:.6f}: the benchmark is at fault, please report it"
        )
    score, _ = published.predict(batch)
    mine = ours.predict(batch).score
    if (score - mine).abs().max() > 1e-3:
        raise UserError(f"the two ways differ: score {mine.item():.6f} against {score.item():.6f}: please report it")
