"""FineGrainedAD's regions (MLSA): patches of the references clustered by their similarities to the components' texts.

Density-peaks clustering (Rodriguez and Laio, Science 2014) with the k-nearest-neighbour density (Du, Ding, Jia, 2016), in
two stages: foreground from background, then one region a component. Fan et al., arXiv 2510.26464; published code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_vlm.errors import UserError, unknown_choice


@dataclass(frozen=True)
class RegionOptions:
    """How regions are made.

    Args:
        side_factor: the references are looked at with sides so many times the input's, in tiles (4).
        boost: added to the weight 1 of the patches in an entity's region (1.5; -1 in place of 0 forgets the others).
        pool: from the fine grid to the input's. `code`: the published layout, which averages consecutive patches at one
            offset within the blocks and so scatters the regions; `spatial`: the mean of each patch's own block.
        mask: whose background tokens count in stages 1 and 2: `image0`, those of the first shot for all of them (code), or
            each shot's `own`. The same for one shot.
        density_k: neighbours of the density in stage 1. 1, the published code's, makes all densities equal but for noise;
            more make the centres deterministic.
        seed: of the noise that breaks ties between densities; None: the method's.
    """

    side_factor: int = 4
    boost: float = 1.5
    pool: Literal["code", "spatial"] = "code"
    mask: Literal["image0", "own"] = "image0"
    density_k: int = 1
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.pool not in ("code", "spatial"):
            raise unknown_choice("method.region.pool", str(self.pool), ["code", "spatial"])
        if self.mask not in ("image0", "own"):
            raise unknown_choice("method.region.mask", str(self.mask), ["image0", "own"])
        if self.side_factor < 1 or self.density_k < 1:
            raise UserError(
                f"method.region: side_factor {self.side_factor}, density_k {self.density_k}: give at least 1 each"
            )


class Clusters(NamedTuple):
    """`density` [k, N] before noise, `score` [k, N], `centres` [k, m] best first, `assignment` [k, N] to the centres."""

    density: Tensor
    score: Tensor
    centres: Tensor
    assignment: Tensor


def density_peaks(
    x: Tensor,
    count: int,
    neighbours: int,
    noise: Tensor,
    *,
    foreground: Tensor | None = None,
    centres: Tensor | None = None,
) -> Clusters:
    """DPC-KNN of each image's tokens.

    A token's density is `exp(-mean of its q smallest squared distances)`, its score the density times the distance to the
    nearest denser token (the largest distance where none is denser); the best scores are the centres.

    Args:
        x: [k, N, J] tokens; distances are Euclidean, divided by sqrt(J).
        count: clusters. neighbours: q, the token itself among them.
        noise: [k, N] in [0, 1); 1e-6 times it is added to the densities.
        foreground: [k, N] bool: other tokens are no centre, and are as far from all as the largest distance of all images
            plus 1. They fall to cluster 0.
        centres: [k, count] given ones in place of the best scores.
    """
    largest = torch.stack([_distances(tokens).max() for tokens in x]).max() if foreground is not None else None
    found = []
    for i, tokens in enumerate(x):
        distance = _distances(tokens)
        if foreground is not None and largest is not None:
            distance = torch.where(foreground[i], distance, largest + 1)  # columns
        nearest = distance.topk(neighbours, dim=-1, largest=False).values
        density = (-nearest.pow(2).mean(dim=-1)).exp()
        noisy = density + noise[i] * 1e-6
        if foreground is not None:
            noisy = noisy * foreground[i]
        denser = noisy[None] > noisy[:, None]
        score = torch.where(denser, distance, distance.max()).amin(dim=-1) * noisy
        centre = score.topk(count).indices if centres is None else centres[i]
        assignment = distance[centre].argmin(dim=0)
        assignment[centre] = torch.arange(count, device=x.device)
        found.append((density, score, centre, assignment))
    return Clusters(*(torch.stack(part) for part in zip(*found, strict=True)))


def _distances(tokens: Tensor) -> Tensor:
    return torch.cdist(tokens, tokens) / tokens.shape[-1] ** 0.5


class Regions(NamedTuple):
    """Everything on the way to the weights; k shots, n fine patches, J entities (the background last).

    Attributes:
        similarity: [k, n, J] cosines. first: stage 1. background_dot: [k, 2] of the means of cluster 0 and of the rest.
        foreground: [k, n] bool. second: stage 2. region: [k, n] in 0 .. J - 1. means: [J, C] of the first shot's regions.
        match_similarity: [J, J] entity x region. match: [J] region of each entity. fine: [J, k, n] weights.
    """

    similarity: Tensor
    first: Clusters
    background_dot: Tensor
    foreground: Tensor
    second: Clusters
    region: Tensor
    means: Tensor
    match_similarity: Tensor
    match: Tensor
    fine: Tensor


def find_regions(
    features: Tensor,
    entities: Tensor,
    options: RegionOptions,
    noise: tuple[Tensor, Tensor],
    centres: tuple[Tensor | None, Tensor | None] = (None, None),
) -> Regions:
    """Regions of the shots' fine patches and the entities' weights on them.

    Args:
        features: [k, n, C] unit patch features. entities: [J, C] raw normal text features, the background last.
        noise: two of [k, n] in [0, 1), one a stage.
        centres: [k, 2] of stage 1 and [k, J] of stage 2, where they are given.
    """
    count = len(entities)
    similarity = features @ F.normalize(entities, dim=-1).T
    first = density_peaks(similarity, 2, options.density_k, noise[0], centres=centres[0])

    zero = first.assignment == 0  # [k, n] tokens of cluster 0
    shared = zero[:1].expand_as(zero) if options.mask == "image0" else zero
    dots = torch.stack([_mean(features, shared), _mean(features, ~shared)], dim=1) @ entities[-1]  # [k, 2]
    rest_is_background = dots[:, 1:] > dots[:, :1]
    foreground = torch.where(rest_is_background, shared, ~zero)

    second = density_peaks(
        similarity, count, stage2_neighbours(count), noise[1], foreground=foreground, centres=centres[1]
    )
    background = ~foreground
    behind = background[:1].expand_as(background) if options.mask == "image0" else background
    region = torch.where(behind, second.assignment[:, :1], second.assignment)

    members = F.one_hot(region[0], count).T.to(features.dtype)  # [J, n]
    means = members @ features[0] / members.sum(dim=1, keepdim=True).clamp_min(1)
    match_similarity = F.normalize(entities, dim=-1) @ F.normalize(means, dim=-1).T
    empty = members.sum(dim=1) == 0
    match = match_similarity.masked_fill(empty, -torch.inf).argmax(dim=1)
    fine = 1 + options.boost * (region[None] == match[:, None, None]).to(features.dtype)
    return Regions(similarity, first, dots, foreground, second, region, means, match_similarity, match, fine)


def stage2_neighbours(count: int) -> int:
    """Neighbours of the density in stage 2, for so many clusters."""
    return 5 if count >= 5 else min(3, max(count // 2, 1))


def _mean(features: Tensor, mask: Tensor) -> Tensor:
    """Mean feature [k, C] of the tokens in a mask [k, n]."""
    weight = mask.to(features.dtype)
    return torch.einsum("knc,kn->kc", features, weight) / weight.sum(dim=1, keepdim=True).clamp_min(1)


def pool_weights(fine: Tensor, grid: tuple[int, int], factor: int, pool: Literal["code", "spatial"]) -> Tensor:
    """Weights [J, k, n] on the fine grid, `factor` times as fine as `grid`, as weights [J, k, N] of the input's patches."""
    rows, columns = grid
    blocks = F.unfold(fine.unflatten(-1, (rows * factor, columns * factor)), factor, stride=factor)  # [J, k * f f, N]
    blocks = blocks.unflatten(1, (fine.shape[1], factor**2))  # [J, k, f f, N]
    if pool == "spatial":
        return blocks.mean(dim=2)
    return blocks.flatten(2).unflatten(-1, (rows * columns, factor**2)).mean(dim=-1)
