"""What stem and teacher make of a fixed pool of views, on disk: a training step then costs the transformer alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_vlm.backbone import HybridStem
from anomaly_vlm.nano import teacher
from anomaly_vlm.nano.pool import Pool
from anomaly_vlm.nano.views import draw_views

CHUNK = 32  # views that are drawn and encoded together
LABELS = ("noun", "state", "colour", "around", "place")


class Crops:
    """Views as stem and teacher see them.

    Attributes (arrays over n views, memory-mapped):
        stem: float16 [n, channels, rows, columns], what `HybridStem.features` gives. dense: float16 [n, 320, 7, 7] of the
            teacher's last stage. pooled: float16 [n, 1280], its global feature. named: int64 [n], its class; sure: float32
            [n], the probability of it. noun, state, colour, around, place: int64 [n], see `Views`.
    """

    def __init__(self, folder: Path) -> None:
        names = ("stem", "dense", "pooled", "named", "sure", *LABELS)
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names}
        self.stem, self.dense, self.pooled = arrays["stem"], arrays["dense"], arrays["pooled"]
        self.named, self.sure = arrays["named"], arrays["sure"]
        self.noun, self.state, self.place = arrays["noun"], arrays["state"], arrays["place"]
        self.colour, self.around = arrays["colour"], arrays["around"]

    def __len__(self) -> int:
        return len(self.noun)


class Taught(NamedTuple):
    """The teacher on a batch: `dense` [B, 320, r, c], `pooled` [B, 1280], `named` [B], `sure` [B]."""

    dense: Tensor
    pooled: Tensor
    named: Tensor
    sure: Tensor


@torch.no_grad()
def teach(network: Any, features: Tensor) -> Taught:
    """What the teacher makes of its own stem's features [B, channels, rows, columns]."""
    dense = network.blocks[teacher.STAGES :](features)
    pooled = network.global_pool(network.bn2(network.conv_head(dense)))
    sure, named = network.classifier(pooled).softmax(dim=1).max(dim=1)
    return Taught(dense, pooled, named, sure)


def open_crops(
    place: Path,
    pool: Pool,
    stem: HybridStem,
    network: nn.Module,
    *,
    seed: int,
    count: int,
    side: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    tell: Callable[[str], None],
) -> Crops:
    """The crops in the folder `place`, made now where they are not there or not complete; made ones are not made again."""
    done = place / "done"
    start = int(done.read_text()) if done.is_file() else 0
    if start < count:
        place.mkdir(parents=True, exist_ok=True)
        shift, scale = (torch.tensor(values)[:, None, None] for values in (mean, std))
        arrays: dict[str, np.ndarray] = {}
        for first in range(start, count, CHUNK):
            rows = slice(first, min(first + CHUNK, count))
            views = draw_views(pool, seed=seed, step=first // CHUNK, count=rows.stop - first, side=side)
            with torch.no_grad():
                features = stem.features((views.image - shift) / scale)
            taught = teach(network, features)
            half = {"stem": features, "dense": taught.dense, "pooled": taught.pooled}
            made = {name: value.half().contiguous() for name, value in half.items()}
            made |= {"named": taught.named, "sure": taught.sure}
            made |= {name: getattr(views, name) for name in LABELS}
            for name, value in made.items():
                if name not in arrays:
                    arrays[name] = _array(place / f"{name}.npy", (count, *value.shape[1:]), value.numpy().dtype)
                arrays[name][rows] = value.numpy()
            if rows.stop % (20 * CHUNK) == 0 or rows.stop == count:
                for array in arrays.values():
                    array.flush()  # type: ignore[attr-defined]
                done.write_text(str(rows.stop))
                tell(f"crops {rows.stop:,}/{count:,}")
    return Crops(place)


def _array(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> Any:
    return np.lib.format.open_memmap(path, mode="r+" if path.is_file() else "w+", dtype=dtype, shape=shape)


class Statistics(NamedTuple):
    """Means and deviations over the crops: `stem` [channels], `dense` [320], `pooled` [1280], each with its deviation."""

    stem: tuple[Tensor, Tensor]
    dense: tuple[Tensor, Tensor]
    pooled: tuple[Tensor, Tensor]


def statistics(crops: Crops, *, count: int = 1000) -> Statistics:
    """Of the first `count` crops."""

    def both(values: np.ndarray) -> tuple[Tensor, Tensor]:
        x = torch.from_numpy(np.array(values[:count], np.float32))
        x = x.flatten(2).transpose(0, 1).flatten(1) if x.ndim == 4 else x.T
        return x.mean(dim=1), x.std(dim=1).clamp(min=1e-3)

    return Statistics(both(crops.stem), both(crops.dense), both(crops.pooled))


def on_grid(dense: Tensor, grid: tuple[int, int]) -> Tensor:
    """The teacher's map [B, D, r, c] on the grid of the tokens: [B, N, D]."""
    return F.interpolate(dense, grid, mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)
