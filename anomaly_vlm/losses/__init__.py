"""Losses as pure functions of tensors, and the weighted terms that a config makes of them."""

from anomaly_vlm.losses.cross_entropy import cross_entropy, focal_of_logits
from anomaly_vlm.losses.dice import dice_loss
from anomaly_vlm.losses.few_shot import alignment_loss, contrastive_loss, level_loss, margin_loss
from anomaly_vlm.losses.focal import balanced_focal_loss, focal_loss
from anomaly_vlm.losses.maps import map_losses, training_mask
from anomaly_vlm.losses.masks import bce_of_logits, cross_entropy_with_void
from anomaly_vlm.losses.prompts import (
    flow_divergence,
    mean_cosine_square,
    orthogonality_loss,
    prior_loss,
    square_orthogonality_loss,
)
from anomaly_vlm.losses.terms import KINDS, PROBABILITY, LossTerm, build_terms

__all__ = [
    "KINDS",
    "PROBABILITY",
    "LossTerm",
    "alignment_loss",
    "balanced_focal_loss",
    "bce_of_logits",
    "build_terms",
    "contrastive_loss",
    "cross_entropy",
    "cross_entropy_with_void",
    "dice_loss",
    "flow_divergence",
    "focal_loss",
    "focal_of_logits",
    "level_loss",
    "map_losses",
    "margin_loss",
    "mean_cosine_square",
    "orthogonality_loss",
    "prior_loss",
    "square_orthogonality_loss",
    "training_mask",
]
