"""Training views: pictures of the pool, flawless or damaged, some of them mixed, all recoloured, turned and cut.

Beside each stands what a caption can tell of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_vlm.data.drawn.products.families import FAMILIES
from anomaly_vlm.nano.pool import SIDE, Pool
from anomaly_vlm.nano.words import COLOURS, GENERIC_NOUN, NOUNS

LEAST = 0.0015  # share of the view that must be damaged for a caption to tell it
RIM = 0.12  # width of the frame that counts as a picture's background, of the side


@dataclass
class Views:
    """A batch of views.

    Attributes:
        image: [B, 3, S, S] in [0, 1]. noun: [B] index of the noun class. state: [B] index of the state that a caption tells.
        colour: [B] index into `COLOURS`, of the middle of the picture. around: [B] the same of its frame; -1 for textures.
        place: [B] index into `PLACES`, of the damage; -1 where there is none.
    """

    image: Tensor
    noun: Tensor
    state: Tensor
    colour: Tensor
    around: Tensor
    place: Tensor


def draw_views(pool: Pool, *, seed: int, step: int, count: int, side: int) -> Views:
    """The views of a batch: a function of (seed, step) alone. About half of them are of damaged pictures."""
    g = torch.Generator().manual_seed(((seed + 1) * 1_000_003 + step) * 2 + 1)
    order = torch.randint(len(pool), (count,), generator=g).numpy()
    hurt = _chance(g, count, 0.5)
    pixels = np.where(hurt.numpy()[:, None, None, None], pool.damaged[order], pool.flawless[order])
    mask = torch.from_numpy(pool.mask[order]).float()[:, None]
    noun, state = (torch.from_numpy(array[order]) for array in (pool.noun, pool.state))

    mixed = _chance(g, count, 0.25)
    other = _pixels(pool.flawless[torch.randint(len(pool), (count,), generator=g).numpy()])
    image = _mix(g, mixed, _pixels(pixels), other)
    noun = torch.where(mixed, GENERIC_NOUN, noun)

    grid = _geometry(g, mask, side)
    image = F.grid_sample(image, grid, mode="bicubic", padding_mode="reflection", align_corners=False).clamp(0, 1)
    image = _recolour(g, image)
    image = image + 0.02 * torch.rand(count, 1, 1, 1, generator=g) * torch.randn(image.shape, generator=g)
    seen = F.grid_sample(mask, grid, mode="bilinear", padding_mode="reflection", align_corners=False)[:, 0]
    seen = seen * hurt[:, None, None]
    told = seen.mean((1, 2)) > LEAST
    textures = torch.tensor([FAMILIES[name].kind == "texture" for name in NOUNS] + [True])
    image = image.clamp(0, 1)
    rim = round(RIM * side)
    inside = image[:, :, rim:-rim, rim:-rim].mean((2, 3))
    frame = (image.sum((2, 3)) - image[:, :, rim:-rim, rim:-rim].sum((2, 3))) / (side**2 - (side - 2 * rim) ** 2)
    return Views(
        image=image,
        noun=noun,
        state=torch.where(told, state, 0),
        colour=_nearest_colour(inside),
        around=torch.where(textures[noun], -1, _nearest_colour(frame)),
        place=torch.where(told, _place(seen), -1),
    )


def _nearest_colour(rgb: Tensor) -> Tensor:
    """Index into `COLOURS` [B] of mean colours [B, 3]."""
    return torch.cdist(rgb, torch.tensor(list(COLOURS.values()))).argmin(dim=1)


def _place(seen: Tensor) -> Tensor:
    """Index into `PLACES` [B]: which ninth of the view [B, S, S] holds the middle of the damage."""
    line = torch.linspace(0, 1, seen.shape[-1])
    total = seen.sum((1, 2)).clamp(min=1e-6)
    row = (seen.sum(2) @ line / total * 3).long().clamp(max=2)
    column = (seen.sum(1) @ line / total * 3).long().clamp(max=2)
    return 3 * row + column


def _pixels(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array).permute(0, 3, 1, 2).float() / 255


def _chance(g: torch.Generator, count: int, probability: float) -> Tensor:
    return torch.rand(count, generator=g) < probability


def _uniform(g: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    return low + (high - low) * torch.rand(*shape, generator=g)


# ---- nuisances -------------------------------------------------------------------------------------------------------


def _mix(g: torch.Generator, chosen: Tensor, image: Tensor, other: Tensor) -> Tensor:
    """Blends, multiplies or joins the chosen pictures [B, 3, S, S] with other ones: families that nobody drew."""
    count = len(image)
    weight = _uniform(g, 0.5, 0.8, count)[:, None, None, None]
    ragged = F.interpolate(torch.randn(count, 1, 5, 5, generator=g), SIDE, mode="bicubic", align_corners=False)
    way = torch.randint(3, (count,), generator=g)[:, None, None, None]
    blend = weight * image + (1 - weight) * other
    product = image * (0.5 + other)
    joined = torch.where(ragged > 0, image, 0.25 * image + 0.75 * other)
    out = torch.where(way == 0, blend, torch.where(way == 1, product, joined)).clamp(0, 1)
    return torch.where(chosen[:, None, None, None], out, image)


def _recolour(g: torch.Generator, image: Tensor) -> Tensor:
    """Colours, contrast and brightness of pictures [B, 3, S, S]; half of them keep their colours."""
    count = len(image)
    eye = torch.eye(3).expand(count, 3, 3)
    free = eye[torch.arange(count)[:, None], torch.argsort(torch.rand(count, 3, generator=g), dim=1)]
    free = free + 0.35 * torch.randn(count, 3, 3, generator=g)
    free = free / free.abs().sum(2, keepdim=True).clamp(min=0.5)
    free = free * torch.where(_chance(g, count, 0.15), -1.0, 1.0)[:, None, None]
    grey = torch.tensor([0.299, 0.587, 0.114]).expand(count, 3, 3)
    draw = torch.rand(count, generator=g)[:, None, None]
    matrix = torch.where(draw < 0.3, free, torch.where(draw < 0.5, grey, eye))
    contrast = torch.exp(_uniform(g, -0.35, 0.35, count))[:, None, None, None]
    shift = _uniform(g, -0.12, 0.12, count)[:, None, None, None]
    out = torch.einsum("pij,pjhw->pihw", matrix, image - 0.5)
    return (0.5 + contrast * out + shift).clamp(0, 1)


def _geometry(g: torch.Generator, mask: Tensor, side: int) -> Tensor:
    """Sampling grids [P, side, side, 2]: the whole picture, or a part of it that mostly holds the damage."""
    count, full = len(mask), mask.shape[-1]
    whole = _chance(g, count, 0.55)
    zoom = torch.where(whole, _uniform(g, 0.9, 1.05, count), _uniform(g, 0.45, 0.9, count))
    pick = torch.multinomial(mask.flatten(1) + 1e-6, 1, generator=g)[:, 0]
    aim = torch.stack([pick % full, pick // full], 1) / full * 2 - 1
    aim = torch.where(_chance(g, count, 0.5)[:, None], aim, _uniform(g, -1, 1, count, 2))
    aim = aim + zoom[:, None] * _uniform(g, -0.7, 0.7, count, 2)
    room = (1 - zoom).clamp(min=0)[:, None]
    centre = aim.clamp(-1, 1).clamp(min=-room, max=room)
    quarter = torch.randint(4, (count,), generator=g) * (math.pi / 2)
    angle = quarter + torch.where(_chance(g, count, 0.4), _uniform(g, -0.8, 0.8, count), torch.zeros(count))
    flip = torch.where(_chance(g, count, 0.5), -1.0, 1.0)
    squeeze = torch.exp(_uniform(g, -0.15, 0.15, count))
    theta = torch.stack(
        [
            torch.stack([zoom * angle.cos() * flip * squeeze, -zoom * angle.sin(), centre[:, 0]], 1),
            torch.stack([zoom * angle.sin() * flip * squeeze, zoom * angle.cos(), centre[:, 1]], 1),
        ],
        1,
    )
    return F.affine_grid(theta, [count, 1, side, side], align_corners=False)
