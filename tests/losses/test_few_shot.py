"""Losses of few-shot prompts: against textbook forms, by hand, gradients."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_vlm.errors import UserError
from anomaly_vlm.losses import alignment_loss, build_terms, contrastive_loss, level_loss, margin_loss


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_contrastive_is_cross_entropy_with_the_first_class() -> None:
    logits = draw(2, 3, 5)
    expected = F.cross_entropy(logits.flatten(0, 1), torch.zeros(6, dtype=torch.long))
    torch.testing.assert_close(contrastive_loss(logits), expected)


def test_margin_over_channels_is_a_triplet_of_squared_distances() -> None:
    x, normal, abnormal = draw(2, 3, 4), draw(4, seed=1), draw(4, seed=2)
    distances = ((x - normal) ** 2).sum(-1) - ((x - abnormal) ** 2).sum(-1)
    torch.testing.assert_close(
        margin_loss(x, normal, abnormal, dim="channel", margin=0.5), F.relu(distances + 0.5).mean()
    )
    torch.testing.assert_close(margin_loss(x[0], normal, abnormal), margin_loss(x[0], normal, abnormal, dim="channel"))


def test_margin_as_published_sums_over_the_patches() -> None:
    x, normal, abnormal = torch.tensor([[[1.0, 0.0], [3.0, 0.0]]]), torch.zeros(2), torch.tensor([1.0, 2.0])
    first = (1 + 9) - (0 + 4)  # channel 0: both patches
    second = 0 - (4 + 4)
    expected = (max(0, first + 1) + max(0, second + 1)) / 2
    assert margin_loss(x, normal, abnormal, margin=1.0).item() == expected


def test_alignment_and_levels_by_hand() -> None:
    east, north = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 5.0])
    assert alignment_loss(torch.stack([east, east]), north[None]).item() == 2.0
    assert alignment_loss(torch.stack([east, north]), torch.stack([north, east])).item() == 0.0
    entities = torch.stack([east[None], east[None]])  # summed before they are normalised
    assert level_loss(east[None], entities, north[None]).item() == 1.0
    assert level_loss(north[None], entities, north[None]).item() == pytest.approx(1.0)
    assert level_loss(-east[None], entities, torch.stack([north, -north])).item() == pytest.approx(2.0)


def test_gradients() -> None:
    inputs = [draw(3, 4, seed=i).requires_grad_() for i in range(3)]
    assert torch.autograd.gradcheck(lambda a, b, c: margin_loss(a, b[0], c[0], margin=0.1), inputs)
    assert torch.autograd.gradcheck(alignment_loss, inputs[:2])
    assert torch.autograd.gradcheck(lambda a, b, c: level_loss(a, b[None], c), inputs)
    assert torch.autograd.gradcheck(contrastive_loss, inputs[:1])


def test_as_terms() -> None:
    terms = build_terms({"eam": {"kind": "margin", "weight": 2, "margin": 1, "dim": "channel"}})
    x = torch.zeros(1, 1, 2)
    assert terms["eam"](x, torch.zeros(2), torch.zeros(2)).item() == 1.0
    assert terms["eam"].weight == 2.0
    assert not math.isnan(terms["eam"](x, torch.ones(2), torch.ones(2)).item())
    with pytest.raises(UserError, match=r"loss\.eam\.dim"):
        build_terms({"eam": {"kind": "margin", "dim": "patch"}})
