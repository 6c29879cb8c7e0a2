"""What stem and teacher make of a fixed pool of views, on disk: a training step then costs the transformer alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_vlm.nano import teacher
from anomaly_vlm.nano.model import stem_of
from anomaly_vlm.nano.pool import Pool
from anomaly_vlm.nano.views import draw_views

CHUNK = 32  # views that are drawn and encoded together
FACTS = 1000  # crops that statistics are taken of
LABELS = ("noun", "state", "colour", "around", "place")


class Taught(NamedTuple):
    """The teacher on a batch: `dense` [B, 320, r, c], `pooled` [B, 1280], `named` [B], `sure` [B]."""

    dense: Tensor
    pooled: Tensor
    named: Tensor
    sure: Tensor


class Seen(NamedTuple):
    """A batch of views, and what was made of them.

    Attributes:
        images: [B, 3, S, S], normalised; None of crops, which are kept without them.
        stem: [B, channels, rows, columns], what `HybridStem.features` of the teacher's stem gives.
        taught: The teacher's answers.
        told: int64 [B] of each of `LABELS`, see `Views`.
    """

    images: Tensor | None
    stem: Tensor
    taught: Taught
    told: dict[str, np.ndarray]


class Crops:
    """Views as stem and teacher see them.

    Attributes (arrays over n views, memory-mapped):
        stem: float16 [n, channels, rows, columns], what `HybridStem.features` gives. dense: float16 [n, 320, 7, 7] of the
            teacher's last stage. pooled: float16 [n, 1280], its global feature. named: int64 [n], its class; sure: float32
            [n], the probability of it. told: int64 [n] of each of `LABELS`, see `Views`.
    """

    def __init__(self, folder: Path) -> None:
        names = ("stem", *Taught._fields, *LABELS)
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names}
        self.stem, self.dense, self.pooled = arrays["stem"], arrays["dense"], arrays["pooled"]
        self.named, self.sure = arrays["named"], arrays["sure"]
        self.told = {name: arrays[name] for name in LABELS}

    def __len__(self) -> int:
        return len(self.named)

    def batch(self, rng: np.random.Generator, count: int) -> Seen:
        """`count` different crops."""
        rows = np.sort(rng.choice(len(self), count, replace=False))
        dense, pooled, named, sure = (torch.from_numpy(getattr(self, name)[rows]) for name in Taught._fields)
        return Seen(
            images=None,
            stem=torch.from_numpy(self.stem[rows]).float(),
            taught=Taught(dense.float(), pooled.float(), named, sure),
            told={name: values[rows] for name, values in self.told.items()},
        )


@torch.no_grad()
def teach(network: Any, features: Tensor) -> Taught:
    """What the teacher makes of its own stem's features [B, channels, rows, columns]."""
    dense = network.blocks[teacher.STAGES :](features)
    pooled = network.global_pool(network.bn2(network.conv_head(dense)))
    sure, named = network.classifier(pooled).softmax(dim=1).max(dim=1)
    return Taught(dense, pooled, named, sure)


class FreshViews:
    """Draws views and shows them to stem and teacher.

    Args:
        pool: Of pictures.
        model: The CLIP; its stem, still the teacher's, is copied.
        network: The teacher.
        seed: Of the views.
        side: Of a view, in pixels.
    """

    def __init__(self, pool: Pool, model: Any, network: nn.Module, *, seed: int, side: int) -> None:
        self.pool, self.network, self.seed, self.side = pool, network, seed, side
        self.stem = copy.deepcopy(stem_of(model)).requires_grad_(False).eval()
        statistics = (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
        self.shift, self.scale = (torch.tensor(values)[:, None, None] for values in statistics)

    def look(self, step: int, count: int) -> Seen:
        """The views of a step: a function of (seed, step, count) alone."""
        views = draw_views(self.pool, seed=self.seed, step=step, count=count, side=self.side)
        images = (views.image - self.shift) / self.scale
        with torch.no_grad():
            features = self.stem.features(images)
        told = {name: getattr(views, name).numpy() for name in LABELS}
        return Seen(images, features, teach(self.network, features), told)

    def batch(self, rng: np.random.Generator, count: int) -> Seen:
        """Views that no crop and hardly another step has."""
        return self.look(int(rng.integers(2**32, 2**40)), count)


def open_crops(place: Path, views: FreshViews, *, count: int, tell: Callable[[str], None]) -> Crops:
    """The crops in the folder `place`, made now where they are not there or not complete; made ones are not made again.

    Args:
        place: Their folder.
        views: Draws them and lets the teacher look.
        count: How many.
        tell: Takes a line of progress.
    """
    done = place / "done"
    start = int(done.read_text()) if done.is_file() else 0
    if start < count:
        place.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, np.ndarray] = {}
        for first in range(start, count, CHUNK):
            rows = slice(first, min(first + CHUNK, count))
            seen = views.look(first // CHUNK, rows.stop - first)
            taught = seen.taught
            half = {"stem": seen.stem, "dense": taught.dense, "pooled": taught.pooled}
            made = {name: value.half().contiguous().numpy() for name, value in half.items()}
            made |= {"named": taught.named.numpy(), "sure": taught.sure.numpy(), **seen.told}
            for name, value in made.items():
                if name not in arrays:
                    arrays[name] = _array(place / f"{name}.npy", (count, *value.shape[1:]), value.dtype)
                arrays[name][rows] = value
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


def statistics(crops: Crops) -> Statistics:
    """Of the first crops."""

    def both(values: np.ndarray) -> tuple[Tensor, Tensor]:
        x = torch.from_numpy(np.array(values[:FACTS], np.float32))
        x = x.flatten(2).transpose(0, 1).flatten(1) if x.ndim == 4 else x.T
        return x.mean(dim=1), x.std(dim=1).clamp(min=1e-3)

    return Statistics(both(crops.stem), both(crops.dense), both(crops.pooled))


def on_grid(dense: Tensor, grid: tuple[int, int]) -> Tensor:
    """The teacher's map [B, D, r, c] on the grid of the tokens: [B, N, D]."""
    return F.interpolate(dense, grid, mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)
