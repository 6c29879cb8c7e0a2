"""WinCLIP's cost: windows against a plain forward of the same tower and against one window at a time; texts, cache, memory.

ViT-B/16+ at 240 px, random weights, CPU, all in one run. The library anomalib is measured beside them where it is installed.
All ways give the same values (1e-4), which is checked first.
"""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import open_clip
import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor

from anomaly_vlm.backbone import ClipBackbone
from anomaly_vlm.bench._limits import Limit, at_least, at_most
from anomaly_vlm.bench._measure import measure
from anomaly_vlm.bench.adaclip import count_flops, side_by_side
from anomaly_vlm.caching.tokens import TokenCache
from anomaly_vlm.data.types import Batch
from anomaly_vlm.errors import UserError
from anomaly_vlm.methods.shared.patch_memory import nearest_distance
from anomaly_vlm.methods.winclip import WinCLIP
from anomaly_vlm.reporting.console import say, show

LARGE = (8 * 1369, 1024, 1369)  # patches of 8 references and of one image of ViT-L/14 at 518 px, and their width


def run(folder: Path, *, quick: bool) -> None:
    """Prints values and limits, writes `winclip.csv` into `folder`. `quick` measures once and with a small tower."""
    repeats = 1 if quick else 3
    method, model = make_method(small=quick)
    with torch.no_grad():
        limits = [*window_limits(method, repeats), *text_limits(method, repeats), *cache_limits(method, folder)]
        limits += memory_limits(repeats, small=quick)
        limits += anomalib_limits(method, model)
    table = Table(title=f"WinCLIP on {method.backbone.name}, CPU", title_justify="left", pad_edge=False)
    for column in ("what", "limit", "measured", "met"):
        table.add_column(column)
    for limit in limits:
        table.add_row(limit.what, limit.bound, limit.measured, "yes" if limit.met else "NO")
    show(table)
    with (folder / "winclip.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("what", "limit", "measured", "met"), *limits])
    say(f"{torch.get_num_threads()} threads; written: {folder / 'winclip.csv'}")


def make_method(*, small: bool = False) -> tuple[WinCLIP, open_clip.CLIP]:
    """The method, and the plain open_clip model whose towers it runs."""
    name, side = ("ViT-B-32", 160) if small else ("ViT-B-16-plus-240", 240)
    torch.manual_seed(0)
    config = open_clip.get_model_config(name)
    config["vision_cfg"]["image_size"] = side
    model = open_clip.CLIP(**config).eval()
    tokenizer = open_clip.get_tokenizer(name)
    backbone = ClipBackbone(model, name=name, weights="random weights", tokenizer=tokenizer, image_size=side)
    return WinCLIP(backbone).eval(), model


def make_image(method: WinCLIP) -> Tensor:
    """A random image [1, 3, S, S] of the backbone's size, the same on every call."""
    side = method.backbone.image_size
    return torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))


def window_limits(method: WinCLIP, repeats: int) -> list[Limit]:
    """All windows of an image, batched, against their share of a plain forward, and one by one."""
    clip, image = method.backbone, make_image(method)
    grid = (method.backbone.image_size // clip.patch_size,) * 2
    windows = [method.windows(size, grid).tokens for size in method.scales]

    def plain() -> Tensor:
        return clip.encode_image(image).cls

    def batched() -> list[Tensor]:
        return [clip.encode_image(image, token_sets=tokens).cls for tokens in windows]

    def singly() -> list[Tensor]:
        return [torch.cat([clip.encode_image(image, token_sets=row[None]).cls for row in tokens]) for tokens in windows]

    for ours, other in zip(batched(), singly(), strict=True):
        if not torch.allclose(ours, other, rtol=1e-4, atol=1e-4):
            raise UserError("the batched windows do not equal single ones: the benchmark compares different things")
    share = sum(tokens.numel() for tokens in windows) / (1 + grid[0] * grid[1])  # of the tokens of a plain forward
    flops = count_flops(batched) / count_flops(plain)
    seconds = side_by_side(plain, batched, repeats)
    alone = side_by_side(singly, batched, 1)
    times = seconds[1] / seconds[0]
    used = measure("anomaly_vlm.bench.winclip:windows_at_work", {"small": clip.image_size < 200}).memory
    say(
        f"windows: {share:.2f} times a plain forward's tokens; a plain forward {seconds[0]:.2f} s, all windows"
        f" {seconds[1]:.2f} s, one at a time {alone[0]:.2f} s; peak memory {used:.0f} MB above the weights"
    )
    return [
        at_most("windows: FLOPs, of their share of tokens", flops / share, 1.05, "x"),
        at_most("windows: time, of their share of tokens", times / share, 1.3, "x"),
        at_most("windows: time, of a plain forward", times, 12 * 1.3, "x"),
        at_least("windows: faster than one at a time", alone[0] / alone[1], 1.0),
    ]


def text_limits(method: WinCLIP, repeats: int) -> list[Limit]:
    """The text set-up against every sentence at the full context, as the public codes encode them; and a second start."""
    clip, sides = method.backbone, method.sentences("metal_nut")

    def whole() -> Tensor:
        return torch.stack([clip.encode_text(clip.tokenize(side, trim=False)).mean(dim=0) for side in sides])

    def ours() -> Tensor:
        return method.encode_sides(sides)

    if not torch.allclose(whole(), ours(), rtol=1e-4, atol=1e-4):
        raise UserError("the text features differ: the benchmark compares different things")
    seconds = side_by_side(whole, ours, repeats)
    with tempfile.TemporaryDirectory() as place:
        kept = []
        for _ in range(2):
            method._text_features.clear()
            method.token_cache = TokenCache({"bench": "winclip"}, folder=Path(place))
            kept.append(_seconds(lambda: method.text_features("metal_nut")))
        method.token_cache = None
    say(
        f"texts: {seconds[0]:.2f} s at full length, {seconds[1]:.2f} s ours, {1000 * kept[1]:.1f} ms at the second start"
    )
    return [
        at_least("text set-up faster than at full length", seconds[0] / seconds[1], 5),
        at_most("text set-up at the second start, of the first", kept[1] / kept[0], 0.02, "x"),
    ]


def cache_limits(method: WinCLIP, folder: Path) -> list[Limit]:
    """A second evaluation of an image, whose tokens are stored."""
    image = make_image(method)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        method.token_cache = TokenCache({"bench": "winclip"}, folder=Path(place))

        def evaluate() -> Any:
            key: list[str | None] = ["image"]
            entry = method.token_cache.get("image") if method.token_cache else None
            empty = image[:0] if entry is not None else image
            one = torch.zeros(1, dtype=torch.long)
            return method.predict(Batch(empty, one, None, ["metal_nut"], ["image"], one, key, [entry]))

        method.text_features("metal_nut")
        first = _seconds(evaluate)
        second = min(_seconds(evaluate) for _ in range(3))
        size = sum(path.stat().st_size for path in Path(place).rglob("im/*"))
        method.token_cache = None
    say(f"an image: {first:.2f} s at first, {1000 * second:.1f} ms at the second evaluation, {size / 1e6:.2f} MB kept")
    return [at_most("an image seen before, of its first time", second / first, 0.05, "x")]


def memory_limits(repeats: int, *, small: bool) -> list[Limit]:
    """The patch memory: time of the distances against the bare matrix product, peak memory under its option."""
    count, width, queries = (LARGE[0] // 8, LARGE[1] // 4, LARGE[2]) if small else LARGE
    generator = torch.Generator().manual_seed(0)
    bank = F.normalize(torch.randn(count, width, generator=generator), dim=-1)
    image = F.normalize(torch.randn(queries, width, generator=generator), dim=-1)
    limits = []
    for bound in (256.0, 16.0):
        seconds = side_by_side(lambda: image @ bank.T, partial(nearest_distance, image, bank, memory_mb=bound), repeats)
        shape = {"count": count, "width": width, "queries": queries, "memory_mb": bound}
        used = measure("anomaly_vlm.bench.winclip:distances", shape).memory
        what = f"memory of {count} patches, {bound:.0f} MB"
        limits.append(at_most(f"{what}: time, of the distance matrix", seconds[1] / seconds[0], 1.3, "x"))
        room = bound + 32  # beside the distances: the normalised queries, what the matrix product works with
        limits.append(at_most(f"{what}: peak", used, room, " MB"))
    return limits


def distances(count: int, width: int, queries: int, memory_mb: float) -> Callable[[], dict[str, Any]]:
    """The patch memory at work, for a child process whose peak memory is its own."""
    bank, image = F.normalize(torch.rand(count, width), dim=-1), torch.rand(queries, width)

    def work() -> dict[str, Any]:
        return {"mean": nearest_distance(image, bank, memory_mb=memory_mb).mean().item()}

    return work


def windows_at_work(small: bool) -> Callable[[], dict[str, Any]]:
    """All windows of an image, for a child process."""
    method, _ = make_method(small=small)
    image = make_image(method)

    def work() -> dict[str, Any]:
        with torch.no_grad():
            return {"tokens": len(method.encode_frozen(image))}

    return work


def anomalib_limits(method: WinCLIP, model: open_clip.CLIP) -> list[Limit]:
    """Limits on our time against WinCLIP of anomalib on the same weights; none where it is not installed."""
    try:
        from anomalib.models.image.winclip.torch_model import WinClipModel
    except ImportError:
        say("anomalib is not installed: not compared")
        return []
    with mock.patch("open_clip.create_model_and_transforms", lambda *_, **__: (model, None, None)):
        theirs = WinClipModel().eval()
    sides, image = method.sentences("metal_nut"), make_image(method)
    theirs._collect_text_embeddings("metal_nut")
    if not torch.allclose(theirs._text_embeddings, method.encode_sides(sides), rtol=1e-4, atol=1e-4):
        raise UserError("anomalib's text features differ: the benchmark compares different things")
    texts = side_by_side(lambda: theirs._collect_text_embeddings("metal_nut"), lambda: method.encode_sides(sides), 1)
    limits = [at_least("text set-up faster than anomalib's", texts[0] / texts[1], 5)]
    ours = method.encode_frozen(image)
    windows = theirs.encode_image(image)[1]
    if all(torch.allclose(w, ours[f"windows_{s}"], rtol=1e-4, atol=1e-4) for s, w in zip((2, 3), windows, strict=True)):
        taken = side_by_side(lambda: theirs.encode_image(image), lambda: method.encode_frozen(image), 3)
        limits.append(at_least("an image faster than anomalib's", taken[0] / taken[1], 1.0))
    else:  # its transposition lets windows attend to each other with open_clip 2.26.1 and newer
        say("anomalib's window embeddings are wrong with this open_clip: its images are not compared")
    return limits


def _seconds(call: Callable[[], Any]) -> float:
    import time

    started = time.perf_counter()
    call()
    return time.perf_counter() - started
