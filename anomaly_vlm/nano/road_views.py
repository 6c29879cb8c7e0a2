"""Pictures for the image tower of `nano_convnext`: drawn road scenes with class labels, drawn textures, and views of them.

Scenes are of the side `train`, of seeds that no run uses: they hold known classes alone, no unknown object is ever seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_vlm.data.drawn.products.source import ProceduralDrawing
from anomaly_vlm.data.drawn.roads import RoadDrawing
from anomaly_vlm.nano.road_text import CLASSES, TEXTURES

SEED = 90_000  # of the first scenes and textures; the benchmarks use small seeds
VALIDATION = 95_000
HEIGHT, WIDTH = 96, 192  # of a scene, and of a view
SIDE = 128  # of a texture
ZOOM = 2.4  # at most, of a scene
KIND_SHARES = (0.55, 0.25, 0.20)  # of a batch: scenes, scenes and textures joined along a line, textures


class RoadPool:
    """Drawn scenes and textures, memory-mapped.

    Attributes:
        scene: uint8 [n, 96, 192, 3]. label: uint8 [n, 96, 192] train ids. texture: uint8 [m, 128, 128, 3]; an even number
            of each family, in the order of `TEXTURES`.
    """

    def __init__(self, folder: Path) -> None:
        self.scene, self.label, self.texture = (
            np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("scene", "label", "texture")
        )


def open_road_pool(
    folder: Path, *, seed: int, scenes: int, textures: int, tell: Callable[[str], None]
) -> RoadPool:  # fmt: skip
    """The pool below `folder`, drawn now where it is not there; `textures`: of a family."""
    place = folder / f"road_seed{seed}_{scenes}_{textures}"
    if not (place / "done").is_file():
        place.mkdir(parents=True, exist_ok=True)
        tell(f"drawing {scenes} scenes and {textures * len(TEXTURES)} textures")
        drawn = [draw_scene(SEED + seed, number) for number in range(scenes)]
        np.save(place / "scene.npy", np.stack([scene for scene, _ in drawn]))
        np.save(place / "label.npy", np.stack([label for _, label in drawn]))
        pictures = [
            ProceduralDrawing(SEED + seed, "train", name, number, "good", SIDE).draw().image
            for name in TEXTURES
            for number in range(textures)
        ]
        np.save(place / "texture.npy", np.stack(pictures))
        (place / "done").touch()
    return RoadPool(place)


def draw_scene(seed: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Picture uint8 [96, 192, 3] and train ids uint8 [96, 192] of a scene without unknown objects."""
    drawn = RoadDrawing(seed, "train", number, HEIGHT, WIDTH).draw()
    return drawn.image, drawn.mask


@dataclass
class RoadViews:
    """A batch. image: [B, 3, 96, 192] in [0, 1]. label: int64 [B, 96, 192], a class or 19 + texture at every pixel."""

    image: Tensor
    label: Tensor


def draw_road_views(pool: RoadPool, *, seed: int, step: int, count: int) -> RoadViews:
    """The views of a training step: a function of (seed, step) alone."""
    g = torch.Generator().manual_seed(((seed + 1) * 1_000_003 + step) * 2 + 1)
    kind = torch.multinomial(torch.tensor(KIND_SHARES), count, replacement=True, generator=g)
    rows = torch.randint(len(pool.scene), (count,), generator=g).numpy()
    grid = _scene_grid(g, count)
    image = F.grid_sample(_pixels(pool.scene[rows]), grid, padding_mode="reflection", align_corners=False)
    label = torch.from_numpy(pool.label[rows]).float()[:, None]
    label = F.grid_sample(label, grid, mode="nearest", padding_mode="reflection", align_corners=False)[:, 0].long()
    image = _recolour(g, image, 0.15)

    rows = torch.randint(len(pool.texture), (count,), generator=g).numpy()
    texture = _pixels(pool.texture[rows])
    texture = F.grid_sample(texture, _texture_grid(g, count), padding_mode="reflection", align_corners=False)
    texture = _recolour(g, texture, 0.5)
    named = torch.from_numpy(rows) // (len(pool.texture) // len(TEXTURES)) + CLASSES

    foreign = (_half_planes(g, count) & (kind == 1)[:, None, None]) | (kind == 2)[:, None, None]
    image = torch.where(foreign[:, None], texture, image)
    label = torch.where(foreign, named[:, None, None], label)
    image = image + 0.02 * torch.rand(count, 1, 1, 1, generator=g) * torch.randn(image.shape, generator=g)
    return RoadViews(image.clamp(0, 1), label)


def _pixels(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).permute(0, 3, 1, 2).float() / 255


def _uniform(g: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    return low + (high - low) * torch.rand(*shape, generator=g)


def _scene_grid(g: torch.Generator, count: int) -> Tensor:
    """Sampling grids [B, 96, 192, 2]: whole scenes or windows of them, some mirrored."""
    whole = torch.rand(count, generator=g) < 0.4
    zoom = torch.where(whole, 1.0, torch.exp(_uniform(g, 0, math.log(ZOOM), count)))
    flip = torch.where(torch.rand(count, generator=g) < 0.5, -1.0, 1.0)
    centre = _uniform(g, -1, 1, count, 2) * (1 - 1 / zoom)[:, None]
    zero = torch.zeros(count)
    rows = [torch.stack([flip / zoom, zero, centre[:, 0]], 1), torch.stack([zero, 1 / zoom, centre[:, 1]], 1)]
    return F.affine_grid(torch.stack(rows, 1), [count, 1, HEIGHT, WIDTH], align_corners=False)


def _texture_grid(g: torch.Generator, count: int) -> Tensor:
    """Sampling grids [B, 96, 192, 2] of square pictures: at 0.7 to 2 times their size, turned, reflected at the edges."""
    zoom = torch.exp(_uniform(g, math.log(0.7), math.log(2), count))
    angle = _uniform(g, 0, 2 * math.pi, count)
    across, down = WIDTH / SIDE / zoom, HEIGHT / SIDE / zoom
    centre = _uniform(g, -1, 1, count, 2)
    rows = [
        torch.stack([across * angle.cos(), -down * angle.sin(), centre[:, 0]], 1),
        torch.stack([across * angle.sin(), down * angle.cos(), centre[:, 1]], 1),
    ]
    return F.affine_grid(torch.stack(rows, 1), [count, 1, HEIGHT, WIDTH], align_corners=False)


def _half_planes(g: torch.Generator, count: int) -> Tensor:
    """One side of a straight line through the middle third of the picture, bool `[B, 96, 192]`."""
    angle = _uniform(g, 0, 2 * math.pi, count)[:, None, None]
    x = torch.linspace(-1, 1, WIDTH)[None, None] - _uniform(g, -0.4, 0.4, count)[:, None, None]
    y = torch.linspace(-1, 1, HEIGHT)[None, :, None] - _uniform(g, -0.4, 0.4, count)[:, None, None]
    return x * angle.cos() + y * angle.sin() > 0


def _recolour(g: torch.Generator, image: Tensor, strength: float) -> Tensor:
    """Mixes the channels of pictures [B, 3, H, W], and moves contrast and brightness."""
    count = len(image)
    matrix = torch.eye(3) + strength * 0.4 * torch.randn(count, 3, 3, generator=g)
    matrix = matrix / matrix.sum(2, keepdim=True).abs().clamp(min=0.5)
    contrast = torch.exp(_uniform(g, -strength, strength, count))[:, None, None, None]
    shift = strength * _uniform(g, -0.3, 0.3, count)[:, None, None, None]
    out = torch.einsum("bij,bjhw->bihw", matrix, image - 0.5)
    return (0.5 + contrast * out + shift).clamp(0, 1)
