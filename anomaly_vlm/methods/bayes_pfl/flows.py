"""Prompt flows: Gaussians whose draws go through planar flows (Rezende and Mohamed, ICML 2015, eq. 10 to 12)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Draw(NamedTuple):
    """Draws from a flow.

    Attributes:
        mean: `[n, D]` of the Gaussian.
        variance: `[n, D]` of the Gaussian.
        start: `[n, D]` draws from the Gaussian.
        end: `[n, D]` what the flow makes of them.
        log_det: `[n]` logarithm of the Jacobian determinant.
    """

    mean: Tensor
    variance: Tensor
    start: Tensor
    end: Tensor
    log_det: Tensor


class GaussianHead(nn.Module):
    """Mean and variance of a Gaussian as functions of an input `[n, C]`: two networks of three layers.

    Args:
        inputs: C.
        hidden: Width of the inner layers.
        outputs: D.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.weight_mean, self.weight_log_variance = (
            nn.Sequential(
                nn.Linear(inputs, hidden),
                nn.Softplus(),
                nn.Linear(hidden, hidden),
                nn.Softplus(),
                nn.Linear(hidden, outputs),
            )
            for _ in range(2)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance `[n, D]`; the published code halves the logarithm of what it calls the variance."""
        variance: Tensor = (0.5 * self.weight_log_variance(x)).exp()
        return self.weight_mean(x), variance


class ImageFlow(nn.Module):
    """A planar flow whose parameters are linear functions of the image's feature.

    Args:
        inputs: C of the feature.
        width: D of the draws.
        steps: Number of planar steps.
    """

    def __init__(self, inputs: int, width: int, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.amor_u, self.amor_w = nn.Linear(inputs, steps * width), nn.Linear(inputs, steps * width)
        self.amor_b = nn.Linear(inputs, steps)

    def draw(self, head: GaussianHead, feature: Tensor, noise: Tensor) -> Draw:
        """Draws for features `[n, C]` from standard normal `noise` `[n, D]`."""
        u, w = (part(feature).unflatten(1, (self.steps, -1)) for part in (self.amor_u, self.amor_w))
        mean, variance = head(feature)
        return _draw(mean, variance, noise, u, w, self.amor_b(feature))


class StateFlow(nn.Module):
    """A planar flow of a state (normal or abnormal), whose parameters and input are learned.

    Args:
        inputs: C of the learned input.
        width: D of the draws.
        steps: Number of planar steps.
        generator: Draws the start, standard normal.
    """

    def __init__(self, inputs: int, width: int, steps: int, generator: torch.Generator) -> None:
        super().__init__()
        self.amor_u, self.amor_w, self.amor_b, self.state = (
            nn.Parameter(torch.randn(shape, generator=generator))
            for shape in ((steps, width), (steps, width), (steps,), (1, inputs))
        )

    def draw(self, head: GaussianHead, noise: Tensor) -> Draw:
        """Draws from standard normal `noise` `[n, D]`."""
        mean, variance = head(self.state)
        return _draw(mean, variance, noise, self.amor_u[None], self.amor_w[None], self.amor_b[None])


def _draw(mean: Tensor, variance: Tensor, noise: Tensor, u: Tensor, w: Tensor, c: Tensor) -> Draw:
    """Planar steps `z <- z + u tanh(w z + c)` on draws `[n, D]`; `u`, `w` `[n or 1, K, D]`, `c` `[n or 1, K]`."""
    start = mean + variance.sqrt() * noise
    z, log_det = start, start.new_zeros(len(start))
    for k in range(u.shape[1]):
        h = torch.tanh((z * w[:, k]).sum(dim=1) + c[:, k])  # [n]
        z = z + u[:, k] * h[:, None]
        slope = (1 - h.square()) * (w[:, k] * u[:, k]).sum(dim=1)
        log_det = log_det + ((1 + slope).abs() + 1e-5).log()
    return Draw(mean.expand_as(start), variance.expand_as(start), start, z, log_det)


def divergences(draws: Sequence[Draw], term: Callable[..., Tensor], *, published: bool) -> Tensor:
    """Divergences `[3]` of context, normal and abnormal draws from the standard normal.

    Args:
        draws: One an image of the context, one of each state.
        term: The loss of a draw.
        published: Whether the log determinants of the states are divided by the number of images.
    """
    divisor = len(draws[0].end) if published else 1
    scaled = [draws[0], *(draw._replace(log_det=draw.log_det / divisor) for draw in draws[1:])]
    return torch.stack([term(*draw) for draw in scaled])
