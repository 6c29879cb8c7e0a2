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

from anomaly_vlm.options import PositiveInt


@dataclass(frozen=True)
class RegionOptions:
    """How regions are found and weighted.

    Args:
        side_factor: The references are looked at with sides that are so many times the input's, in tiles.
        boost: Added to the weight 1 of the patches in an entity's region.
        pool: How weights come from the fine grid to the input's. `published`: as the published code lays them out, which
            averages consecutive patches at one offset within the blocks and so scatters the regions. `spatial`: the mean of
            each patch's own block.
        mask: Whose background tokens count in stages 1 and 2: `published`: those of the first image, for all images.
            `each`: each image's own. It is the same for one image.
        density_k: Neighbours of the density in stage 1. With 1, the published code's, all densities are equal but for noise;
            with more the centres do not depend on noise.
        seed: Of the noise that breaks ties between densities; None for the method's.
    """

    side_factor: PositiveInt = 4
    boost: float = 1.5
    pool: Literal["published", "spatial"] = "published"
    mask: Literal["published", "each"] = "published"
    density_k: PositiveInt = 1
    seed: int | None = None


class Clusters(NamedTuple):
    """Clusters of each image's tokens.

    Attributes:
        density: Of the tokens `[k, N]`, before noise.
        score: Of the tokens `[k, N]`.
        centres: Tokens `[k, m]` that are centres, the best first.
        assignment: Number `[k, N]` of each token's centre.
    """

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
    """Clusters each image's tokens by DPC-KNN.

    A token's density is `exp(-mean of its q smallest squared distances)`, its score the density times the distance to the
    nearest denser token (the largest distance where none is denser); the best scores are the centres.

    Args:
        x: Tokens `[k, N, J]`; distances are Euclidean, divided by sqrt(J).
        count: Number of clusters.
        neighbours: Number q of neighbours, the token itself among them.
        noise: `[k, N]` in [0, 1); 1e-6 times it is added to the densities.
        foreground: Bool `[k, N]`. Other tokens are no centre, and as far from all others as the largest distance of all
            images plus 1, so that they fall to cluster 0.
        centres: Given centres `[k, count]` in place of those with the best scores.
    """
    largest = torch.stack([_distances(tokens).max() for tokens in x]).max() if foreground is not None else None
    clusters = []
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
        clusters.append((density, score, centre, assignment))
    return Clusters(*(torch.stack(values) for values in zip(*clusters, strict=True)))


def _distances(tokens: Tensor) -> Tensor:
    distances: Tensor = torch.cdist(tokens, tokens) / tokens.shape[-1] ** 0.5
    return distances


class EntityRegions(NamedTuple):
    """All steps on the way to the weights, of k images with n fine patches each and J entities, the background last.

    Attributes:
        similarity: Cosines `[k, n, J]`.
        first: Clusters of stage 1.
        background_dot: Products `[k, 2]` of the background's text with the means of cluster 0 and of the rest.
        foreground: Bool `[k, n]`.
        second: Clusters of stage 2.
        region: Region `[k, n]` of each patch, 0 to J - 1.
        means: Mean features `[J, C]` of the first image's regions.
        match_similarity: Cosines `[J, J]` of entities and regions.
        match: Region `[J]` of each entity.
        fine: Weights `[J, k, n]`.
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
) -> EntityRegions:
    """Finds regions of the images' fine patches, and the entities' weights on them.

    Args:
        features: Patch features `[k, n, C]`, unit norm.
        entities: Normal text features `[J, C]`, not normalised, the background last.
        options: See `RegionOptions`.
        noise: `[k, n]` in [0, 1) for each stage.
        centres: Given centres `[k, 2]` of stage 1 and `[k, J]` of stage 2; None where they are to be found.
    """
    count = len(entities)
    similarity = features @ F.normalize(entities, dim=-1).T
    first = density_peaks(similarity, 2, options.density_k, noise[0], centres=centres[0])

    zero = first.assignment == 0  # [k, n]: tokens of cluster 0
    shared = zero[:1].expand_as(zero) if options.mask == "published" else zero
    dots = torch.stack([_mean(features, shared), _mean(features, ~shared)], dim=1) @ entities[-1]  # [k, 2]
    rest_is_background = dots[:, 1:] > dots[:, :1]
    foreground = torch.where(rest_is_background, shared, ~zero)

    second = density_peaks(
        similarity, count, stage2_neighbours(count), noise[1], foreground=foreground, centres=centres[1]
    )
    background = ~foreground
    behind = background[:1].expand_as(background) if options.mask == "published" else background
    region = torch.where(behind, second.assignment[:, :1], second.assignment)

    members = F.one_hot(region[0], count).T.to(features.dtype)  # [J, n]
    means = members @ features[0] / members.sum(dim=1, keepdim=True).clamp_min(1)
    match_similarity = F.normalize(entities, dim=-1) @ F.normalize(means, dim=-1).T
    empty = members.sum(dim=1) == 0
    match = match_similarity.masked_fill(empty, -torch.inf).argmax(dim=1)
    fine = 1 + options.boost * (region[None] == match[:, None, None]).to(features.dtype)
    return EntityRegions(similarity, first, dots, foreground, second, region, means, match_similarity, match, fine)


def stage2_neighbours(count: int) -> int:
    """Neighbours of the density in stage 2, where there are `count` clusters."""
    return 5 if count >= 5 else min(3, max(count // 2, 1))


def _mean(features: Tensor, mask: Tensor) -> Tensor:
    """Mean feature `[k, C]` of the tokens in a mask `[k, n]`."""
    weight = mask.to(features.dtype)
    return torch.einsum("knc,kn->kc", features, weight) / weight.sum(dim=1, keepdim=True).clamp_min(1)


def pool_weights(fine: Tensor, grid: tuple[int, int], factor: int, pool: Literal["published", "spatial"]) -> Tensor:
    """Pools weights from the fine grid to the input's.

    Args:
        fine: `[J, k, n]`.
        grid: Rows and columns of the input's patches.
        factor: How many times as fine the fine grid is.
        pool: See `RegionOptions`.

    Returns:
        `[J, k, N]`.
    """
    rows, columns = grid
    images = torch.unflatten(fine, -1, (rows * factor, columns * factor))
    blocks = F.unfold(images, factor, stride=factor)  # [J, k * f f, N]
    blocks = torch.unflatten(blocks, 1, (fine.shape[1], factor**2))  # [J, k, f f, N]
    if pool == "spatial":
        return blocks.mean(dim=2)
    return torch.unflatten(blocks.flatten(2), -1, (rows * columns, factor**2)).mean(dim=-1)
