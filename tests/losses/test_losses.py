"""Losses: values known by hand, shapes, gradients, dtypes; terms made from a config."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from anomaly_vlm.errors import UserError
from anomaly_vlm.losses import (
    KINDS,
    build_terms,
    cross_entropy,
    dice_loss,
    focal_loss,
    focal_of_logits,
    map_losses,
    orthogonality_loss,
    prior_loss,
    training_mask,
)

PROB = torch.tensor([[[0.2, 0.9], [0.5, 0.0]], [[1.0, 0.4], [0.3, 0.6]]])
MASK = torch.tensor([[[0.0, 1.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]]])


def test_focal_without_focus_is_cross_entropy() -> None:
    inside = PROB.clamp(0.01, 0.99)
    expected = F.binary_cross_entropy(inside, MASK, reduction="none").flatten(1).mean(dim=1)
    torch.testing.assert_close(focal_loss(inside, MASK, gamma=0.0, smooth=0.0), expected)
    torch.testing.assert_close(cross_entropy(inside, MASK), expected)


def test_focal_by_hand() -> None:
    q = (1 - 1e-5) * 0.7 + 1e-5 * 0.3 + 1e-5
    assert focal_loss(torch.tensor([0.7]), torch.tensor([1])).item() == pytest.approx(
        (1 - q) ** 2 * -math.log(q), rel=1e-5
    )


@pytest.mark.parametrize("gamma", [1.5, 2.0])
def test_focal_rounds_as_the_published_formula(gamma: float) -> None:
    """Bit for bit, also where the loss vanishes: a saturated map's gradient hangs on the last digit."""
    prob = torch.cat(
        [torch.rand(500, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 1e-7, 1 - 1e-7])]
    )
    target, found = (torch.arange(504) % 3 == 0).float(), []
    for published in (True, False):
        given = prob.clone().requires_grad_()
        if published:
            true = given * target + (1 - given) * (1 - target)
            q = (1 - 1e-5) * true + 1e-5 * (1 - true) + 1e-5
            loss = -((1 - q).abs() ** gamma) * q.log()
        else:
            loss = focal_loss(given, target, gamma=gamma)
        loss.sum().backward()
        found += [loss.detach(), given.grad]
    assert torch.equal(found[0], found[2]) and torch.equal(found[1], found[3])


def test_cross_entropy_equals_that_of_two_logits() -> None:
    logits, label = torch.tensor([[1.0, 2.5], [0.3, -4.0]]), torch.tensor([0, 1])
    ours = cross_entropy(logits.softmax(dim=-1)[:, 1], label)
    torch.testing.assert_close(ours, F.cross_entropy(logits, label, reduction="none"))
    assert torch.isfinite(cross_entropy(torch.tensor([0.0, 1.0]), torch.tensor([1, 0]))).all()


def test_dice_over_image_and_over_rows() -> None:
    image = dice_loss(PROB, MASK)
    assert image[0].item() == pytest.approx(1 - (2 * 1.4 + 1) / (1.6 + 2 + 1))
    rows = dice_loss(PROB, MASK, over="row")
    first = [1 - (2 * 0.9 + 1) / (1.1 + 1 + 1), 1 - (2 * 0.5 + 1) / (0.5 + 1 + 1)]
    assert rows[0].item() == pytest.approx(sum(first) / 2)
    assert dice_loss(MASK, MASK, smooth=0.0)[0].item() == 0.0
    assert image.shape == rows.shape == (2,)


def test_focal_of_logits_never_vanishes_for_scores_in_the_unit_interval() -> None:
    best = focal_of_logits(torch.tensor([1.0, 0.0]), torch.tensor([1, 0]))
    expected = [(1 - math.exp(-bce)) ** 2 * bce for bce in (math.log(1 + math.exp(-1)), math.log(2))]
    torch.testing.assert_close(best, torch.tensor(expected))


def test_orthogonality() -> None:
    features = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
    assert orthogonality_loss(features).item() == pytest.approx(2 * math.sqrt(0.5))
    assert orthogonality_loss(features, pairs="ordered").item() == pytest.approx(4 * math.sqrt(0.5))


def test_prior_counts_normal_images_only() -> None:
    offset, label = torch.tensor([[1.0, 3.0], [9.0, 9.0], [2.0, 0.0]]), torch.tensor([0, 1, 0])
    assert prior_loss(offset, label).item() == pytest.approx(5.0 + 2.0)
    assert prior_loss(offset, label, over="sum").item() == pytest.approx(10.0 + 4.0)
    assert prior_loss(offset, torch.ones(3)).item() == 0.0


@pytest.mark.parametrize("function", [focal_loss, cross_entropy, dice_loss, focal_of_logits])
def test_gradients(function) -> None:
    prob = torch.rand(2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1
    target = (torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(1)) > 0.5).double()
    assert torch.autograd.gradcheck(lambda p: function(p, target), prob.requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtypes_are_kept(dtype: torch.dtype) -> None:
    assert all(f(PROB.to(dtype), MASK).dtype == dtype for f in (focal_loss, dice_loss, cross_entropy))


def test_terms_carry_weight_kind_and_options() -> None:
    terms = build_terms({"a": {"kind": "dice", "weight": 2, "over": "row"}, "b": {"kind": "focal", "weight": 0}})
    assert list(terms) == ["a"] and (terms["a"].weight, terms["a"].kind) == (2.0, "dice")
    torch.testing.assert_close(terms["a"](PROB, MASK), dice_loss(PROB, MASK, over="row"))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"kind": "dise"}, "unknown kind of loss.x 'dise': choose one of dice"),
        ({}, "unknown kind of loss.x 'None'"),
        ({"kind": "dice", "smoth": 1}, "unknown option of loss.x .kind dice. 'smoth': choose one of smooth"),
        ({"kind": "dice", "over": "pixel"}, "unknown loss.x.over 'pixel': choose one of batch, image, row"),
        ({"kind": "focal", "gamma": "two"}, "loss.x.gamma is 'two': give a number"),
        ({"kind": "focal", "weight": -1}, "loss.x.weight is -1"),
        ({"kind": "focal", "weight": math.nan}, "loss.x.weight is nan"),
    ],
)
def test_wrong_terms(entry: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_terms({"x": entry})


def test_every_kind_is_documented() -> None:
    assert all(function.__doc__ for function in KINDS.values())


@pytest.mark.parametrize("dice", ["row", "image", "batch"])
@pytest.mark.parametrize("with_normal", [False, True])
def test_map_losses_are_those_of_each_layer_added_up(dice: str, with_normal: bool) -> None:
    terms = build_terms({"focal": {"kind": "focal"}, "dice": {"kind": "dice", "over": dice, "weight": 2}})
    torch.manual_seed(0)
    maps, mask = torch.rand(3, 2, 5, 4), (torch.rand(2, 5, 4) > 0.6).float()
    normal = 1 - maps if with_normal else None
    found = map_losses(terms, maps, mask, normal=normal)
    focal = sum(focal_loss(layer, mask).mean() for layer in maps)
    both = sum(dice_loss(m, mask, over=dice).mean() + dice_loss(1 - m, 1 - mask, over=dice).mean() for m in maps)
    torch.testing.assert_close(found["focal"], focal)
    torch.testing.assert_close(found["dice"], both)


def test_images_without_a_mask_beside_others_are_left_out_of_the_map_losses() -> None:
    terms = build_terms({"focal": {"kind": "focal"}, "dice": {"kind": "dice", "over": "image"}})
    maps = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    mask = torch.zeros(3, 4, 4, dtype=torch.uint8)
    mask[0, 1, 1], mask[1] = 1, 255
    numbers = training_mask(mask, ["a", "b", "c"], terms)
    assert (numbers[1] == -1).all() and numbers[[0, 2]].sum() == 1
    found, alone = map_losses(terms, maps, numbers), map_losses(terms, maps[:, [0, 2]], numbers[[0, 2]])
    assert {name: value.item() for name, value in found.items()} == {
        name: value.item() for name, value in alone.items()
    }
    none = map_losses(terms, maps, torch.full((3, 4, 4), -1.0))
    assert none.keys() == terms.keys() and sum(none.values()).item() == 0
    sum(none.values()).backward()  # a training step continues
    with pytest.raises(UserError, match="loss=image_only"):
        training_mask(None, ["a"], terms)
