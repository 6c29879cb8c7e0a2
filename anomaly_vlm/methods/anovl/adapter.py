"""AnoVL's test-time adaptation: a small adapter on the patches of one image, trained for a few steps (section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_vlm.options import AtLeast, PositiveFloat, PositiveInt


@dataclass(frozen=True)
class AdaptationOptions:
    """The adaptation to each test image.

    Args:
        steps: Steps of AdamW.
        lr: Its learning rate.
        noise_std: Standard deviation of the noise on patch features.
        optimizer_state: `fresh`: AdamW starts anew for each image, so that its result does not depend on other images.
            `published`: AdamW's moments run on over the images of a category in their order (in one process).
    """

    steps: PositiveInt = 5
    lr: PositiveFloat = 1e-3
    noise_std: Annotated[float, AtLeast(0)] = 0.055
    optimizer_state: Literal["fresh", "published"] = "fresh"


class CategoryTexts(NamedTuple):
    """Text features of a category, unit norm.

    Attributes:
        prototypes: `[2, C]` of the normal and the anomalous state.
        keys: `[2M, C]` of all sentences, normal ones first.
    """

    prototypes: Tensor
    keys: Tensor


class AdapterStart(NamedTuple):
    """Start of the adaptation to B images.

    Attributes:
        weight: First weights W `[B, 2M, C]`.
        bias: First biases b `[B, 2M]`.
        noise: Noise on the patches `[steps, B, P, C]`.
    """

    weight: Tensor
    bias: Tensor
    noise: Tensor


class TextAdapter(nn.Module):
    """Adapter `x' = x / 2 + A(x) / 2` with `A(x) = tanh(W x / |x| + b) K`, with a W and a b for each of B images.

    One half of an adapted patch is a combination of the sentences' features K.

    Args:
        keys: K `[2M, C]`.
        start: First W and b.
    """

    def __init__(self, keys: Tensor, start: AdapterStart) -> None:
        super().__init__()
        self.keys = keys
        self.weight, self.bias = nn.Parameter(start.weight.clone()), nn.Parameter(start.bias.clone())

    def forward(self, patches: Tensor) -> Tensor:
        """Adapts patches `[B, P, C]`, not normalised, to `[B, P, C]`."""
        logits = torch.baddbmm(self.bias[:, None], F.normalize(patches, dim=-1), self.weight.transpose(1, 2))
        return 0.5 * patches + 0.5 * logits.tanh() @ self.keys


def log_probabilities(features: Tensor, prototypes: Tensor) -> Tensor:
    """Logarithms `[..., 2]` of the probabilities that features `[..., C]` are normal and anomalous, without temperature."""
    return (F.normalize(features, dim=-1) @ prototypes.T).log_softmax(dim=-1)


def adapt(
    adapter: TextAdapter, optimizer: torch.optim.Optimizer, patches: Tensor, noise: Tensor, texts: CategoryTexts
) -> Tensor:
    """Trains an adapter: patches become certain and normal, patches with noise anomalous.

    Args:
        adapter: Of B images; changed in place.
        optimizer: Of its parameters.
        patches: `[B, P, C]`, not normalised.
        noise: `[steps, B, P, C]`, added to the patches.
        texts: Of the images' category.

    Returns:
        The loss of each image before each step `[steps, B]`: the mean entropy of the patches, plus half of the mean cross
        entropy of the noisy ones as anomalous and of the clean ones as normal.
    """
    losses = []
    for added in noise:
        both = log_probabilities(adapter(torch.cat([patches, patches + added], dim=1)), texts.prototypes)
        clean, noisy = torch.chunk(both, 2, dim=1)  # [B, P, 2] each
        entropy = -(clean.exp() * clean).sum(dim=-1)
        loss = entropy.mean(dim=1) + 0.5 * (-noisy[..., 1] - clean[..., 0]).mean(dim=1)
        optimizer.zero_grad()
        loss.sum().backward()  # the images share no parameter
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)
