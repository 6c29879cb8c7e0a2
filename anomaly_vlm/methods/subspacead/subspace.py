"""The principal subspace of normal patch tokens: fitted by sums in double precision, and residuals of other tokens."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from anomaly_vlm.methods.shared.precision import product

Residual = Literal["reconstruction", "cosine", "mahalanobis", "euclidean"]


class TokenSums:
    """Sums over tokens from which mean and covariance follow, so that no token has to be kept.

    Tokens are shifted by the mean of the first ones that are added, so that little cancels.
    """

    def __init__(self) -> None:
        self.count = 0
        self._shift = self._sum = self._products = torch.empty(0)

    def add(self, tokens: Tensor) -> None:
        """Adds tokens `[..., D]` of any precision."""
        x = tokens.flatten(0, -2).double()
        if not self.count:
            self._shift = x.mean(dim=0)
            self._sum, self._products = torch.zeros_like(self._shift), x.new_zeros(x.shape[1], x.shape[1])
        x = x - self._shift
        self.count += len(x)
        self._sum = self._sum + x.sum(dim=0)
        self._products = self._products + x.T @ x

    @property
    def mean(self) -> Tensor:
        """Mean `[D]`, double precision."""
        return self._shift + self._sum / self.count

    def covariance(self, about: Tensor | None = None) -> Tensor:
        """Sum of `(x - about)(x - about)^T` over all tokens, divided by their number minus 1: `[D, D]`, double precision.

        Args:
            about: `[D]`; None for the mean of these tokens.
        """
        centre = (self.mean if about is None else about) - self._shift
        crossed = torch.outer(self._sum, centre)
        total = self._products - crossed - crossed.T + self.count * torch.outer(centre, centre)
        return total / max(1, self.count - 1)


class NormalSubspace(nn.Module):
    """The mean of normal tokens and the directions in which they vary most.

    Args:
        mean: `[D]`.
        basis: `[D, q]`, orthonormal columns, most important first.
        eigenvalues: All D of the covariance, descending.
    """

    mean: Tensor
    basis: Tensor
    eigenvalues: Tensor

    def __init__(self, mean: Tensor, basis: Tensor, eigenvalues: Tensor) -> None:
        super().__init__()
        for name, value in (("mean", mean), ("basis", basis), ("eigenvalues", eigenvalues)):
            self.register_buffer(name, value.float())

    @classmethod
    def fit(cls, mean: Tensor, covariance: Tensor, *, explained: float, dimension: int | None = None) -> NormalSubspace:
        """The smallest subspace that explains a share of the variance.

        Args:
            mean: `[D]`, double precision.
            covariance: `[D, D]`, double precision.
            explained: Share, below 1.
            dimension: q itself; None for as many as `explained` needs: none where nothing varies.
        """
        values, vectors = torch.linalg.eigh(covariance)
        values, vectors = values.flip(0), vectors.flip(1)
        if dimension is None:
            total = values.sum()
            below = int((values.cumsum(0) / total < explained).sum()) if total > 0 else -1
            dimension = min(len(values), 1 + below)
        return cls(mean, vectors[:, :dimension], values)

    def residual(
        self, tokens: Tensor, *, kind: Residual = "reconstruction", drop: int = 0, eps: float = 1e-6
    ) -> Tensor:
        """How little tokens look like the normal ones.

        Args:
            tokens: `[..., D]`.
            kind: `reconstruction`: squared length of what the subspace leaves over. `cosine`: one minus the cosine of token
                and reconstruction. `mahalanobis`, `euclidean`: squared length within the subspace, in units of the variances
                or not.
            drop: Leading directions that are left out of the basis.
            eps: Keeps `cosine` and `mahalanobis` finite.

        Returns:
            `[...]`, float32.
        """
        tokens = tokens.float()
        centred = tokens - self.mean
        basis = self.basis[:, drop:]
        inside = product(centred, basis)  # [..., q - drop]
        if kind == "mahalanobis":
            return (inside.square() / (self.eigenvalues[drop : self.basis.shape[1]] + eps)).sum(dim=-1)
        if kind == "euclidean":
            return inside.square().sum(dim=-1)
        rebuilt = product(inside, basis.T)
        if kind == "reconstruction":
            return (centred - rebuilt).square().sum(dim=-1)
        rebuilt = rebuilt + self.mean
        norms = (tokens.norm(dim=-1) + eps) * (rebuilt.norm(dim=-1) + eps)
        cosine: Tensor = ((tokens * rebuilt).sum(dim=-1) / norms).clamp(-1, 1)
        return 1 - cosine
