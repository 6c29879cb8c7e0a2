"""Hybrid semantic fusion (HSF) of AdaCLIP: the class token joined with clustered anomalous patches.

AdaCLIP, ECCV 2024, section 3.5 ("paper"); the published code differs ("code", "block").
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from anomaly_vlm.errors import UserError, unknown_choice

Mode = Literal["code", "block", "paper", "mean"]
MODES = ("code", "block", "paper", "mean")
STARTS = ("kmeans++", "top")


def cluster_patches(points: Tensor, k: int, *, seeds: Sequence[int], start: Tensor | None = None) -> Tensor:
    """k-means of every image's points for itself; no gradient.

    Args:
        points: [B, M, D].
        k: clusters, at most M.
        seeds: one an image, for k-means++ (one start, 300 iterations, tolerance 1e-4).
        start: [B, k] indices of the points to start from instead; iterates until the assignment stays.

    Returns:
        [B, M] cluster numbers; fewer than k are in use where points coincide.
    """
    data = points.detach().float().cpu().numpy()
    labels = []
    for i, x in enumerate(data):
        if start is not None:
            kmeans = KMeans(k, init=x[start[i].cpu().numpy()], n_init=1, max_iter=300, tol=0.0)
        else:
            kmeans = KMeans(k, init="k-means++", n_init=1, max_iter=300, random_state=seeds[i])
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", ConvergenceWarning
            )  # fewer distinct points than clusters: handled by the caller
            labels.append(torch.from_numpy(kmeans.fit(x).labels_.astype("int64")))
    return torch.stack(labels).to(points.device)


def cluster_means(values: Tensor, labels: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Means over the members of each cluster: values [B, M, C], labels [B, M] -> [B, k, C] (0 where empty), used [B, k]."""
    members = F.one_hot(labels, k).transpose(1, 2).to(values.dtype)  # [B, k, M]
    count = members.sum(dim=-1, keepdim=True)
    return members @ values / count.clamp(min=1), count[..., 0] > 0


class HybridSemanticFusion:
    """Semantic feature of the anomalous patches, fused with the class token.

    Args:
        enabled: False: the class token alone.
        mode: `code`: k-means of the `top` most anomalous patches on all layers at once, mean of the centres (what made
            the released weights). `block`: the code's disabled block, all patches, best cluster. `paper`: each layer
            for itself, best cluster of each. `mean`: mean of the selected patches, no clustering.
        k: clusters (paper: 20). top: patches selected; None for 5 k.
        alpha: weight of the patches against the class token; None: 0.2, and 1 in mode `paper`.
        init: `kmeans++`, or `top`: deterministic, from the k most anomalous patches.
    """

    def __init__(
        self, *, enabled: bool = True, mode: Mode = "code", k: int = 20, top: int | None = None,
        alpha: float | None = None, init: Literal["kmeans++", "top"] = "kmeans++",
    ) -> None:  # fmt: skip
        if mode not in MODES:
            raise unknown_choice("method.hsf.mode", str(mode), MODES)
        if init not in STARTS:
            raise unknown_choice("method.hsf.init", str(init), STARTS)
        if k < 1 or (top is not None and top < 1):
            raise UserError(f"method.hsf: k={k}, top={top}: give at least 1")
        self.enabled, self.mode, self.k, self.init = enabled, mode, k, init
        self.top = 5 * k if top is None else top
        self.alpha = alpha if alpha is not None else (1.0 if mode == "paper" else 0.2)

    def select(self, prob: Tensor) -> Tensor:
        """Indices [B, M] of the `top` patches with the largest abnormal probability [B, N], descending."""
        return prob.topk(min(self.top, prob.shape[1]), dim=1).indices

    def labels(self, points: Tensor, prob: Tensor, seeds: Sequence[int]) -> Tensor:
        """Clusters [B, M] of points [B, M, D] whose abnormal probabilities are [B, M]."""
        k = min(self.k, points.shape[1])
        start = prob.topk(k, dim=1).indices if self.init == "top" else None
        return cluster_patches(points, k, seeds=seeds, start=start)

    def feature(self, patches: Tensor, prob: Tensor, seeds: Sequence[int], *, labels: Tensor | None = None) -> Tensor:
        """The semantic feature h, unit norm.

        Args:
            patches: [layers, B, N, C] projected patch tokens, unit norm. prob: [B, N] abnormal probability, detached.
            seeds: one an image. labels: clusters in place of k-means (mode `code`: [B, M] of the selected patches;
                `block`: [B, N]).

        Returns:
            [B, C]
        """
        mean = patches.mean(dim=0)  # [B, N, C]
        if self.mode in ("code", "mean"):
            index = self.select(prob)
            chosen = _take(mean, index)
            if self.mode == "mean":
                return F.normalize(chosen.mean(dim=1), dim=-1)
            if labels is None:
                points = torch.cat([_take(layer, index) for layer in patches], dim=-1)  # [B, M, layers * C]
                labels = self.labels(points, prob.gather(1, index), seeds)
            centres, used = cluster_means(chosen, labels, self.k)
            used = used.unsqueeze(-1).to(centres.dtype)
            return F.normalize((centres * used).sum(dim=1) / used.sum(dim=1), dim=-1)
        if self.mode == "block":
            labels = self.labels(mean, prob, seeds) if labels is None else labels
            return F.normalize(self.best_cluster(mean, labels, prob), dim=-1)
        best = [self.best_cluster(layer, self.labels(layer, prob, seeds), prob) for layer in patches]
        return F.normalize(torch.stack(best).mean(dim=0), dim=-1)

    def cluster_scores(self, labels: Tensor, prob: Tensor) -> Tensor:
        """Mean abnormal probability [B, k] of each cluster; -1 where it is empty."""
        scores, used = cluster_means(prob[..., None], labels, self.k)
        return torch.where(used, scores[..., 0], -1.0)

    def best_cluster(self, values: Tensor, labels: Tensor, prob: Tensor) -> Tensor:
        """Centroid [B, C] of the cluster with the highest mean probability; values [B, N, C]."""
        best = self.cluster_scores(labels, prob).argmax(dim=1)
        centres, _ = cluster_means(values, labels, self.k)
        return centres[torch.arange(len(best), device=best.device), best]

    def fuse(self, feature: Tensor, cls: Tensor) -> Tensor:
        """`normalise(alpha h + (1 - alpha) f)`: [B, C]."""
        return F.normalize(self.alpha * feature + (1 - self.alpha) * cls, dim=-1)


def _take(values: Tensor, index: Tensor) -> Tensor:
    """values [B, N, C] at index [B, M] -> [B, M, C]."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))
