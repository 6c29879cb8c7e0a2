"""Training views: twins of the pool, mixed, recoloured, damaged anew, turned and cut, the same way for both."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_vlm.nano.pool import SIDE, Pool
from anomaly_vlm.nano.words import GENERIC_NOUN

VISIBLE = 0.03  # a pixel has changed where its channels differ by this on average, in [0, 1]
LEAST = 0.0015  # share of the view that must have changed for it to count as damaged


@dataclass
class Views:
    """A batch of twins: the flawless ones first, then the damaged ones in the same order.

    Attributes:
        image: [2 P, 3, S, S] in [0, 1]. cover: [2 P, N] share of each patch that is damaged.
        label: [2 P] 1 where damage is in view. sure: [2 P] 0 where next to nothing of it is.
        noun: [2 P] index of the noun class. state: [2 P] index of the state that a caption may tell.
        pure: [P] whether the twins show one family alone.
    """

    image: Tensor
    cover: Tensor
    label: Tensor
    sure: Tensor
    noun: Tensor
    state: Tensor
    pure: Tensor


def draw_views(pool: Pool, *, seed: int, step: int, pairs: int, side: int, patch: int) -> Views:
    """The views of a training step: a function of (seed, step) alone."""
    g = torch.Generator().manual_seed(((seed + 1) * 1_000_003 + step) * 2 + 1)
    rows = torch.randint(len(pool), (pairs,), generator=g)
    order = rows.numpy()
    normal, damaged = (_pixels(array[order]) for array in (pool.flawless, pool.damaged))
    mask = torch.from_numpy(pool.mask[order]).float()[:, None]
    noun, state = (torch.from_numpy(array[order]) for array in (pool.noun, pool.state))

    pasted = _chance(g, pairs, 0.4)
    other = _pixels(pool.flawless[torch.randint(len(pool), (pairs,), generator=g).numpy()])
    fresh, where = _damage(g, normal, other)
    damaged = torch.where(pasted[:, None, None, None], fresh, damaged)
    mask = torch.where(pasted[:, None, None, None], where, mask)
    state = torch.where(pasted, 1, state)

    mixed = _chance(g, pairs, 0.35)
    third = _pixels(pool.flawless[torch.randint(len(pool), (pairs,), generator=g).numpy()])
    normal, damaged = _mix(g, mixed, normal, damaged, third)
    noun = torch.where(mixed, GENERIC_NOUN, noun)

    grid = _geometry(g, mask, side)
    image = F.grid_sample(
        torch.cat([normal, damaged]), grid.repeat(2, 1, 1, 1), padding_mode="reflection", align_corners=False
    )
    image = _recolour(g, image, pairs)
    seen = F.grid_sample(mask, grid, mode="bilinear", padding_mode="reflection", align_corners=False)[:, 0]
    changed = (image[pairs:] - image[:pairs]).abs().mean(1, keepdim=True)
    changed = F.avg_pool2d(changed, 3, 1, 1)[:, 0] > VISIBLE
    hurt = seen * changed  # [P, S, S]
    area = hurt.mean((1, 2))
    image = (image + 0.02 * torch.rand(2 * pairs, 1, 1, 1, generator=g) * torch.randn(image.shape, generator=g)).clamp(
        0, 1
    )

    cover = F.avg_pool2d(hurt[:, None], patch).flatten(1)
    label = (area > LEAST).float()
    sure = ((area > LEAST) | (area == 0)).float()
    zeros = torch.zeros(pairs)
    return Views(
        image=image,
        cover=torch.cat([torch.zeros_like(cover), cover]),
        label=torch.cat([zeros, label]),
        sure=torch.cat([zeros + 1, sure]),
        noun=noun.repeat(2),
        state=torch.cat([torch.zeros_like(state), torch.where(label > 0, state, 0)]),
        pure=~mixed,
    )


def _pixels(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array).permute(0, 3, 1, 2).float() / 255


def _chance(g: torch.Generator, count: int, probability: float) -> Tensor:
    return torch.rand(count, generator=g) < probability


def _uniform(g: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    return low + (high - low) * torch.rand(*shape, generator=g)


# ---- damage of its own kinds -----------------------------------------------------------------------------------------


def _damage(g: torch.Generator, image: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Pastes something wrong into pictures [P, 3, S, S]; returns them and the soft masks [P, 1, S, S]."""
    count = len(image)
    mask = _shapes(g, count, image.shape[-1])
    shift = int(torch.randint(16, 100, (1,), generator=g))
    moved = torch.roll(image, (shift, SIDE - shift // 2), dims=(2, 3))
    colour = torch.rand(count, 3, 1, 1, generator=g)
    gain = torch.where(_chance(g, count, 0.5), _uniform(g, 0.4, 0.8, count), _uniform(g, 1.25, 1.8, count))
    gain = gain[:, None, None, None]
    noise = F.interpolate(torch.rand(count, 3, 32, 32, generator=g), SIDE, mode="bilinear", align_corners=False)
    makers = (
        lambda r: other[r],
        lambda r: moved[r],
        lambda r: F.avg_pool2d(image[r], 9, 1, 4, count_include_pad=False),
        lambda r: colour[r].expand_as(image[r]),
        lambda r: (image[r] * gain[r]).clamp(0, 1),
        lambda r: 0.5 * image[r] + 0.5 * colour[r],
        lambda r: image[r].flip(3),
        lambda r: 0.6 * image[r] + 0.4 * noise[r],
    )
    content = torch.empty_like(image)
    which = torch.randint(len(makers), (count,), generator=g)
    for number, make in enumerate(makers):
        rows = which == number
        content[rows] = make(rows)
    strength = _uniform(g, 0.5, 1.0, count)[:, None, None, None]
    return image + mask * strength * (content - image), (mask > 0.3).float()


def _shapes(g: torch.Generator, count: int, side: int) -> Tensor:
    """Soft masks [count, 1, side, side]: ragged blobs and crooked lines, small more often than large."""
    axis = torch.linspace(-1, 1, side)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    angle = _uniform(g, 0, math.pi, count)[:, None, None]
    cx, cy = (_uniform(g, -0.65, 0.65, count)[:, None, None] for _ in range(2))
    u = (x - cx) * angle.cos() + (y - cy) * angle.sin()
    v = (y - cy) * angle.cos() - (x - cx) * angle.sin()
    coarse = torch.randn(count, 2, 10, 10, generator=g)
    ragged = F.interpolate(coarse, side, mode="bicubic", align_corners=False)
    size = 0.05 * torch.exp(_uniform(g, 0, 1.9, count))[:, None, None]
    stretch = torch.exp(_uniform(g, -0.7, 0.7, count))[:, None, None]
    blob = torch.sqrt((u / stretch) ** 2 + (v * stretch) ** 2) / size + 0.25 * ragged[:, 0] - 1
    thin = 0.012 * torch.exp(_uniform(g, 0, 1.2, count))[:, None, None]
    line = torch.maximum((v + 0.08 * ragged[:, 1]).abs() / thin - 1, (u.abs() - 4 * size.clamp(max=0.15)) / thin)
    distance = torch.where(_chance(g, count, 0.35)[:, None, None], line, blob)
    return torch.sigmoid(-6 * distance)[:, None]


# ---- nuisances, the same for both twins ------------------------------------------------------------------------------


def _mix(g: torch.Generator, chosen: Tensor, normal: Tensor, damaged: Tensor, third: Tensor) -> tuple[Tensor, Tensor]:
    """Blends, multiplies or joins the chosen twins [P, 3, S, S] with a third picture: families that nobody drew."""
    count = len(normal)
    weight = _uniform(g, 0.5, 0.8, count)[:, None, None, None]
    ragged = F.interpolate(torch.randn(count, 1, 5, 5, generator=g), SIDE, mode="bicubic", align_corners=False)
    seam = torch.sigmoid(8 * ragged)
    way = torch.randint(3, (count,), generator=g)[:, None, None, None]

    def mixed(image: Tensor) -> Tensor:
        blend = weight * image + (1 - weight) * third
        product = image * (0.5 + third)
        joined = torch.where(seam > 0.5, image, 0.25 * image + 0.75 * third)
        out = torch.where(way == 0, blend, torch.where(way == 1, product, joined)).clamp(0, 1)
        return torch.where(chosen[:, None, None, None], out, image)

    return mixed(normal), mixed(damaged)


def _recolour(g: torch.Generator, both: Tensor, pairs: int) -> Tensor:
    """Colours, contrast and brightness of twins [2 P, 3, S, S]."""
    eye = torch.eye(3).expand(pairs, 3, 3)
    free = eye[torch.arange(pairs)[:, None], torch.argsort(torch.rand(pairs, 3, generator=g), dim=1)]
    free = free + 0.35 * torch.randn(pairs, 3, 3, generator=g)
    free = free / free.abs().sum(2, keepdim=True).clamp(min=0.5)
    free = free * torch.where(_chance(g, pairs, 0.15), -1.0, 1.0)[:, None, None]
    grey = torch.tensor([0.299, 0.587, 0.114]).expand(pairs, 3, 3)
    draw = torch.rand(pairs, generator=g)[:, None, None]
    matrix = torch.where(draw < 0.4, free, torch.where(draw < 0.6, grey, eye))
    contrast = torch.exp(_uniform(g, -0.35, 0.35, pairs))[:, None, None, None]
    shift = _uniform(g, -0.12, 0.12, pairs)[:, None, None, None]
    out = torch.einsum("pij,pjhw->pihw", matrix.repeat(2, 1, 1), both - 0.5)
    return (0.5 + contrast.repeat(2, 1, 1, 1) * out + shift.repeat(2, 1, 1, 1)).clamp(0, 1)


def _geometry(g: torch.Generator, mask: Tensor, side: int) -> Tensor:
    """Sampling grids [P, side, side, 2]: the whole picture, or a part of it that mostly holds the damage."""
    count, full = len(mask), mask.shape[-1]
    whole = _chance(g, count, 0.55)
    native = side / full
    zoom = torch.where(whole, _uniform(g, 0.9, 1.05, count), _uniform(g, native * 0.9, min(1.0, native * 1.5), count))
    pick = torch.multinomial(mask.flatten(1) + 1e-6, 1, generator=g)[:, 0]
    aim = torch.stack([pick % full, pick // full], 1) / full * 2 - 1
    aim = torch.where(_chance(g, count, 0.85)[:, None], aim, _uniform(g, -1, 1, count, 2))
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
