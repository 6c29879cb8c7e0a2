"""Losses of anomaly maps, as the methods that are trained with pixel masks share them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from anomaly_vlm.errors import UserError
from anomaly_vlm.losses.terms import LossTerm


def wants_masks(terms: Iterable[str]) -> bool:
    """Whether any of the configured terms compares maps with pixel masks: `focal` or `dice`."""
    return bool({"focal", "dice"} & set(terms))


def training_mask(mask: Tensor | None, path: Sequence[str], terms: Iterable[str]) -> Tensor:
    """The mask of a training batch as numbers.

    Args:
        mask: `[B, H, W]` of 0, 1 and 255 (no label), or None where the set has no pixel labels.
        path: B image files, for messages.
        terms: Names of the configured loss terms, for messages.

    Returns:
        `[B, H, W]` float32 of 0.0 and 1.0; pixels without label count as normal. An anomalous image without a mask, where
        others have some, is -1.0 everywhere: `map_losses` leaves it out.

    Raises:
        UserError: The set has image labels only.
    """
    if mask is None:
        raise UserError(
            f"the training set has image labels only ('{path[0]}'), but the loss ({', '.join(sorted(terms))}) needs pixel"
            " masks: train on a set with masks (TRAIN=procedural) or choose loss=image_only"
        )
    unlabelled = (mask == 255).flatten(1).all(dim=1)
    return (mask == 1).float().masked_fill(unlabelled[:, None, None], -1.0)


def map_losses(
    terms: Mapping[str, LossTerm],
    maps: Tensor,
    mask: Tensor,
    *,
    normal: Tensor | None = None,
    suffix: str = "",
    dice_of_normal: bool = True,
) -> dict[str, Tensor]:
    """The terms `focal` and `dice` of layers' maps, where they are configured.

    Args:
        terms: Configured terms by name.
        maps: `[layers, B, H, W]` abnormal probabilities.
        mask: See `training_mask`; images of which no pixel is labelled are left out.
        normal: `[layers, B, H, W]` normal probabilities, where they are available to more digits than `1 - maps` has
            (FiLo).
        suffix: Of the terms' names, where a method has several maps (FAPrompt).
        dice_of_normal: Whether `dice` adds the loss of the normal map to that of the abnormal one (APRIL-GAN: not).

    Returns:
        Scalars by term: the mean over the batch, summed over the layers.
    """
    labelled = mask.flatten(1).amin(dim=1) >= 0
    if not labelled.all():
        maps, mask = maps[:, labelled], mask[labelled]
        normal = None if normal is None else normal[:, labelled]
        if not len(mask):
            return {f"{name}{suffix}": 0 * maps.sum() for name in ("focal", "dice") if f"{name}{suffix}" in terms}
    values = {}
    if (focal := terms.get(f"focal{suffix}")) is not None:
        if normal is None:
            each = _by_layer(focal, maps, mask)
        else:  # of the probability of what each pixel is
            each = _by_layer(focal, torch.where(mask > 0, maps, normal), torch.ones_like(mask))
        values[f"focal{suffix}"] = each.sum()
    if (dice := terms.get(f"dice{suffix}")) is not None:
        each = _by_layer(dice, maps, mask)
        if dice_of_normal:
            each = each + _by_layer(dice, 1 - maps if normal is None else normal, 1 - mask)
        values[f"dice{suffix}"] = each.sum()
    return values


def _by_layer(term: LossTerm, maps: Tensor, mask: Tensor) -> Tensor:
    """A term's mean over the batch, `[layers]`; all layers in one call, which is quicker, where images do not mix."""
    if not term.each_by_itself:
        return torch.stack([term(layer, mask).mean() for layer in maps])
    return term(maps.flatten(0, 1), mask.repeat(len(maps), 1, 1)).view(len(maps), -1).mean(dim=1)
