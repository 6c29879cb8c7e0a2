"""Hybrid semantic fusion (HSF) of AdaCLIP: the class token is joined with the centres of clustered anomalous patches.

AdaCLIP, ECCV 2024, section 3.5. The paper clusters all patches of each layer and takes the most anomalous cluster alone. The
published code clusters the most anomalous patches on all layers at once, averages all centres and adds the class token.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_vlm.options import Fraction, PositiveInt


@dataclass(frozen=True)
class HsfOptions:
    """Options of the hybrid semantic fusion.

    Attributes:
        enabled: Whether patches enter the image score. Without them it is that of the class token.
        mode: Which feature of the patches is fused. `published`: the `top` most anomalous patches are clustered on all
            layers at once, and the cluster centres are averaged; the released weights were trained with it. `paper`: all
            patches of each layer are clustered, and the most anomalous clusters of the layers are averaged. `block`: as the
            disabled block of the published code, all patches are clustered by their mean over the layers, and the most
            anomalous cluster is taken. `mean`: the `top` most anomalous patches are averaged without clustering.
        k: Number of clusters; the paper has 20.
        top: Number of patches that are clustered or averaged; None: 5 k.
        alpha: Weight of the patches against the class token, in [0, 1]; None: 0.2, and 1 in mode `paper`, which leaves the
            class token out.
        init: Where k-means starts. `kmeans++`: at random patches, drawn from a seed for each image. `top`: at the k most
            anomalous patches.
    """

    enabled: bool = True
    mode: Literal["published", "paper", "block", "mean"] = "published"
    k: PositiveInt = 20
    top: PositiveInt | None = None
    alpha: Fraction | None = None
    init: Literal["kmeans++", "top"] = "kmeans++"


def cluster_patches(points: Tensor, k: int, *, seeds: Sequence[int], start: Tensor | None = None) -> Tensor:
    """Clusters the patches of each image by k-means, without gradient.

    Args:
        points: Patches `[B, M, D]`.
        k: Number of clusters, at most M.
        seeds: One for each image, for k-means++ (one start, at most 300 iterations, tolerance 1e-4).
        start: Indices `[B, k]` of the points to start from in place of k-means++; k-means then runs until no point changes
            its cluster.

    Returns:
        Numbers `[B, M]` of the clusters. Fewer than k are used where points coincide.
    """
    from sklearn.cluster import KMeans  # a second to import, which a prediction without clusters does not pay
    from sklearn.exceptions import ConvergenceWarning

    data = points.detach().float().cpu().numpy()
    labels = []
    for i, x in enumerate(data):
        if start is not None:
            kmeans = KMeans(k, init=x[start[i].cpu().numpy()], n_init=1, max_iter=300, tol=0.0)
        else:
            kmeans = KMeans(k, init="k-means++", n_init=1, max_iter=300, random_state=seeds[i])
        with warnings.catch_warnings():
            # Fewer distinct points than clusters leave clusters empty, which `cluster_means` allows for.
            warnings.simplefilter("ignore", ConvergenceWarning)
            labels.append(torch.from_numpy(kmeans.fit(x).labels_.astype("int64")))
    return torch.stack(labels).to(points.device)


def cluster_means(values: Tensor, labels: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Averages values over the members of each cluster.

    Args:
        values: `[B, M, C]`.
        labels: Cluster numbers `[B, M]`.
        k: Number of clusters.

    Returns:
        The means `[B, k, C]`, 0 for empty clusters, and whether each cluster has members, `[B, k]`.
    """
    members = F.one_hot(labels, k).transpose(1, 2).to(values.dtype)  # [B, k, M]
    count = members.sum(dim=-1, keepdim=True)
    return members @ values / count.clamp(min=1), count[..., 0] > 0


class HybridSemanticFusion:
    """Computes the semantic feature of the anomalous patches and fuses it with the class token.

    Args:
        options: See `HsfOptions`; `top` and `alpha` of None are resolved here.
    """

    def __init__(self, options: HsfOptions) -> None:
        self.enabled, self.mode, self.k, self.init = options.enabled, options.mode, options.k, options.init
        self.top = 5 * options.k if options.top is None else options.top
        mode_alpha = 1.0 if options.mode == "paper" else 0.2
        self.alpha = mode_alpha if options.alpha is None else options.alpha

    def select(self, prob: Tensor) -> Tensor:
        """Indices `[B, M]` of the `top` patches with the largest abnormal probability `[B, N]`, in descending order."""
        return prob.topk(min(self.top, prob.shape[1]), dim=1).indices

    def labels(self, points: Tensor, prob: Tensor, seeds: Sequence[int]) -> Tensor:
        """Cluster numbers `[B, M]` of points `[B, M, D]` whose abnormal probabilities are `[B, M]`."""
        k = min(self.k, points.shape[1])
        start = prob.topk(k, dim=1).indices if self.init == "top" else None
        return cluster_patches(points, k, seeds=seeds, start=start)

    def feature(self, patches: Tensor, prob: Tensor, seeds: Sequence[int], *, labels: Tensor | None = None) -> Tensor:
        """Computes the semantic feature h of the anomalous patches (section 3.5).

        Args:
            patches: Projected patches `[layers, B, N, C]`, unit norm.
            prob: Abnormal probabilities `[B, N]` of the patches, detached.
            seeds: One for each image, for k-means++.
            labels: Cluster numbers in place of k-means: `[B, M]` of the selected patches in mode `published`, `[B, N]` in
                mode `block`.

        Returns:
            `[B, C]`, unit norm.
        """
        if self.mode == "paper":
            best = [self.best_cluster(layer, self.labels(layer, prob, seeds), prob) for layer in patches]
            return F.normalize(torch.stack(best).mean(dim=0), dim=-1)
        mean = patches.mean(dim=0)  # [B, N, C]
        if self.mode == "block":
            labels = self.labels(mean, prob, seeds) if labels is None else labels
            return F.normalize(self.best_cluster(mean, labels, prob), dim=-1)
        index = self.select(prob)
        selected = _gather(mean, index)
        if self.mode == "mean":
            return F.normalize(selected.mean(dim=1), dim=-1)
        if labels is None:
            points = torch.cat([_gather(layer, index) for layer in patches], dim=-1)  # [B, M, layers * C]
            labels = self.labels(points, prob.gather(1, index), seeds)
        centres, used = cluster_means(selected, labels, self.k)
        weight = used.unsqueeze(-1).to(centres.dtype)
        return F.normalize((centres * weight).sum(dim=1) / weight.sum(dim=1), dim=-1)

    def cluster_scores(self, labels: Tensor, prob: Tensor) -> Tensor:
        """Mean abnormal probability `[B, k]` of each cluster; -1 where it is empty."""
        scores, used = cluster_means(prob[..., None], labels, self.k)
        return torch.where(used, scores[..., 0], -1.0)

    def best_cluster(self, values: Tensor, labels: Tensor, prob: Tensor) -> Tensor:
        """Centre `[B, C]` of the cluster with the highest mean probability.

        Args:
            values: `[B, N, C]`.
            labels: Cluster numbers `[B, N]`.
            prob: Abnormal probabilities `[B, N]`.
        """
        best = self.cluster_scores(labels, prob).argmax(dim=1)
        centres, _ = cluster_means(values, labels, self.k)
        return centres[torch.arange(len(best), device=best.device), best]

    def fuse(self, feature: Tensor, cls: Tensor) -> Tensor:
        """Fuses the semantic feature h with the class token f, both `[B, C]`: `normalise(alpha h + (1 - alpha) f)`."""
        return F.normalize(self.alpha * feature + (1 - self.alpha) * cls, dim=-1)


def _gather(values: Tensor, index: Tensor) -> Tensor:
    """Picks rows `[B, M, C]` of values `[B, N, C]` by index `[B, M]`."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))
